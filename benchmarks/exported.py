"""Schemes and models × the ways out of Python: docs/export.json, and docs/exported.md, which is made of it.

    python benchmarks/exported.py                 # every cell that docs/export.json lacks: about half an hour
    python benchmarks/exported.py --only Swin     # rows whose name holds a word; --way, --anew: see --help
    python benchmarks/exported.py --page          # the page alone, measuring nothing

A cell holds the largest error against the model in eager torch, as a share of the largest number of the result, or the
sentence of what was raised. Each runs in a process of its own, which may be killed for its time: a converter may end
the process that it runs in. The file is written after each cell; what is there is not measured again.

A row's inputs come in twelve sizes; what differs between them is open. Graphs of torch.compile are counted over them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from redrawing import redraw  # noqa: E402
from small import MODELS  # noqa: E402
from test_onnx import Padded, ignored, numbers  # noqa: E402

import locant  # noqa: E402
from locant import Grid, Windows, models  # noqa: E402
from locant.nn import Attention  # noqa: E402

FOUND, PAGE = ROOT / "docs" / "export.json", ROOT / "docs" / "exported.md"
LIMIT = 300  # seconds of a cell
SIZES = 12
HEADS, HEAD_DIM = 2, 8
DIM = HEADS * HEAD_DIM

Inputs = tuple[Tensor, ...]
Cell = dict[str, Any]


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model, and its inputs for a batch at one of twelve sizes."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]


class Layer(nn.Module):
    """Attention with a scheme, on a grid that is read off its input [batch, *grid, dim]."""

    def __init__(self, position: Any, mask: Any = None, prefix: int = 0) -> None:
        super().__init__()
        self.attention, self.mask, self.prefix = Attention(DIM, HEADS, position=position), mask, prefix

    def forward(self, x: Tensor) -> Tensor:
        grid, x = Grid(*x.shape[1:-1], prefix=self.prefix), x.flatten(1, -2)
        if self.prefix:
            x = torch.cat([x[:, : self.prefix], x], dim=1)
        return self.attention(x, grid=grid, mask=self.mask)


PAIRS = {1: None, 2: None, 3: (1, 1, 2)}  # of Rotary: three axes do not divide its four pairs
LARGEST = {1: (16,), 2: (14, 9), 3: (14, 9, 4)}  # the grid that schemes are built on: the largest of the twelve


def cells(axes: int) -> Callable[[int, int], Inputs]:
    """Tokens on a grid: every size is another one."""
    return lambda batch, i: (torch.randn(batch, *((5 + i,) if axes == 1 else (3 + i, 4 + i // 2, 4)[:axes]), DIM),)


def pictures(step: int, low: int, *lead: int) -> Callable[[int, int], Inputs]:
    return lambda batch, i: (torch.randn(batch, *lead, step * (low + i), step * (low + i // 2)),)


def words(*names: int) -> Callable[[int, int], Inputs]:
    """Sequences of words from vocabularies of these sizes, each of another length."""
    return lambda batch, i: tuple(torch.randint(0, n, (batch, 4 + i + j)) for j, n in enumerate(names))


def features(batch: int, i: int) -> Inputs:
    sides = 3 + i, 4 + i // 2
    return torch.randn(batch, 6, *sides), ignored(batch, *sides)


def translated(batch: int, i: int) -> Inputs:
    source, target = words(7, 9)(batch, i)
    return source, target, ignored(batch, source.shape[1])


def schemes() -> Iterator[tuple[str, Row]]:
    """One layer for each scheme and number of axes."""
    line, plane, clip = (Grid(*LARGEST[axes]) for axes in (1, 2, 3))
    makers: dict[str, tuple[Callable[[Grid], Any], tuple[int, ...]]] = {
        "no position": (lambda grid: None, (2,)),
        "Learned": (lambda grid: locant.Learned(grid, DIM), (1, 2, 3)),
        "LearnedAxial": (lambda grid: locant.LearnedAxial(grid, DIM), (1, 2)),
        "Sinusoid": (lambda grid: locant.Sinusoid(4 * grid.axes * (DIM // (4 * grid.axes))), (1, 2)),
        "MaskedSine": (lambda grid: locant.MaskedSine(DIM), (2,)),
        "Rotary": (lambda grid: locant.Rotary(HEAD_DIM, axes=grid.axes, pairs=PAIRS[grid.axes]), (1, 2, 3)),
        "RelativeTable": (lambda grid: locant.RelativeTable(grid, HEADS), (1, 2, 3)),
        "ALiBi": (lambda grid: locant.ALiBi(HEADS, distance="euclidean"), (1, 2, 3)),
        "T5Buckets": (lambda grid: locant.T5Buckets(HEADS), (1,)),
        "LogCPB": (lambda grid: locant.LogCPB(grid, HEADS, hidden=8), (1, 2, 3)),
        "TransformerXL": (lambda grid: locant.TransformerXL(DIM, HEADS, HEAD_DIM), (1,)),
        "Shaw": (lambda grid: locant.Shaw(HEADS, HEAD_DIM, 4), (1,)),
        "Decomposed": (lambda grid: locant.Decomposed(grid, HEADS, HEAD_DIM), (1, 2, 3)),
        "GatedPosition": (lambda grid: locant.GatedPosition(HEADS, axes=grid.axes), (1, 2, 3)),
    }  # fmt: skip
    for name, (make, several) in makers.items():
        for grid in (line, plane, clip):
            if grid.axes in several:
                yield f"{name}, {grid.axes}-D", Row(lambda make=make, grid=grid: Layer(make(grid)), cells(grid.axes))
    shifted, prefixed = Windows((4, 3), shift=(1, 2)), Grid(*LARGEST[2], prefix=1)
    inside = Row(lambda: Layer(locant.RelativeTable(Grid(4, 3), HEADS), shifted), lambda n, i: cells(2)(n, i + 2))
    yield "RelativeTable, 2-D, shifted windows", inside
    behind = Row(lambda: Layer(locant.RelativeTable(prefixed, HEADS), prefix=1), cells(2))
    yield "RelativeTable, 2-D, a class token", behind


def every_model() -> Iterator[tuple[str, Row]]:
    """The small models of the tests; windows get pictures of more than one per side."""
    windows: dict[str, Any] = {"depths": (2, 1), "heads": (2, 4), "window": 4, "num_classes": 5}
    built: dict[str, Callable[[], nn.Module]] = {
        "AIMSwin": lambda: models.AIMSwin(frames=4, dim=8, **windows),
        "Swin": lambda: models.Swin(dim=8, img_size=64, **windows),
        "SwinV2": lambda: models.SwinV2(dim=8, img_size=64, **windows),
        "BertEmbeddings": lambda: models.BertEmbeddings(11, 8, tokens=16),
        "DETR": lambda: Padded(MODELS["models.detr.DETR"]()),
        "Transformer": lambda: Padded(MODELS["models.transformer.Transformer"]()),
    }
    inputs = {
        "AIMSwin": pictures(8, 5, 3, 4), "AIMViT": pictures(8, 2, 3, 4), "Swin": pictures(8, 5, 3),
        "SwinV2": pictures(8, 5, 3), "SAMEncoder": pictures(8, 6, 3), "Bahdanau": words(7, 9),
        "BertEmbeddings": words(11), "MemTransformerLM": words(11), "DETR": features, "Transformer": translated,
    }  # fmt: skip
    for path, build in MODELS.items():
        package, _, name = path.split(".")
        if package == "models":
            yield name, Row(built.get(name, build), inputs.get(name, pictures(8, 4, 3)))


def rows() -> dict[str, Row]:
    return dict([*schemes(), *every_model()])


def asked_of(name: str) -> list[str]:
    """The ways that a row is tried on: AOTInductor, which compiles for half a minute, on one of a scheme's grids."""
    scheme, *of = name.split(", ")
    first = next(each for each in rows() if each.split(", ")[0] == scheme)
    return [way for way in WAYS if way != "AOTInductor" or name == first or len(of) > 1]


