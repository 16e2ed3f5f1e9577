"""The softmax that is the definition: rows that may see nothing give zeros, and the log-sum-exp comes with it."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(logits: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis and its log-sum-exp. A row that may see nothing gives 0 and -inf."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if logits.shape[-1] == 0:
        return logits, logits.new_full(logits.shape[:-1], -torch.inf)
    top = logits.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    e = torch.exp(logits - top)
    total = e.sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, top + torch.log(total))
    return e / total, lse.squeeze(-1)
