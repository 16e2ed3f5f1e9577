"""Models whose numbers are drawn again, so that a wrong one shows: most start at 0, at 1, or too small to matter."""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
WIDE = ("table", "position", "pos_", "embedding", "cls_token", "query_embed")
NORM = re.compile(r"(norm|ln)[\w.]*weight$", re.IGNORECASE)


@torch.no_grad()
def redraw(module: M, *, std: float = 0.5) -> M:
    """Every parameter drawn anew, for models that are run: nothing explodes, and nothing is too small to see.

    Matrices keep the scale of what goes through them. Tables, embeddings and all vectors have this standard deviation;
    the weights of norms lie around 1, and the logarithm of Swin V2's scale around its start, log 10.
    """
    for name, parameter in module.named_parameters():
        matrix = parameter.ndim > 1 and not any(word in name for word in (*WIDE, "logit_scale"))
        centre = 2.3 if "logit_scale" in name else float(NORM.search(name) is not None)
        parameter.normal_(centre, parameter[0].numel() ** -0.5 if matrix else std)
    return module


@torch.no_grad()
def redraw_alike(module: M, *, std: float = 0.5) -> M:
    """Every parameter from one normal distribution, for single schemes and layers."""
    for parameter in module.parameters():
        parameter.normal_(std=std)
    return module


@torch.no_grad()
def shake(module: M, *, by: float = 0.3) -> M:
    """Every parameter moved a little from where it starts: adapters and embeddings start at 0."""
    for parameter in module.parameters():
        parameter.add_(by * torch.randn_like(parameter))
    return module


@torch.no_grad()
def refill(module: M) -> M:
    """Every tensor of the state dict, for models that are only read and written: buffers too, counters as 3."""
    for tensor in module.state_dict().values():
        tensor.normal_() if tensor.is_floating_point() else tensor.fill_(3)
    return module
