"""What a model attends with, layer by layer, read while it runs: a hook (locant.hooks) that proceeds and looks.

The kernels run as they always do, so outputs keep their bits. Of q and k the rows that were asked for are read at once,
so that nothing of a layer is kept but these rows. In a traced graph no hook is called, so a compiled model is refused.
"""

from __future__ import annotations

import inspect
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant import hooks
from locant.call import Call, Schemes
from locant.dispatch import is_compiled
from locant.explain.data import Row
from locant.explain.measures import split
from locant.explain.scores import Block, Reader
from locant.grid import Grid
from locant.kernels.kernel import Output
from locant.masks import Mask

Where = tuple[float, ...]
MOST_PAIRS = 2**24  # of a rollout, over all layers: 64 MB


@dataclass
class Seen:
    """One call of attention.

    Attributes:
        name: of the module that made it.
        schemes, mask, grid, key_grid, heads, head_dim: what it attends with; the grid of the map, where windows were
            cut from one, and then `regrouped`.
        scale: of the content logits.
        reached: the grids whose offsets schemes are asked for: of a window, where it was cut from a map.
        rows, measures: of each query that was asked for; measures [5, heads] as `split` has them.
        blocks: (queries, keys, mean over heads [queries, keys]) of all queries, for a rollout.
        said: why something is missing.
        added: how position came before attention, "embed" or "rotate", and was told by a run without places.
    """

    name: str
    schemes: Schemes
    mask: Mask | None
    grid: Grid
    key_grid: Grid
    heads: int
    head_dim: int
    scale: float | Tensor
    batch: int
    regrouped: bool = False
    reached: tuple[Grid, Grid] | None = None
    rows: list[Row] = field(default_factory=list)
    measures: list[Float[np.ndarray, "5 heads"]] = field(default_factory=list)
    blocks: list[tuple[Tensor, Tensor, Float[Tensor, "queries keys"]]] | None = None
    said: list[str] = field(default_factory=list)
    added: str = ""