# --- ways -------------------------------------------------------------------------------------------------------------


def error(found: Any, wanted: Any) -> float:
    pairs = zip(numbers(found), numbers(wanted), strict=True)
    return max(float((x - ref).abs().max() / ref.abs().max().clamp(min=1e-30)) for x, ref in pairs)


def one_size(model: nn.Module, row: Row) -> Cell:
    given = row.inputs(2, 0)
    return {"error": error(torch.export.export(model, given).module()(*given), model(*given))}


def symbols(row: Row) -> Any:
    """One for the batch, and one for every size that is not the same in all twelve; equal ones are the same."""
    several, known = [row.inputs(1, i) for i in range(SIZES)], {}
    batch, shapes = torch.export.Dim("batch", min=1, max=64), []
    for tensors in zip(*several, strict=True):
        dims: dict[int, Any] = {0: batch}
        for axis in range(1, tensors[0].ndim):
            sides = tuple(x.shape[axis] for x in tensors)
            if len(set(sides)) > 1:
                step = math.gcd(*sides)
                if sides not in known:
                    name = f"size{len(known)}"
                    known[sides] = step * torch.export.Dim(name, min=min(sides) // step, max=max(sides) // step)
                dims[axis] = known[sides]
        shapes.append(dims)
    return tuple(shapes)


def refusal(model: nn.Module, row: Row) -> str:
    """The sentence of a model that is for one size; empty if it takes all twelve."""
    try:
        for i in range(SIZES):
            model(*row.inputs(1, i))
    except ValueError as raised:
        return sentence(raised)
    return ""


def sentence(raised: Exception) -> str:
    lines = (str(raised).strip() or type(raised).__name__).splitlines()
    return f"{type(raised).__name__}: {lines[0]}"[:400]


def open_sizes(model: nn.Module, row: Row) -> Cell:
    one = refusal(model, row)
    if not one:
        try:
            return {"error": opened(model, row, symbols(row), 5, (0, SIZES - 1, 4))}
        except Exception as raised:  # the batch alone, then
            one = sentence(raised)
    batches = tuple({0: dims[0]} for dims in symbols(row))
    return {"error": opened(model, row, batches, 0, (0, 0, 0)), "over": "batches", "says": one}


def opened(model: nn.Module, row: Row, shapes: Any, traced: int, tried: tuple[int, ...]) -> float:
    """The error of one program on three batches, each of its own size."""
    if isinstance(model, Padded):
        shapes = {"inputs": shapes}
    program = torch.export.export(model, row.inputs(3, traced), dynamic_shapes=shapes).module()
    several = [row.inputs(batch, size) for batch, size in zip((1, 2, 5), tried, strict=True)]
    return max(error(program(*x), model(*x)) for x in several)


def onnxruntime(model: nn.Module, row: Row) -> Cell:
    import onnxruntime

    given = row.inputs(1, 0)
    program = torch.onnx.export(model, given, dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
    return {"error": error([torch.from_numpy(x) for x in found], model(*given))}


def openvino(model: nn.Module, row: Row) -> Cell:
    import openvino as ov

    given = row.inputs(1, 0)
    converted = ov.convert_model(torch.export.export(model, given))
    found = ov.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy() for x in given])
    return {"error": error([torch.from_numpy(found[i]) for i in range(len(found))], model(*given))}


