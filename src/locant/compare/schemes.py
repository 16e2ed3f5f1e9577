"""The schemes that are compared, by name: what each puts on the tokens, and how its layers attend.

Every scheme builds the same small transformer; most differ only in where position enters. A layer attends in one or
more passes, each a (reach, position) pair: "joint" sees all tokens, "space" the tokens of its own frame, "time" the
tokens at its own place in all frames (AIM's two passes share one attention), `Windows` those of its own window. Four
schemes are whole designs, whose layers differ as well; `beside` says in what. Schemes of locant.positions say
themselves how they are compared.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

from locant import positions
from locant.grid import Grid
from locant.masks import Windows
from locant.positions.gate import GatedPosition
from locant.positions.learned import Learned
from locant.positions.masked_sine import MaskedSine
from locant.positions.position import Embedding, Position
from locant.positions.rotary import Rotary
from locant.positions.sinusoid import Sinusoid
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from locant.tasks.kind import Kind
from locant.tasks.kinds import KINDS

Reach = Literal["joint", "space", "time"] | Windows
Pass = tuple[Reach, Position | None]
WINDOW = 7  # tokens a side of the largest window, as Swin has it


@dataclass(frozen=True)
class LayerSpec:
    """What a scheme may depend on when it is built; `layer` counts from 0. `start` is how wide what it learns starts,
    None the published value."""

    grid: Grid
    dim: int
    heads: int
    layer: int = 0
    depth: int = 1
    start: float | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def start_among(self, starts: tuple[float, ...]) -> float:
        """Its start, or the published one, which is the first of `starts`."""
        return starts[0] if self.start is None else self.start

    def only(self, *axes: int) -> Grid:
        """The grid with every other axis shrunk to 1."""
        sizes = (size if axis in axes else 1 for axis, size in enumerate(self.grid.shape))
        return Grid(*sizes, prefix=self.grid.prefix)


def _no_embedding(shape: LayerSpec) -> tuple[Embedding, ...]:
    return ()


def _plain_pass(shape: LayerSpec) -> tuple[Pass, ...]:
    return (("joint", None),)


@dataclass(frozen=True)
class Scheme:
    """One way to tell a transformer where its tokens are.

    `axes` says for how many axes of the grid it is made: 1 on sequences, 2 on images, 3 on clips. `direction` says
    whether it can tell left from right (and, where it knows time, past from future) by position; `time`, on clips,
    whether it knows the order of frames at all. `starts` says how wide what it learns may start, as
    published first; () where that is not to be chosen. What differs besides position stands in `beside`, in words, and
    is built where these say so: `adapted`, AIM's adapters; `local`, values that start as the tokens wherever a gate
    is; `ordered`, a `TemporalModel` between the layers and the mean.
    """

    name: str
    label: str
    sentence: str
    axes: tuple[int, ...]
    tokens: Callable[[LayerSpec], tuple[Embedding, ...]] = _no_embedding
    passes: Callable[[LayerSpec], tuple[Pass, ...]] = _plain_pass
    direction: bool = True
    time: bool = True
    starts: tuple[float, ...] = ()
    beside: str = ""
    adapted: bool = False
    local: bool = False
    ordered: bool = False

    def fits(self, kind: Kind) -> bool:
        """Whether it can be built for tasks of this kind."""
        return len(kind.axes) in self.axes

    @property
    def adds_to_tokens(self) -> bool:
        return self.tokens is not _no_embedding

    @property
    def acts_in_layers(self) -> bool:
        """Whether some layer attends otherwise than torch does."""
        return self.passes is not _plain_pass


def mask_of(reach: Reach, grid: Grid) -> Windows | None:
    """Who sees whom in a pass: a statement about coordinates on any grid."""
    if reach == "joint":
        return None
    if isinstance(reach, Windows):
        return reach
    frame = grid.shape[1:]
    return Windows((1, *frame)) if reach == "space" else Windows((grid.shape[0], *(1 for _ in frame)))


def _starts(position: type[Position]) -> tuple[float, ...]:
    return position.compared.starts if position.compared else ()


TABLE, VECTORS = _starts(RelativeTable), _starts(Learned)


def _table(grid: Grid, shape: LayerSpec) -> Position:
    return RelativeTable(grid, shape.heads, init_std=shape.start_among(TABLE))


def _vectors(shape: LayerSpec, *axes: int) -> Learned:
    return Learned(shape.grid, shape.dim, axes=axes or None, init_std=shape.start_among(VECTORS))


def _shared_weights(shape: LayerSpec) -> tuple[Pass, ...]:
    time, space = shape.only(0), shape.only(1, 2)
    return ("time", _table(time, shape)), ("space", _table(space, shape))


def _space(shape: LayerSpec) -> tuple[Pass, ...]:
    return (("space", _table(shape.only(1, 2), shape)),)


def _windows(shape: LayerSpec) -> tuple[Pass, ...]:
    """Windows of half a side, 2 to Swin's 7 tokens; every second layer moves them by half of that."""
    size = tuple(min(side, max(2, -(-side // 2)), WINDOW) for side in shape.grid.shape)
    odd = shape.layer % 2 == 1
    shift = tuple(n // 2 if odd and n < side else 0 for n, side in zip(size, shape.grid.shape, strict=True))
    return ((Windows(size, shift), _table(Grid(*size, prefix=shape.grid.prefix), shape)),)


def _gated_first(shape: LayerSpec) -> tuple[Pass, ...]:
    """A gate in all layers but the last sixth, as ten of ConViT's twelve; at least one is plain, at least one gated."""
    gated = max(1, shape.depth - max(1, shape.depth // 6))
    return (("joint", GatedPosition(shape.heads, axes=shape.grid.axes) if shape.layer < gated else None),)


def alone(position: type[Position]) -> Scheme:
    """A position scheme by itself, on all tokens at once, as it says that it is to be compared."""
    own = position.compared
    assert own is not None, f"{position.__name__} does not say how it is compared"

    def build(shape: LayerSpec) -> Position:
        return own.build(shape.grid, shape.dim, shape.heads, *([shape.start_among(own.starts)] if own.starts else []))

    made = Scheme(own.name, own.label, own.sentence, own.axes, direction=own.direction, starts=own.starts)
    if issubclass(position, Embedding):
        return replace(made, tokens=lambda shape: (cast(Embedding, build(shape)),))
    return replace(made, passes=lambda shape: (("joint", build(shape)),))


def others(listed: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    """The schemes of locant.positions that say how they are compared and are not listed yet, file by file."""
    names = {scheme.name for scheme in listed}
    found = []
    for file in pkgutil.iter_modules(positions.__path__):
        module = importlib.import_module(f"{positions.__name__}.{file.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Position) and value.__module__ == module.__name__
            if own and value.compared is not None and value.compared.name not in names:
                found.append(alone(value))
    return tuple(found)


PLANE, CLIP = (2,), (3,)  # axes of the grid
LISTED: tuple[Scheme, ...] = (
    Scheme("none", "no position", "nothing says where a token is", (1, 2, 3), direction=False, time=False),
    alone(Learned),
    Scheme(
        "space", "space only", "a learned vector per place of the frame, the same in every frame", CLIP,
        tokens=lambda s: (_vectors(s, 1, 2),), time=False, starts=VECTORS,
    ),
    Scheme(
        "time", "learned space + time", "a learned vector per place and one per frame, both added to the tokens",
        CLIP, tokens=lambda s: (_vectors(s, 1, 2), _vectors(s, 0)), starts=VECTORS,
    ),
    alone(Sinusoid),
    alone(MaskedSine),
    alone(RelativeTable),
    Scheme(
        "shared", "shared weights, two tables", "one attention over time, then over space, each with its table (AIM)",
        CLIP, passes=_shared_weights, starts=TABLE,
    ),
    alone(ALiBi),
    alone(Rotary),
    alone(GatedPosition),
    Scheme(
        "swin", "Swin", "windows with a table of offsets, moved by half in every second layer", PLANE,
        passes=_windows, starts=TABLE,
        beside="a token attends to its window alone, and windows meet only through the moved layers and the mean. "
        "There are no stages: the grid keeps its size, and windows are half a side, at most 7 tokens",
    ),
    Scheme(
        "convit", "ConViT", "gated layers that start local, then plain ones; a learned vector per place",
        PLANE, tokens=lambda s: (_vectors(s),), passes=_gated_first, local=True, starts=VECTORS,
        beside="values of gated layers start as the tokens themselves, and the last layers have no gate. The mean over "
        "tokens stands for the class token that joins late",
    ),
    Scheme(
        "aim", "AIM", "one attention over time, then over space, each with its table, and adapters", CLIP,
        passes=_shared_weights, adapted=True, starts=TABLE,
        beside="each layer attends twice, and has adapters behind both passes and beside the perceptron. There is no "
        "image model to freeze: all weights learn, and adapters start as other weights do",
    ),
    Scheme(
        "temporal", "TemporalModel", "a table inside frames, then causal convolutions: time by order alone (FIERY)",
        CLIP, passes=_space, ordered=True, starts=TABLE,
        beside="tokens never attend to another frame. Behind the layers convolutions, over half of the channels at "
        "first, read up to three frames and their 3 × 3 neighbours; the mean is over the frames that have as many "
        "before them. The convolutions know places as well, and are not counted as parameters on position",
    ),
)  # fmt: skip
SCHEMES = (*LISTED, *others(LISTED))


def find(kind: str, names: tuple[str, ...]) -> tuple[Scheme, ...]:
    """The schemes of these names that fit the task, in the order asked for."""
    there = {scheme.name: scheme for scheme in SCHEMES if scheme.fits(KINDS[kind])}
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(
            f"positions for {kind} must be among {', '.join(there)}; got {', '.join(unknown)}. "
            "Name some of these, or leave --positions out."
        )
    return tuple(there[name] for name in dict.fromkeys(names))
