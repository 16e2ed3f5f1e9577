"""What differs between kinds of tasks, as one value: axes, arrays, files, built-in data, shifts, recipe and schemes.

Nothing here and in `kinds.py` imports numpy before it is called: the command line reads defaults from these values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locant.tasks.folders import Listing
    from locant.tasks.stills import Decoded
    from locant.tasks.task import Examples, Shift, Task

Sides = int | tuple[int, ...]
AUGMENTED = ("shift", "brightness", "flip")  # how training examples may be varied (`tasks/augmentation.py`)


@dataclass(frozen=True)
class Recipe:
    """How one task's models are built and trained: the same for every scheme.

    `steps` None and `epochs` None leave the budget to the number of examples (`compare/budget.py`). `starts` is how
    many starts are tried per scheme, 1 the published one alone. `augment` names how training examples are varied; None
    is what the task allows. `patch` None leaves the patch to the kind; `size` and `frames` None leave them to the task.
    `share` is the part of the training examples that each seed draws for itself; 1 is all of them. `model` is a size of
    the built-in transformer, a published design, or a builder of the user's own (`compare/source.py`); so may `recipe`
    (optimiser and schedule) and `metric` be functions of the user's. `weights` is a file that a published design starts
    from, `freeze` whether only its position, last norm and head learn. `autocast` is bfloat16 or off; None is what the
    device has.
    """

    lr: tuple[float, ...]
    batch: int
    dim: int
    depth: int
    heads: int
    steps: int | None = None
    epochs: int | None = None
    starts: int = 2
    augment: tuple[str, ...] | None = None
    patch: Sides | None = None
    size: Sides | None = None
    frames: int | None = None
    share: float = 1.0
    model: str = "small"
    recipe: str | None = None
    metric: str | None = None
    autocast: str | None = None
    weights: str | None = None
    freeze: bool = False

    @staticmethod
    def of(values: dict[str, Any]) -> Recipe:
        """Read back from JSON, which knows no tuples."""
        lists: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Recipe(**lists)


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of one stored example become those of `Examples`: moved, then a channel axis added at `channel`."""

    axes: tuple[int, ...]
    sentence: str
    channel: int | None = None  # where an axis of one channel has to be added

    @staticmethod
    def of_letters(stored: str, kind: Kind) -> AxisOrder:
        """From what each stored axis is, such as "THW", to the order that the kind has them in."""
        axes = tuple(stored.index(letter) for letter in kind.letters if letter in stored)
        missing = "C" not in stored
        grey = "grey " if missing and "W" in stored else ""
        sentence = f"x is read as {grey}{kind.name} [n, {', '.join(stored)}]"
        return AxisOrder(axes, sentence, kind.letters.index("C") if missing else None)

    def shape(self, item: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an example that is stored with the shape `item`."""
        moved = tuple(item[axis] for axis in self.axes)
        return moved if self.channel is None else (*moved[: self.channel], 1, *moved[self.channel :])


@dataclass(frozen=True)
class Files:
    """How the examples of a kind lie in class folders.

    Attributes:
        items: the paths of the examples in one class folder; what can't be one is skipped by name.
        decoder: from (rows, columns), frames and the white of 16 bits to the function that reads one path.
        shape: of an example, from its channels, (rows, columns) and frames.
        videos: whether a path may be a video file, which needs PyAV.
    """

    items: Callable[[Listing, str], Iterator[str]]
    decoder: Callable[[tuple[int, int], int, int], Callable[[str], Decoded]]
    shape: Callable[[int, tuple[int, int], int], tuple[int, ...]]
    videos: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        name: as `--task` takes it, plural.
        axes: the axes of an example along which tokens lie, in the order of the grid.
        channel: its axis of channels.
        recipe, quick: how models are built and trained by default, and under `--quick`.
        schemes, quick_schemes: the names of the schemes that are compared, likewise.
        patch: the patch per grid axis, from the shape of an example and what `--patch` says (None: nothing).
        shifts: data that was not trained for, made of test examples as a model with this patch cuts them.
        question: asked of a user's data; {} is the number of classes.
        shapes: of `x` in an .npz, in words.
        letters: what the axes of an example are: T, C, H, W, or L of a sequence.
        layouts: what the axes of a stored example of this shape may be, in such letters, C left out where it has none;
            the second argument says whether the kind was asked for. Unasked, only what nothing else would explain
            better; more than one is a doubt, none is no array of this kind.
        files: how its examples lie in class folders; None: they come in an .npz alone.
        built_in: the task that needs no data of the user's; None: there is none.
        usual: whether a run without DATA and without `--task` has it.
        timed: whether the first axis is time, whose order a scheme may be blind to.
        augments: the ways to vary training examples that make sense for it.
    """

    name: str
    axes: tuple[int, ...]
    channel: int
    recipe: Recipe
    quick: Recipe
    schemes: tuple[str, ...]
    quick_schemes: tuple[str, ...]
    patch: Callable[[tuple[int, ...], Sides | None], tuple[int, ...]]
    shifts: Callable[[Examples, tuple[int, ...]], tuple[Shift, ...]]
    question: str
    shapes: str
    letters: str
    layouts: Callable[[tuple[int, ...], bool], tuple[str, ...]]
    files: Files | None = None
    built_in: Callable[[Recipe], Task] | None = None
    usual: bool = False
    timed: bool = False
    augments: tuple[str, ...] = ()

    def sizes(self, item: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of an example along the axes of the grid."""
        return tuple(item[axis] for axis in self.axes)
