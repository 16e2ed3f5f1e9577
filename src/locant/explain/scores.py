"""What queries make of keys in one call of attention: some rows alone, and how much of them is content and position.

    logits   = content + position
    content  = scale · q kᵀ, as both were projected (with what a content scheme adds to q)
    position = biases + terms of a content scheme + what turning q and k changes

so that softmax of both is what the model uses. A gate mixes after the softmax: weights = (1 - g) softmax(both) + g R,
where R is position's alone. Nothing of queries × keys is made: a block is some queries against the keys that their
windows leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from locant.call import Call
from locant.cells import cells
from locant.forms import add_values
from locant.softmax import softmax
from locant.tokens import Tokens


@dataclass(frozen=True)
class Block:
    """Some queries against the keys that they may see.

    Attributes:
        queries, keys: indices of tokens, the prefix included in the count.
        content, position: logits; `position` None where no scheme acts in this attention.
        seen: who may attend; one row for all heads, or one per head.
        gate: share per head, and the weights by position alone.
    """

    queries: Int[Tensor, " queries"]
    keys: Int[Tensor, " keys"]
    content: Float[Tensor, "heads queries keys"]
    position: Float[Tensor, "heads queries keys"] | None
    seen: Bool[Tensor, "#heads queries keys"]
    gate: tuple[Float[Tensor, " heads"], Float[Tensor, "heads queries keys"]] | None = None

    def logits(self) -> Float[Tensor, "heads queries keys"]:
        """What the softmax is taken of."""
        return self.content if self.position is None else self.content + self.position

    def weights(self) -> Float[Tensor, "heads queries keys"]:
        """As the model uses them."""
        found = softmax(self.logits(), self.seen)[0]
        if self.gate is None:
            return found
        share, by_position = self.gate[0][:, None, None], self.gate[1]
        return (1 - share) * found + share * by_position

    def by_content(self) -> Float[Tensor, "heads queries keys"] | None:
        """By content alone; under a gate the half that is not the gate's."""
        if self.gate is not None:
            return softmax(self.logits(), self.seen)[0]
        return None if self.position is None else softmax(self.content, self.seen)[0]

    def by_position(self) -> Float[Tensor, "heads queries keys"] | None:
        """By position alone."""
        if self.gate is not None:
            return self.gate[1]
        return None if self.position is None else softmax(self.position, self.seen)[0]


