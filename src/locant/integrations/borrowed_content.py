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


def _rows(table: Float[Tensor, "rows head_dim"], count: int) -> Float[Tensor, "count head_dim"]:
    return table if len(table) == count else F.interpolate(table.T[None], size=count, mode="linear")[0].T