class Recorder:
    """Reads every attention that runs while it is `recording`.

    Args:
        model: whose modules give the layers their names.
        queries: places as fractions of each axis; () is the first token of the prefix.
        place: the grid of tokens that a layer without a scheme calls a sequence: (sizes, prefix), or None.
        rollout: whether blocks of all queries are kept, up to MOST_PAIRS numbers.
        idle: run no kernel: calls give zeros. For weights alone.
        alike: what a recorder has read of the same model without places (levelled.py): content, where no scheme acts.
        without: how places come into the model that runs without them: "embed", added, or "rotate".

    `contents` holds the logits by content of every query, layer by layer; for another recorder's `alike`.
    """

    def __init__(
        self, model: nn.Module, queries: Sequence[Where] = (), place: tuple[tuple[int, ...], int] | None = None,
        *, rollout: bool = False, idle: bool = False, alike: Recorder | None = None,
        without: str = "embed",
    ) -> None:  # fmt: skip
        self.names = {id(module): name for name, module in model.named_modules() if name}
        self.queries, self.place, self.idle = tuple(queries), place, idle
        self.rollout, self.pairs, self.alike, self.without = rollout, 0, alike, without
        self.contents: list[list[Tensor]] = []
        self.seen: list[Seen] = []
        _refuse_compiled(model)

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """While this lasts, in this context alone."""
        with hooks.attending(self._hook):
            yield self

    def _hook(self, call: Call, proceed: Callable[[], Output]) -> Output:
        if self.idle:
            q, p = call.q, call.problem
            out: Output = q.new_zeros(p.batch, p.heads, p.queries, p.value_dim, dtype=call.v.dtype), None
            out = (out[0], q.new_zeros(out[0].shape[:3])) if p.lse else out
        else:
            out = proceed()
        with torch.no_grad():
            self.seen.append(self._read(call, self._caller()))
        return out

    def _caller(self) -> str:
        """The innermost module of the model on the stack."""
        frame = inspect.currentframe()
        while frame is not None:
            name = self.names.get(_first_local(frame))
            if name is not None:
                return name
            frame = frame.f_back
        return ""

    def _read(self, call: Call, name: str) -> Seen:
        # 1 what it is, on the grid that it stands for
        call, layer = self._placed(call), len(self.contents)
        self.contents.append([])
        p, cut = call.problem, hooks.current_regrouping()
        seen = Seen(
            name, call.schemes, call.mask, p.grid, p.key_grid, p.heads, p.head_dim, call.scale, p.batch,
            cut is not None,
        )  # fmt: skip
        if cut is not None:
            return self._windowed(call, seen, cut)
        # 2 the rows
        readers: dict[int, Reader] = {}
        for where in self.queries:
            sample, place = self._sample(where, p.grid, p.batch) if where else (0, ())
            reader, token = readers.setdefault(sample, Reader(call, sample)), token_at(place, p.grid)
            block = self._split(reader.row(token), layer, seen)
            seen.measures.append(split(block, p.grid, p.key_grid))
            seen.rows.append(_row(block, block.keys - p.key_grid.prefix, p.grid, p.key_grid, token - p.grid.prefix))
        if self.queries and p.batch > 1:
            seen.said.append(
                f"{p.batch} groups of tokens attend apart here: drawn is the one of the query, or the first."
            )
        # 3 all of it, block by block
        if self.rollout:
            reader = Reader(call)
            if p.grid == p.key_grid and p.batch == 1 and self._has_room(reader.pairs()):
                means = ((b.queries, b.keys, b.weights().mean(0)) for b in reader.blocks())
                seen.blocks = _pack_blocks(means, reader.pairs())
        return seen

    def _split(self, block: Block, layer: int, seen: Seen) -> Block:
        """A block in which no scheme acts, its content that of the same call without places."""
        if block.position is not None or block.gate is not None:
            return block
        query = len(self.contents[layer])
        self.contents[layer].append(block.content)
        others = [] if self.alike is None else self.alike.contents
        if layer >= len(others) or query >= len(others[layer]) or others[layer][query].shape != block.content.shape:
            return block
        assert self.alike is not None
        seen.added = self.alike.without
        content = others[layer][query]
        return replace(block, content=content, position=block.content - content)

    def _has_room(self, pairs: int) -> bool:
        """Whether so many numbers more may be kept; if not, none of those so far are of use."""
        self.pairs += pairs
        if self.pairs > MOST_PAIRS:
            for layer in self.seen:
                layer.blocks = None
        return self.pairs <= MOST_PAIRS

    def _placed(self, call: Call) -> Call:
        """A sequence without schemes is the picture's tokens: nothing in it depends on where they are."""
        p = call.problem
        if (
            self.place is None
            or tuple(call.schemes)
            or call.mask is not None
            or p.grid.axes > 1
            or p.grid != p.key_grid
        ):
            return call
        sizes, prefix = self.place
        if p.grid.tokens != prefix + math.prod(sizes):
            return call
        grid = Grid(*sizes, prefix=prefix)
        return replace(call, problem=replace(p, grid=grid, key_grid=grid))

    def _sample(self, where: Where, grid: Grid, batch: int) -> tuple[int, Where]:
        """The place on this grid, and which of the batch: where frames stand along it, the query's frame."""
        extra = len(where) - grid.axes
        if extra <= 0:
            return 0, where + (0.0,) * -extra
        return min(int(where[0] * batch), batch - 1), where[extra:]

    def _windowed(self, call: Call, seen: Seen, cut: hooks.Regrouped) -> Seen:
        """Windows that were cut from a map: rows are brought back to it."""
        shape, places = cut.shape, cut.places
        seen.reached = seen.grid, seen.key_grid
        seen.grid = seen.key_grid = Grid(*shape)
        for where in self.queries:
            target = token_at(where, seen.grid)
            window, cell = (int(x) for x in (places == target).nonzero()[0])
            block = self._split(Reader(call, window).row(cell), len(self.contents) - 1, seen)
            seen.measures.append(split(block, call.problem.grid, call.problem.key_grid))
            seen.rows.append(_row(block, places[window][block.keys], seen.grid, seen.grid, target))
        if bool((places < 0).any()):
            seen.said.append(
                "Windows at the border are filled with zeros, which take part; what goes to them is not drawn."
            )
        if self.rollout and self._has_room(places.numel() * places.shape[1]):
            seen.blocks = _pack_blocks(_mapped(call, places), places.numel() * places.shape[1])
        return seen