def aotinductor(model: nn.Module, row: Row) -> Cell:
    given = row.inputs(2, 0)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(model, given)
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        return {"error": error(torch._inductor.aoti_load_package(path)(*given), model(*given))}


def compiled(model: nn.Module, row: Row) -> Cell:
    """How many graphs serve twelve sizes; twelve batches, where the model itself takes one size."""
    from torch._dynamo.utils import counters

    with torch.no_grad():
        one = refusal(model, row)
        inputs = [row.inputs(*((2 + i, 0) if one else (2, i))) for i in range(SIZES)]
        wanted = [model(*x) for x in inputs]
        quick = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=64):
            largest = max(error(quick(*x), ref) for x, ref in zip(inputs, wanted, strict=True))
    found = {"error": largest, "graphs": counters["stats"]["unique_graphs"]}
    return {**found, **({"over": "batches", "says": one} if one else {})}


WAYS: dict[str, Callable[[nn.Module, Row], Cell]] = {
    "torch.export": one_size,
    "sizes open": open_sizes,
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
    "AOTInductor": aotinductor,
    "torch.compile": compiled,
}


# --- cells, file and page ---------------------------------------------------------------------------------------------


def cell(row: Row, way: str, told: Connection) -> None:
    """One cell, in this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # exporters tell how far they are
    torch.manual_seed(0)
    try:
        found = WAYS[way](redraw(row.build()).eval(), row)
    except Exception as raised:  # the sentence is the result
        found = {"says": sentence(raised)}
    told.send(found)


def apart(row: Row, way: str) -> Cell:
    """One cell, in a process of its own."""
    asks, tells = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=cell, args=(row, way, tells))
    process.start()
    tells.close()
    try:
        return asks.recv() if asks.poll(LIMIT) else {"says": f"not done in {LIMIT} s"}
    except EOFError:
        process.join()
        return {"says": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def versions() -> dict[str, str]:
    names = ("torch", "onnxruntime", "onnxscript", "openvino")
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: version(name) for name in names}}


INTRODUCTION = """\
# What was exported, and how exact it is

