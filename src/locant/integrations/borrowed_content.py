"""Content terms whose vectors belong to a module of another library, and are read where they lie at every call."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.forms import AxialValues, AxialVectors
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Content


@final
class BorrowedDecomposed(Content):
    """A table [rows, head_dim] per axis over query - key, of a module that owns them; as `Decomposed`.

    Tables of another length than a call needs are stretched at that call, as published: by torch's linear
    interpolation without aligned ends.

    Args:
        owner: the module; it is not registered here, so that no state dict changes.
        tables: the paths of its parameters, axis by axis.
        heads, head_dim: of the attention.
    """

    def __init__(self, owner: nn.Module, tables: tuple[str, ...], heads: int, head_dim: int) -> None:
        super().__init__()
        self.__dict__["owner"] = owner
        self.tables, self.heads, self.head_dim = tables, heads, head_dim

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        for name in self.tables:
            yield attrgetter(name)(self.owner)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """Tables are stretched over any offsets."""

    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        lines = zip(self.parameters(), form.ranges, strict=True)
        met = tuple(_rows(table, 2 * high + 1)[None, high + low :] for table, (low, high) in lines)
        return AxialValues(q, met, form.ranges)


@final
class BorrowedVectors(Content):
    """logit = s · [(q_i + u_h) · k_j + (q_i + v_h) · r_h[i - j]], of vectors r that a module made for this call.

    As `TransformerXL`, and without u and v as `Shaw`. Offsets beyond those of r are taken for the nearest one.

    Args:
        vectors: r [heads or 1, offsets, head_dim], of rising offsets.
        lowest: the first of them.
        heads: of the attention.
        u, v: [heads, head_dim], or neither.
    """

    u: Tensor | None
    v: Tensor | None

    def __init__(
        self, vectors: Float[Tensor, "heads_or_1 offsets head_dim"], lowest: int, heads: int, u: Tensor | None = None,
        v: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vectors, self.lowest, self.heads, self.head_dim = vectors, lowest, heads, vectors.shape[-1]
        self.__dict__.update(u=u, v=v)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """Offsets beyond are taken for the nearest."""

    def ranges(self, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        highest = self.lowest + self.vectors.shape[1] - 1
        return ((max(-reach[0], self.lowest), min(reach[0], highest)),)

    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        ((low, high),) = form.ranges
        met = self.vectors[:, low - self.lowest : high - self.lowest + 1]
        queries = q if self.v is None else q + self.v[:, None].to(q.dtype)
        return AxialValues(queries, (met,), form.ranges, factor=scale)

    def queries(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        return q if self.u is None else q + self.u[:, None].to(q.dtype)


def _rows(table: Float[Tensor, "rows head_dim"], count: int) -> Float[Tensor, "count head_dim"]:
    return table if len(table) == count else F.interpolate(table.T[None], size=count, mode="linear")[0].T
