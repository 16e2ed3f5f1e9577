"""The contract of a position scheme: one abstract class per entrance, members final.

A scheme says how coordinates enter attention. It never attends itself: it hands over a small static form
(what the planner reads) and the tensors of that form (what a kernel reads). The five entrances are
embed, rotate, bias, content and gate (docs/architecture.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.cells import reach
from locant.checks import check_number, check_tensor, description
from locant.forms import AxialValues, AxialVectors, OffsetTable, OffsetValues, SeparableValues
from locant.grid import Grid, check_cell, check_grid
from locant.masks import Mask, Structure, check_mask
from locant.resizing import Place
from locant.tokens import every_offset

if TYPE_CHECKING:
    from locant.page.drawing import Drawing

Entrance = Literal["embed", "rotate", "bias", "content", "gate"]
ACTS_ON = {
    "embed": "tokens, or on q and k",
    "rotate": "q and k, which it turns",
    "bias": "logits",
    "content": "logits, through q",
    "gate": "probabilities",
}
PrefixRows = tuple[Float[Tensor, " heads"], Float[Tensor, " heads"], Float[Tensor, " heads"]]  # query, key, both


@dataclass(frozen=True)
class Comparison:
    """How `locant compare` tries a scheme by itself.

    Attributes:
        name: what `--positions` takes.
        label, sentence: what the page calls it, and what it says of it.
        build: from the grid of the tokens, their channels and the number of heads.
        axes: for how many axes of the grid it is made: 1 on sequences, 2 on images, 3 on clips.
        direction: whether it can tell left from right, and past from future.
        starts: how wide what it learns starts (its `init_std`): the published value, then others that a small budget
            may need. `build` then takes one of them as a fourth argument. None: nothing to choose.
    """

    name: str
    label: str
    sentence: str
    build: Callable[..., Position]
    axes: tuple[int, ...] = (1, 2, 3)
    direction: bool = True
    starts: tuple[float, ...] = ()


class Position(nn.Module):
    """How position acts. `entrance` says where it enters; the state dict holds learned tensors only."""

    entrance: ClassVar[Entrance]
    compared: ClassVar[Comparison | None] = None  # None: `locant compare` does not try it by itself

    def places(self) -> dict[str, Place]:
        """Those of its tensors that lie on a grid, and can be brought to another, by their names in the state dict."""
        return {}

    @torch.no_grad()
    def draw(
        self, grid: Grid | None = None, *, query: tuple[int, ...] | None = None, mask: Mask | None = None,
        q: Float[Tensor, "1 heads queries head_dim"] | None = None,
    ) -> Drawing:  # fmt: skip
        """What it does to the keys of one query, a map per head, as SVG by matplotlib: `.svg`, `.save("a.svg")`.

        Args:
            grid: of queries and keys; by default one that the scheme takes, its own where it has one.
            query: the indices of a cell; by default the one in the middle.
            mask: pairs that it forbids are left out.
            q: queries of one sample, which a content scheme acts through. Without them its picture is the most that a
                query of length 1 adds.

        Raises:
            ValueError: for a grid or a query that the scheme has no answer for.
            ModuleNotFoundError: where matplotlib is not installed.
        """
        from locant import maps
        from locant.page import drawing

        owner = f"{type(self).__name__}.draw"
        check_grid(owner, "grid", grid, needed=False)
        check_mask(owner, "mask", mask)
        drawing.check_matplotlib(owner)
        if grid is None:
            found = maps.example(self, mask)
            if found is None:
                raise ValueError(f"{owner} needs a `grid` here; got None. Pass one, as in draw(Grid(14, 14)).")
            grid = found[0]
        query = maps.middle(grid) if query is None else check_cell(owner, query, grid)
        rows = maps.one_query(self, grid, query, mask, q)
        if mask is not None:
            seen = maps.query_row(mask.allowed(grid)[0].float(), grid, query)
            rows = rows.masked_fill(seen == 0, torch.nan)
        return drawing.draw_maps(
            rows.double().cpu().numpy(), title=self._title(), below=f"{maps.measure(self, q)}; query {query} of {grid}",
            colours="signed" if maps.has_sign(self, q) else "rising", query=query,
        )  # fmt: skip

    @torch.no_grad()
    def _repr_html_(self) -> str:
        """Its name, its size, and what the query in the middle meets."""
        from locant import maps
        from locant.page.notebook import cell, maps_html

        learned = sum(p.numel() for p in self.parameters())
        sentences = [f"acts on {ACTS_ON[self.entrance]}; {learned:,} learned numbers"]
        found = maps.example(self)
        if found is None:
            return cell(self._title(), [*sentences, "Too large to draw by itself: draw(grid) draws a part."])
        grid, rows = found
        sentences.append(f"seen from the middle of {grid}")
        shown = maps_html(
            rows.double().cpu().numpy(), kind=maps.measure(self), signed=maps.has_sign(self), query=maps.middle(grid)
        )
        return cell(self._title(), sentences, shown)

    def _title(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Embedding(Position):
    """Acts on tokens, or on q and k in every layer (never on v): a vector per token, added."""

    entrance = "embed"

    @abstractmethod
    def forward(self, grid: Grid, mask: Mask | None = None) -> Float[Tensor, "*batch tokens dim"]:
        """The vectors of the tokens of `grid`, prefix rows included, in the embedding's own dtype."""