def _first_local(frame: FrameType) -> int:
    """The identity of a function's first variable, `self` in a method.

    Before Python 3.13 `f_locals` is a copy, which stays with its frame: tensors that the function has let go would live
    until it returns.
    """
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # of a module or a class: its variables themselves
        return 0
    held = frame.f_locals
    found = id(held.get(frame.f_code.co_varnames[0])) if frame.f_code.co_varnames else 0
    if type(held) is dict:
        held.clear()
    return found


def _mapped(call: Call, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for window, where in enumerate(places):
        for block in Reader(call, window).blocks():
            q, k = where[block.queries] >= 0, where[block.keys] >= 0
            yield where[block.queries[q]], where[block.keys[k]], block.weights().mean(0)[q][:, k]


def _pack_blocks(blocks: Iterable[tuple[Tensor, Tensor, Tensor]], pairs: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same in pieces of memory that are made beforehand, for at most so many pairs.

    Thousands of small tensors that stay would lie between the larger ones that each block lets go, and keep the heap
    from using those again: half a gigabyte for 12 million pairs, in some runs.
    """
    kept: Tensor | None = None
    places, shapes, used = array("q"), [], 0
    for queries, keys, weights in blocks:
        kept = weights.new_empty(pairs) if kept is None else kept
        kept[used : used + weights.numel()] = weights.flatten()
        used += weights.numel()
        shapes.append(weights.shape)
        places.extend(queries.tolist())
        places.extend(keys.tolist())
    if kept is None:
        return []
    of = torch.tensor(places, device=kept.device).split([n for shape in shapes for n in shape])
    rows = kept[:used].split([shape.numel() for shape in shapes])
    return [(q, k, w.view(shape)) for q, k, w, shape in zip(of[::2], of[1::2], rows, shapes, strict=True)]


def token_at(where: Where, grid: Grid) -> int:
    """The index of the token at these fractions of the axes, the prefix included in the count."""
    if not where:
        return 0 if grid.prefix else token_at((0.5,) * grid.axes, grid)
    index = 0
    for part, size in zip(where, grid.shape, strict=True):
        index = index * size + min(max(int(part * size), 0), size - 1)
    return grid.prefix + index


def _row(block: Block, places: Int[Tensor, " keys"], grid: Grid, key_grid: Grid, query: int) -> Row:
    """A block of one query as a row: the keys that it sees in the smallest box that holds them."""
    first = int((block.keys < key_grid.prefix).sum()) if grid == key_grid or key_grid.prefix else 0
    parts = [block.weights(), block.by_content(), block.by_position()]
    numbers = [None if x is None else x[:, 0].float().cpu().numpy() for x in parts]
    seen = block.seen.any(0)[0].cpu().numpy()
    # 1 the box
    there = places.cpu().numpy()[first:]
    coordinates = np.stack(np.unravel_index(np.maximum(there, 0), key_grid.shape))
    shown = (there >= 0) & seen[first:]
    low = coordinates[:, shown].min(1) if shown.any() else np.zeros(grid.axes, int)
    high = coordinates[:, shown].max(1) + 1 if shown.any() else np.zeros(grid.axes, int)
    local = tuple(c[shown] - start for c, start in zip(coordinates, low, strict=True))

    def boxed(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        box = np.zeros((len(values), *(high - low)), np.float32)
        box[(slice(None), *local)] = values[:, first:][:, shown]
        return box

    both = boxed(numbers[0])
    assert both is not None
    prefix = np.full((3, len(both), first), np.nan, np.float32)
    for place, values in enumerate(numbers):
        if values is not None:
            prefix[place] = values[:, :first]
    at = () if query < 0 else tuple(int(x) for x in np.unravel_index(query, grid.shape))
    return Row(at, tuple(int(x) for x in low), both, boxed(numbers[1]), boxed(numbers[2]), prefix)


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if is_compiled(module):
            raise ValueError(
                "recording needs a model that Python runs; this one is under torch.compile, whose graph calls no hook. "
                "Pass the model before it is compiled (model._orig_mod)."
            )