Every scheme, as a layer of `locant.nn.Attention`, and every model of `locant.models`, small, with random weights, out
of Python by every way. A number is the largest error against the model in eager torch, as a share of its largest
number, in float32; a number in brackets is the sentence below that was raised instead.

- *torch.export*, *onnxruntime*, *OpenVINO*, *AOTInductor*: exported for one size, run there. AOTInductor compiles for
  half a minute: one grid of each scheme.
- *sizes open*: batch and all of tokens, pixels or words as symbols; tried on sizes and batches that it was not
  exported on.
- *torch.compile*: how many graphs (`dynamic=True`, no break) serve twelve sizes. They run as torch does; what inductor
  makes of them is tested apart.
- *batches alone*: the model itself is for one size, and says so; twelve batches.
"""


def page(found: dict[str, Any]) -> str:
    """docs/exported.md."""
    sentences: list[str] = []

    def shown(told: Cell | None) -> str:
        if told is None:
            return "not tried"
        if "says" in told and told["says"] not in sentences:
            sentences.append(told["says"])
        parts = [f"{told['graphs']} graph{'s' * (told['graphs'] > 1)}"] if "graphs" in told else []
        parts += [f"{told['error']:.0e}"] if told.get("error") else ["equal"] if "error" in told else []
        parts += [f"{told['over']} alone"] if "over" in told else []
        parts += [f"({1 + sentences.index(told['says'])})"] if "says" in told else []
        return ", ".join(parts)

    every = found["rows"].items()
    table = [f"| {name} | " + " | ".join(shown(cells.get(way)) for way in WAYS) + " |" for name, cells in every]
    lines = [
        INTRODUCTION,
        f"Written by `python benchmarks/exported.py` with {', '.join(f'{k} {v}' for k, v in found['with'].items())}.",
        "[How to](export.md).", "",
        "| | " + " | ".join(WAYS) + " |", "| --- |" + " --- |" * len(WAYS), *table,
    ]  # fmt: skip
    if sentences:
        lines += ["", *(f"{i}. {said}" for i, said in enumerate(sentences, start=1))]
    return "\n".join(lines) + "\n"


def read() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {"with": {}, "rows": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--way", choices=WAYS, help="one way alone")
    parser.add_argument("--anew", action="store_true", help="cells that are known, too")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    every = rows()
    for name, row in every.items() if not asked.page else ():
        for way in asked_of(name):
            if (
                asked.only in name
                and asked.way in (None, way)
                and (asked.anew or way not in read()["rows"].get(name, {}))
            ):
                told = apart(row, way)
                print(name, way, told, flush=True)
                found = read()  # another process may have written
                found["rows"] = {each: found["rows"].get(each, {}) for each in every}
                found["rows"][name][way], found["with"] = told, versions()
                FOUND.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(read()))


if __name__ == "__main__":
    main()
