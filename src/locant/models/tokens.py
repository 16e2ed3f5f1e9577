"""Token ids in, token ids out: what the sequence models ask of ids, and greedy decoding."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from locant.masks import Padding


def check_ids(model: str, name: str, ids: Tensor) -> None:
    """Token ids are whole numbers [batch, tokens], one token or more."""
    if ids.ndim != 2 or ids.shape[1] < 1 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{model} needs `{name}` as whole numbers [batch, 1 token or more]; got {ids.dtype} {list(ids.shape)}. "
            "Give the ids of the tokens: text.long(), and text[None] for a single one."
        )


@runtime_checkable
class Decodes(Protocol):
    """A model that reads a source once, and then goes on from a state: the transformer here, and Bahdanau's."""

    training: bool

    def start(self, source: Tensor, *, mask: Padding | None = None) -> Any:
        """What `decode` goes on from."""

    def decode(self, target: Tensor, state: Any) -> tuple[Any, ...]:
        """Logits [batch, tokens, classes] of what follows each token, and the state behind them."""


@torch.no_grad()
def greedy(
    model: Decodes,
    source: Int[Tensor, "batch tokens"],
    *,
    begin: int,
    end: int,
    limit: int,
    mask: Padding | None = None,
) -> Int[Tensor, "batch steps"]:
    """t_i = argmax logits(t_0, ..., t_{i-1}),  t_0 = begin: one token at a time, each fed alone.

    Every step reads one token and the state, so that none is computed twice. A row ends with `end`, and is filled with
    it to the length of the longest; t_0 is not returned.

    Where it differs: d2l feeds its transformer each token as if it stood at position 0, so that what it predicts is not
    what it learned. Here the state knows how many came before.

    Args:
        model: with `start` and `decode`, in evaluation.
        source: the ids to read.
        begin, end: the ids that open and close a sequence.
        limit: how many tokens at most.
        mask: which of the source are real.

    Raises:
        ValueError: for a model in training, whose dropout would take part, or a limit below 1.
    """
    if model.training:
        raise ValueError(
            "greedy needs a model in evaluation; got one in training, where dropout takes part. Call model.eval()."
        )
    if limit < 1:
        raise ValueError(f"greedy needs a `limit` of at least 1; got {limit}. Say how many tokens to make at most.")
    state = model.start(source, mask=mask)
    token = source.new_full((source.shape[0], 1), begin)
    over = torch.zeros_like(token, dtype=torch.bool)
    made: list[Tensor] = []
    while len(made) < limit and not (made and bool(over.all())):
        logits, state = model.decode(token, state)[:2]
        token = logits[:, -1:].argmax(-1).masked_fill(over, end)
        over = over | (token == end)
        made.append(token)
    return torch.cat(made, dim=1)