class Rotation(Position):
    """Acts on q and k: turns pairs of channels by angles that depend on the token's coordinates."""

    entrance = "rotate"
    head_dim: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch heads tokens head_dim"], grid: Grid
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """`x` (queries or keys on `grid`), rotated. Prefix tokens are left as they are."""


class Bias(Position):
    """Acts on logits: a number per head and offset, added after scaling and not scaled itself.

    A scheme is its `at`; what it cannot answer it says in `check`. The rest is made of these two.
    """

    entrance = "bias"
    heads: int

    @abstractmethod
    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        """The bias of pairs at these offsets, query - key along each axis, within the reach that `check` allows."""

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """Raises ValueError if it has no bias for offsets of up to `reach` on such a grid, under such a mask."""

    def prefix_rows(self) -> PrefixRows | None:
        """What is added between tokens without a place and the others; None is 0."""
        return None

    def within(self, reach: tuple[int, ...], device: torch.device | None = None) -> Float[Tensor, "heads *offsets"]:
        """The bias at every offset of up to `reach`, by default on its own device; a table hands out its centre."""
        if device is None:
            device = next((x.device for x in (*self.parameters(), *self.buffers())), None)
        return self.at(every_offset(reach, device))

    def form(self, grid: Grid, key_grid: Grid, mask: Mask | None) -> OffsetTable:
        """The static description on these grids, or a ValueError."""
        structure = Structure.of(mask)
        needed = reach(grid, key_grid, structure.windows)
        self.check(grid, needed, structure)
        return OffsetTable(self.heads, needed, self.prefix_rows() is not None)

    def values(self, form: OffsetTable, device: torch.device | None = None) -> OffsetValues:
        """The tensors of `form`."""
        return OffsetValues(self.within(form.reach, device), *(self.prefix_rows() or ()))

    def forward(
        self, grid: Grid, key_grid: Grid | None = None, mask: Mask | None = None
    ) -> Float[Tensor, "heads queries keys"]:
        """The bias, dense: for looking at it. Attention never calls this."""
        _check_places(type(self).__name__, grid, key_grid, mask)
        key_grid = grid if key_grid is None else key_grid
        return self.values(self.form(grid, key_grid, mask)).dense(grid, key_grid)


class Content(Position):
    """Acts on logits through q: terms per query and offset, axis by axis, which are added after scaling.

    It meets q as it was projected, before any rotation.
    """

    entrance = "content"
    heads: int
    head_dim: int

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """Raises ValueError if it has no terms for offsets of up to `reach` on such a grid, under such a mask."""

    def ranges(self, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Of the offsets up to `reach`, the (lowest, highest) that are told apart along each axis."""
        return tuple((-furthest, furthest) for furthest in reach)

    def form(self, grid: Grid, key_grid: Grid, mask: Mask | None) -> AxialVectors:
        """The static description on these grids, or a ValueError."""
        structure = Structure.of(mask)
        needed = reach(grid, key_grid, structure.windows)
        self.check(grid, needed, structure)
        return AxialVectors(self.heads, self.ranges(needed))

    @abstractmethod
    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        """What the queries meet, for the offsets of `form.ranges`: `form` may ask for fewer than `ranges` says.

        Whether `scale` is the `factor` of it is the scheme's to say.
        """

    def queries(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """What meets the keys in the product q kᵀ: q, unless a scheme adds something to it."""
        return q

    def forward(
        self,
        q: Float[Tensor, "batch heads queries head_dim"],
        grid: Grid,
        key_grid: Grid | None = None,
        mask: Mask | None = None,
        *,
        scale: float = 1.0,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """What these queries have added to their logits, dense: for looking at it. Attention never calls this."""
        name = type(self).__name__
        _check_places(name, grid, key_grid, mask)
        check_tensor(name, "q", q, "queries [batch, heads, tokens, head_dim]")
        check_number(name, "scale", scale)
        if q.ndim != 4 or q.shape[1] != self.heads or q.shape[3] != self.head_dim or not q.is_floating_point():
            raise ValueError(
                f"{name} needs `q` [batch, {self.heads}, {grid.tokens}, {self.head_dim}] on {grid}; "
                f"got {description(q)}. Project to these heads."
            )
        key_grid = grid if key_grid is None else key_grid
        return self.values(self.form(grid, key_grid, mask), q, scale).dense(grid, key_grid)


class Gate(Position):
    """Acts on probabilities: a map from position alone, mixed with the content map by a gate per head."""

    entrance = "gate"
    heads: int

    def check(self, grid: Grid) -> None:
        """Raises ValueError if it has no map on such a grid."""

    @abstractmethod
    def values(self, grid: Grid, key_grid: Grid) -> SeparableValues:
        """The logits per axis on these grids, and the share of position per head."""


def _check_places(owner: str, grid: Grid, key_grid: Grid | None, mask: Mask | None) -> None:
    check_grid(owner, "grid", grid)
    check_grid(owner, "key_grid", key_grid, needed=False)
    check_mask(owner, "mask", mask)
