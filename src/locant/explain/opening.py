"""What is explained: a scheme, a module, or a model by its name, with where its weights are from.

relative:14x14    a scheme of `locant compare` on a grid    timm:NAME  torchvision:NAME  locant:NAME  hf:FOLDER
runs/mine         the best model of a comparison             swin.safetensors    a file that `locant convert` wrote
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant.call import by_entrance
from locant.checkpoints import contents
from locant.compare.schemes import SCHEMES, LayerSpec, mask_of
from locant.explain.recording import Seen
from locant.grid import Grid
from locant.integrations import named
from locant.masks import Mask
from locant.positions.position import Embedding, Position
from locant.positions.table import RelativeTable

HEADS, HEAD_DIM = 8, 64  # of a scheme whose file does not say


@dataclass(frozen=True)
class Opened:
    """What is explained.

    Attributes:
        title: its name.
        weights: the page's first sentence.
        model: in evaluation mode; None for a scheme alone.
        inputs: tensors that it runs on.
        layers: of a scheme alone.
        embeddings: of a scheme alone: on which grid.
        mean, std: of its pictures' channels, in 0 to 1.
        channels: the axis of an example that holds its channels.
        folder: of a tokenizer.
    """

    title: str
    weights: str
    model: nn.Module | None = None
    inputs: tuple[Tensor, ...] = ()
    layers: tuple[Seen, ...] = ()
    embeddings: tuple[tuple[Embedding, Grid], ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 0
    folder: Path | None = None


def open_(
    what: str | Path | nn.Module, *, weights: Path | None = None, size: int | tuple[int, ...] | None = None,
    inputs: tuple[Tensor, ...] = (),
) -> Opened:  # fmt: skip
    """What was named, ready to be looked at.

    Raises:
        ValueError: for what there is not, and weights that do not fit.
    """
    if isinstance(what, Position):
        return _scheme(type(what).__name__, what, "These are the numbers that the scheme holds now.")
    if isinstance(what, nn.Module):
        return Opened(type(what).__name__, "These are the weights that the model holds now.", what, inputs)
    if not isinstance(what, str | Path):
        raise ValueError(
            f"explain needs a scheme, a model or a name of one; got {type(what).__name__}. Write timm:NAME, hf:FOLDER, "
            "locant:NAME, relative:14x14 or the folder of a comparison."
        )
    name = str(what)
    library, colon, rest = name.partition(":")
    schemes = {scheme.name for scheme in SCHEMES}
    if colon and library in named.LIBRARIES:
        return _open_named(name, library, rest, weights, size)
    if colon and library in schemes:
        return _open_scheme(library, rest, weights)
    path = Path(name)
    if path.is_dir() and (path / "results.json").is_file():
        return _open_compared(path)
    if path.is_file():
        return _open_compared(path) if path.name.startswith("best-") else _open_saved(path, size)
    raise ValueError(
        f"MODEL needs {', '.join(f'{x}:NAME' for x in named.LIBRARIES)}, a scheme such as relative:14x14, the folder "
        f"of a comparison, or a file that locant convert wrote; got {name!r}. Schemes are {', '.join(sorted(schemes))}."
    )


def names_a_model(what: object) -> bool:
    """Whether a word is the name of a model or a scheme, and not an input."""
    if not isinstance(what, str):
        return False
    library, colon, rest = what.partition(":")
    known = library in (*named.LIBRARIES, *(scheme.name for scheme in SCHEMES))
    return (bool(colon) and known and " " not in rest) or (Path(what) / "results.json").is_file()


# --- models -----------------------------------------------------------------------------------------------------------


def _open_named(name: str, library: str, rest: str, weights: Path | None, size: int | tuple[int, ...] | None) -> Opened:
    # 1 the model
    own = library == "locant"
    built = named.build(name, size=size, weights=None if own else weights)
    if own and weights is not None:
        from locant.checkpoints import load

        load(built.model, weights)
    # 2 where its weights are from
    folder = Path(rest) if library == "hf" else None
    there = folder is not None and any(x for end in ("*.safetensors", "*.bin") for x in folder.glob(end))
    said = "The weights are random: what is drawn is where the model starts, not what it learned."
    said = f"The weights are those of {weights.name}." if weights is not None else said
    said = f"The weights are those of the folder {rest}." if there and weights is None else said
    # 3 its pictures' channels
    about: dict[str, Any] = dict(getattr(built.model, "pretrained_cfg", None) or {})
    mean, std = (tuple(about.get(part) or getattr(Opened, part)) for part in ("mean", "std"))
    return Opened(name, said, built.model, built.inputs, mean=mean, std=std, folder=folder)


def _open_compared(folder: Path) -> Opened:
    """The best model of a comparison, from its folder or its file."""
    from locant import compare

    files = sorted(folder.glob("best-*.safetensors"), reverse=True) if folder.is_dir() else [folder]
    if not files:
        raise ValueError(f"{str(folder)!r} holds no best-TASK.safetensors, so no model. Finish the comparison first.")
    file, *others = files
    model, about = compare.load(file)
    item = tuple(about["item"])
    more = f" Name {' or '.join(other.name for other in others)} for another task." if others else ""
    said = f"The weights are those of {file.name}, the best model of the comparison in {file.parent}.{more}"
    first = int(len(item) == 4)  # a clip is [frames, channels, rows, columns]
    return Opened(
        f"{file.parent.name}/{file.stem}", said, model.eval(), (torch.randn(1, *item),), mean=(0.0,), std=(1.0,),
        channels=first,
    )  # fmt: skip


def _open_saved(path: Path, size: int | tuple[int, ...] | None) -> Opened:
    from locant import models

    model: Any = models.from_file(path)
    example = torch.randn(1, *named.example_of(model, size))
    return Opened(path.name, f"The weights are those of {path.name}.", model.eval(), (example,))


# --- schemes ----------------------------------------------------------------------------------------------------------


MOST_TOKENS = 2**20  # more would take all memory, and minutes


def _open_scheme(name: str, sizes: str, weights: Path | None) -> Opened:
    """A scheme on a grid, '14x14', its numbers from a file or as they start."""
    try:
        grid = Grid(*(int(word) for word in sizes.split("x")))
    except ValueError:
        raise ValueError(
            f"a scheme needs sizes of a grid with x between them; got {sizes!r}. Write {name}:14x14, for example."
        ) from None
    if grid.tokens > MOST_TOKENS:
        raise ValueError(
            f"a scheme is drawn on at most {MOST_TOKENS:,} tokens; got {sizes!r}, {grid.tokens:,}. Write {name}:14x14, "
            "for example."
        )
    found = next(scheme for scheme in SCHEMES if scheme.name == name)
    if grid.axes not in found.axes:
        axes = " or ".join(map(str, found.axes))
        raise ValueError(f"{name} is made for grids of {axes} axes; got {sizes!r}. Write as many sizes.")
    tensors = {} if weights is None else contents.read(weights)
    table = _table_in(tensors, grid) if name == "relative" and tensors else None
    heads = HEADS if table is None else len(table)
    torch.manual_seed(0)
    spec = LayerSpec(grid, heads * HEAD_DIM, heads)
    layers, embeddings = [], tuple((embedding, grid) for embedding in found.tokens(spec))
    said = "The numbers are random or fixed: what is drawn is how the scheme starts."
    for reach, position in found.passes(spec):
        if position is not None and tensors and weights is not None:
            _fill(position, tensors, table, weights)
            said = f"The numbers are those of {weights.name}."
        layers.append(_seen(name, position, grid, mask_of(reach, grid)))
    for embedding, _ in embeddings:
        if tensors and weights is not None:
            _fill(embedding, tensors, None, weights)
            said = f"The numbers are those of {weights.name}."
    return Opened(f"{name}:{sizes}", said, layers=tuple(layers), embeddings=embeddings)


def _table_in(tensors: dict[str, Tensor], grid: Grid) -> Tensor:
    """The table of a file: [heads, 2H-1, 2W-1], or flat as published, [(2H-1)(2W-1), heads]."""
    sizes = tuple(2 * n - 1 for n in grid.shape)
    cells = torch.Size(sizes).numel()
    for name, x in tensors.items():
        if tuple(x.shape[1:]) == sizes:
            return x
        if x.ndim == 2 and len(x) == cells and "table" in name:
            return x.T.reshape(-1, *sizes)
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in list(tensors.items())[:4])
    raise ValueError(
        f"--weights needs a table [heads, {', '.join(map(str, sizes))}] or [{cells}, heads] for this grid; the "
        f"file has {shapes}. Name the grid of the table, such as relative:7x7."
    )


def _fill(position: Position, tensors: dict[str, Tensor], table: Tensor | None, path: Path) -> None:
    if isinstance(position, RelativeTable) and table is not None:
        with torch.no_grad():
            position.table.copy_(table)
        return
    own = position.state_dict()
    wrong = [name for name, x in own.items() if name not in tensors or tensors[name].shape != x.shape]
    if wrong:
        need = ", ".join(f"{name} {list(x.shape)}" for name, x in own.items())
        raise ValueError(
            f"--weights needs a file with {need}; {path.name} has no such {', '.join(wrong)}. Name its own."
        )
    position.load_state_dict({name: tensors[name] for name in own})


def _scheme(name: str, position: Position, said: str) -> Opened:
    grid = getattr(position, "grid", None)
    grid = grid if isinstance(grid, Grid) else Grid(*(14,) * getattr(position, "axes", 2))
    if isinstance(position, Embedding):
        return Opened(name, said, embeddings=((position, grid),))
    return Opened(name, said, layers=(_seen(name, position, grid, None),))


def _seen(name: str, position: Position | None, grid: Grid, mask: Mask | None) -> Seen:
    heads, dim = getattr(position, "heads", HEADS), getattr(position, "head_dim", HEAD_DIM)
    bound = None if mask is None else mask.bound(grid, grid)
    return Seen(name, by_entrance(position), bound, grid, grid, heads, dim, dim**-0.5, 1)
