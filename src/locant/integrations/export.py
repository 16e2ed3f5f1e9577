"""`locant export NAME OUT`: a named model as an ONNX file that is whole and was tried, or not there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant import models
from locant.dispatch import tree_leaves
from locant.integrations import named
from locant.integrations.named import library
from locant.integrations.trying import allowed_error, difference, first_line
from locant.registry import CLASSES

BATCHES = (1, 3)  # on which a file with an open batch is tried; another one is exported on
STEP, LARGEST = 32, 4096  # pixels: what pyramids of four scales divide a side by, and the largest side of a range
DRAWN = 1e-3  # of the largest number: a float32 model that is further off itself in float64 draws at each call


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its numbers in onnxruntime are from the model's.

    Attributes:
        path: of the file.
        inputs: name and shape of each, a symbol for a size that is open.
        errors: by the shape of the input that it was tried on: the largest error against float64, the model's own, and
            the largest number there.
        sizes: which pixels an open file takes, or why it takes one size; else empty.
    """

    path: Path
    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    errors: dict[tuple[int, ...], tuple[float, float, float]]
    sizes: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the file's numbers are no rounding of the model's."""
        return not all(
            own <= DRAWN * size and error <= allowed_error(own, size, torch.float32)
            for error, own, size in self.errors.values()
        )

    def __str__(self) -> str:
        lines = [f"input {name}: {' × '.join(map(str, shape))}" for name, shape in self.inputs]
        lines += [self.sizes] if self.sizes else []
        for shape, (error, own, size) in self.errors.items():
            where = f"onnxruntime on {' × '.join(map(str, shape))}"
            lines.append(f"{where}: largest error {error:.1e}, the model's own {own:.1e}, of numbers up to {size:.2g}")
        return "\n".join([*lines, f"{'Not written, as it is wrong' if self.wrong else 'Written'}: {self.path}"])


def export(
    name: str, out: str | Path, *, image_size: int | tuple[int, ...] | None = None, weights: Path | None = None,
    dynamic: bool = False,
) -> Exported:  # fmt: skip
    """Write a named model as ONNX, run it in onnxruntime, and compare.

    Args:
        name: a model of locant (`swin_tiny`), LIBRARY:NAME as `named.build` takes it, or a .safetensors file that
            `locant convert` wrote.
        out: the file, ending in .onnx. It is written only if its numbers are right.
        image_size: pixels of a side, (rows, columns) or (frames, rows, columns); None is the model's own.
        weights: a file of a state dict; None: random weights, or the converted file's.
        dynamic: whether the batch is left open, and the pixels too where the model takes other sizes.

    Raises:
        ValueError: for another ending, a missing runtime, and what `named.build` refuses.
    """
    # 1 what is wanted, and whether it can be tried
    path = Path(out)
    if path.suffix != ".onnx" or not path.parent.is_dir():
        raise ValueError(
            f"OUT needs a file ending in .onnx, in a folder that exists; got {path}. Name one: model.onnx."
        )
    library("onnxscript")
    runtime: Any = library("onnxruntime")
    model, shape = _model(name, image_size, weights)
    # 2 exported, batch 1 where it is closed: the usual case
    opened = _open(model, shape) if dynamic else Opened(None, (1, *shape), ((1, *shape),))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        there = write_onnx(model, (torch.randn(opened.traced),), Path(folder) / path.name, opened.shapes)
        # 3 tried, then put where it belongs
        session = runtime.InferenceSession(str(there), providers=["CPUExecutionProvider"])
        errors = dict(_try(model, session, tried) for tried in opened.tried)
        slots = tuple((slot.name, tuple(slot.shape)) for slot in session.get_inputs())
        found = Exported(path, slots, errors, opened.sizes)
        if not found.wrong:
            for part in Path(folder).iterdir():  # weights of more than 2 GB lie beside it
                part.replace(path.parent / part.name)
    return found


@dataclass(frozen=True)
class Opened:
    """What is open (`dynamic_shapes` of torch), the shape that is traced, those that the file is tried on, and a
    sentence on pixels."""

    shapes: tuple[dict[int, Any], ...] | None
    traced: tuple[int, ...]
    tried: tuple[tuple[int, ...], ...]
    sizes: str = ""


def _open(model: nn.Module, shape: Sequence[int]) -> Opened:
    """The batch; and pixels, where the model takes other sizes and torch can leave them open, its own among them: all,
    or from its own on, where windows ask for more than one per side. Else the reason."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    closed = Opened(({0: batch},), (2, *shape), tuple((n, *shape) for n in BATCHES))
    if len(shape) < 3:
        return closed
    *lead, rows, columns = shape
    if any(side % STEP or not 2 * STEP <= side <= LARGEST // 2 - STEP for side in (rows, columns)):
        fit = f"open ones are multiples of {STEP} from {2 * STEP} to {LARGEST // 2 - STEP}"
        return replace(closed, sizes=f"pixels: {rows} × {columns} alone ({fit})")
    larger = (*lead, 2 * rows, 2 * columns + STEP)
    reason = refused = _reason(model, torch.randn(1, *larger))
    # torch takes a symbol for 2 or more, whatever it is told: a range from one step on would be wrong at that step
    for least in ((2, 2), (rows // STEP, columns // STEP)) if not refused else ():
        row, column = (
            STEP * torch.export.Dim(name, min=low, max=LARGEST // STEP)
            for name, low in zip(("rows", "columns"), least, strict=True)
        )
        shapes = ({0: batch, len(shape) - 1: row, len(shape): column},)
        reason = _reason(torch.export.export, model, (torch.randn(2, *larger),), dynamic_shapes=shapes)
        if not reason:
            first = (*lead, *(STEP * low for low in least))
            sides = " × ".join(f"{STEP * low} to {LARGEST}" for low in least)
            sizes = f"pixels: {sides}, in steps of {STEP}"
            return Opened(shapes, (2, *larger), ((BATCHES[0], *first), (BATCHES[1], *larger)), sizes)
    advice = "" if refused else "; a larger --image-size has more windows than one per side, and may leave them open"
    return replace(closed, sizes=f"pixels: {rows} × {columns} alone ({reason}{advice})")


def _reason(call: Callable[..., object], *given: object, **named: object) -> str:
    """The first line of what the call raised; empty where it worked."""
    try:
        with torch.no_grad():
            call(*given, **named)
    except Exception as error:  # any library's
        return first_line(error)
    return ""


def _model(name: str, size: int | tuple[int, ...] | None, weights: Path | None) -> tuple[nn.Module, Sequence[int]]:
    """The model in evaluation mode, and the shape of one example."""
    if name.endswith(".safetensors"):
        if size is not None or weights is not None:
            raise ValueError(
                f"{name} says its model, size and weights itself; --image-size or --weights came as well. Leave them "
                "out, or convert it to the other size first: locant convert."
            )
        model = models.from_file(name).eval()
        return model, named.example_of(model)
    if ":" not in name and name in models.__all__ and name not in CLASSES:
        name = f"locant:{name}"
    found = named.build(name, size=size, weights=weights)
    if not found.inputs[0].is_floating_point():
        raise ValueError(
            f"MODEL needs one that takes pictures, clips or sounds; {name} takes words. Export it in Python: "
            "torch.onnx.export(model, inputs, dynamo=True)."
        )
    return found.model, found.inputs[0].shape[1:]


def _try(model: nn.Module, session: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    """On random input of this shape: the errors of onnxruntime and of the model against float64, and the largest
    number."""
    x = torch.randn(shape)

    def numbers(model: nn.Module, x: Tensor) -> list[Tensor]:
        return [y for y in tree_leaves(model(x)) if isinstance(y, Tensor) and y.numel()]

    with torch.no_grad():
        own, exact = numbers(model, x), numbers(copy.deepcopy(model).double(), x.double())
    found = [torch.from_numpy(y) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()}) if y.size]
    (error, size), (own_error, _) = difference(exact, found), difference(exact, own)
    return shape, (error, own_error, size)


def write_onnx(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic_shapes: tuple[dict[int, Any], ...] | None = None
) -> Path:
    """The path, to which a copy of the model in evaluation mode is written in standard operators."""
    model = copy.deepcopy(model)
    model.eval()
    with torch.no_grad():
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes)
    assert program is not None, "dynamo=True gives a program"
    program.save(str(path))
    return path