class Reader:
    """Blocks of one sample of a call. Made where the call is made: autocast has its say.

    Args:
        call: of attention.
        sample: of its batch.
    """

    def __init__(self, call: Call, sample: int = 0) -> None:
        kind, kv = torch.promote_types(call.dtype, torch.float32), slice(sample, sample + 1)
        self.call, self.sample = call, sample
        self.grid, self.key_grid = call.problem.grid, call.problem.key_grid
        self.q, self.k = (x.detach()[kv].to(call.dtype).to(kind) for x in (call.q, call.k))
        self.scale = call.scale.detach().to(kind) if isinstance(call.scale, Tensor) else call.scale
        schemes = call.schemes
        with torch.no_grad(), torch.autocast(self.q.device.type, enabled=False):
            self.met = self.q if schemes.content is None else schemes.content.queries(self.q)
            turn = schemes.rotation
            self.turned = None if turn is None else (turn(self.met, self.grid), turn(self.k, self.key_grid))
            tables = [p.values(call.problem.bias, self.q.device) for p in schemes.biases if call.problem.bias]
            self.bias = add_values(tables) if tables else None
            self.gate = None if schemes.gate is None else schemes.gate.values(self.grid, self.key_grid)

    def row(self, query: int) -> Block:
        """One query, a token of the prefix or one with a place, against all that its windows leave."""
        index = torch.tensor([query], device=self.q.device)
        if query < self.grid.prefix or not self.call.problem.mask.windows:
            return self.block(index, tuple(range(n) for n in self.key_grid.shape))
        place = _place(query - self.grid.prefix, self.grid.shape)
        box = []
        for axis, at in enumerate(place):
            line = cells(self.call.problem.mask.windows, axis, self.grid, self.key_grid)
            box.append(range(*next(cell.keys for cell in line if cell.queries[0] <= at < cell.queries[1])))
        return self.block(index, tuple(box))

    def blocks(self) -> Iterator[Block]:
        """All queries, cell by cell; those of the prefix in a block of their own."""
        lines = [
            cells(self.call.problem.mask.windows, axis, self.grid, self.key_grid) for axis in range(self.grid.axes)
        ]
        device = self.q.device
        if self.grid.prefix:
            yield self.block(torch.arange(self.grid.prefix, device=device), tuple(map(range, self.key_grid.shape)))
        for cell in product(*lines):
            index = _flat(tuple(range(*c.queries) for c in cell), self.grid.shape, device) + self.grid.prefix
            yield self.block(index, tuple(range(*c.keys) for c in cell))

    def pairs(self) -> int:
        """How many numbers `blocks` would hold."""
        lines = [
            cells(self.call.problem.mask.windows, axis, self.grid, self.key_grid) for axis in range(self.grid.axes)
        ]
        inside = [sum((c.queries[1] - c.queries[0]) * (c.keys[1] - c.keys[0]) for c in line) for line in lines]
        return math.prod(inside) + self.grid.cells * self.key_grid.prefix + self.grid.prefix * self.key_grid.tokens

    @torch.no_grad()
    def block(self, index: Int[Tensor, " queries"], box: tuple[range, ...]) -> Block:
        """These queries against the prefix and the keys of a box of the grid."""
        with torch.autocast(self.q.device.type, enabled=False):
            return self._block(index, box)

    def _block(self, index: Int[Tensor, " queries"], box: tuple[range, ...]) -> Block:
        # 1 who meets whom
        before = torch.arange(self.key_grid.prefix, device=index.device)
        where = torch.cat([before, _flat(box, self.key_grid.shape, index.device) + self.key_grid.prefix])
        queries, keys = self.grid.select(index[None]), self.key_grid.select(where[None])
        seen = self._seen(queries, keys)
        # 2 content
        content = self.scale * _product(self.met, self.k, index, where)
        # 3 position: biases, terms, and what turning changes
        parts = []
        if self.turned is not None:
            parts.append(self.scale * _product(*self.turned, index, where) - content)
        if self.bias is not None:
            parts.append(self.bias.at(queries, keys)[:, 0].to(content.dtype))
        if self.call.schemes.content is not None:
            parts.append(self._terms(index, queries, keys, tuple(map(len, box))))
        # 4 a gate's map
        gate = None
        if self.gate is not None:
            gate = (self.gate.share, softmax(self._gated(queries, keys).to(content.dtype), seen)[0])
        return Block(index, where, content, sum(parts[1:], parts[0]) if parts else None, seen, gate)

    def _seen(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#heads queries keys"]:
        if self.call.mask is None:
            return torch.ones(1, queries.index.shape[1], keys.index.shape[1], dtype=torch.bool, device=self.q.device)
        pairs = self.call.mask.pairs(queries, keys)
        pairs = pairs[min(self.sample, len(pairs) - 1), :, 0]
        return pairs.expand(len(pairs), queries.index.shape[1], keys.index.shape[1])

    def _terms(
        self, index: Int[Tensor, " queries"], queries: Tokens, keys: Tokens, box: tuple[int, ...]
    ) -> Float[Tensor, "heads queries keys"]:
        scheme, form = self.call.schemes.content, self.call.problem.content
        assert scheme is not None
        assert form is not None
        local = Tokens(torch.arange(len(index), device=index.device)[None], queries.coordinates, queries.placed)
        values = scheme.values(form, self.q[:, :, index], self.scale)
        return values.terms().at(local, keys, box)[0, :, 0].to(self.q.dtype)

    def _gated(self, queries: Tokens, keys: Tokens) -> Float[Tensor, "heads queries keys"]:
        """Position's own logits; tokens of the prefix have 0."""
        assert self.gate is not None
        total = torch.zeros((), device=self.q.device)
        both = queries.placed[0, :, None] & keys.placed[0]
        for axis, line in enumerate(self.gate.logits):
            q, k = ((t.coordinates[0, :, axis] - g.origin[axis]) // g.stride[axis]
                    for t, g in ((queries, self.grid), (keys, self.key_grid)))  # fmt: skip
            total = total + line[:, q.clamp(min=0)][:, :, k.clamp(min=0)]
        return torch.where(both, total, 0.0)


def _product(q: Tensor, k: Tensor, index: Tensor, where: Tensor) -> Float[Tensor, "heads queries keys"]:
    rows = k[0, :, where]
    groups = q.shape[1] // rows.shape[0]
    rows = rows if groups == 1 else rows.repeat_interleave(groups, 0)
    return q[0, :, index] @ rows.transpose(-1, -2)


def _flat(box: tuple[range, ...], shape: tuple[int, ...], device: torch.device) -> Int[Tensor, " cells"]:
    """The indices of a box of cells, row-major."""
    index = torch.zeros((), dtype=torch.int64, device=device)
    for size, line in zip(shape, box, strict=True):
        index = index[..., None] * size + torch.tensor(line, dtype=torch.int64, device=device)
    return index.flatten()


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found = []
    for size in reversed(shape):
        found.append(index % size)
        index //= size
    return tuple(reversed(found))
