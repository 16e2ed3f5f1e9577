"""A model as it comes, what else one could pick, and accelerated: each compared with float64 first, then timed in turn.

as it comes     the library's own forward
fused           the library's own switch for torch's attention, where it has one
compile         torch.compile of it
onnxruntime     exported by torch.onnx, on its CPU provider
openvino        converted from that export, on its CPU plugin; its precision is named
locant          accelerated
locant compile  accelerated, then torch.compile
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant.dispatch import tree_leaves
from locant.integrations.export import write_onnx
from locant.integrations.model import accelerate
from locant.integrations.named import Named, library
from locant.integrations.report import Report
from locant.integrations.trying import allowed_error, difference
from locant.measuring import memory
from locant.measuring.clock import Gate, Ratio, time_in_turn

DRAWN = 0.25  # of the largest number: further apart are no roundings, and nobody could be shown to be wrong beside them
RATES = ("attention_dropout", "drop_path", "dropout", "proj_dropout")  # attributes by which modules draw themselves
RIVALS = ("compile", "onnxruntime", "openvino")
Call = Callable[[], list[Tensor]]


@dataclass
class Contender:
    """One way to run the model.

    Attributes:
        name: as above.
        call: runs it; None where it can't, and `why` says so.
        error: the largest, against float64.
        first: seconds of the first call, compiling and packing included; conversion counts as well.
        ratio: its time over that of `locant`.
        seconds: of one call, median.
        bytes: what a call takes at its peak beyond what there was before.
    """

    name: str
    call: Call | None = None
    why: str = ""
    error: float | None = None
    first: float | None = None
    ratio: Ratio | None = None
    seconds: float | None = None
    bytes: int | None = None


@dataclass
class Contest:
    """What came of it. `wrong` are contenders whose numbers are no rounding of the right ones."""

    name: str
    batch: int
    dtype: str
    training: bool
    own_error: float
    contenders: list[Contender] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        return [c.name for c in self.contenders if c.name.startswith("locant") and c.why.startswith("wrong")]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = []
        for contender in self.contenders:
            row = {name: value for name, value in vars(contender).items() if name not in ("call", "ratio")}
            rows.append({**row, "ratio": None if contender.ratio is None else asdict(contender.ratio)})
        plain = {name: getattr(self, name) for name in ("name", "batch", "dtype", "training", "own_error")}
        return {**plain, "contenders": rows}

    def __str__(self) -> str:
        head = f"{'':16}{'ms':>10}{'× locant':>26}{'largest error':>15}{'first call':>12}"
        lines = [f"{self.name}, batch {self.batch}, {self.dtype}, {'training' if self.training else 'inference'}", head]
        for c in self.contenders:
            if c.seconds is None:
                lines.append(f"{c.name:16}{c.why or 'not measured'}")
            else:
                lines.append(
                    f"{c.name:16}{1e3 * c.seconds:10.1f}{c.ratio!s:>26}{c.error or 0:15.1e}{c.first or 0:10.1f} s"
                )
        return "\n".join(lines)


def hold(
    named: Named, *, against: Iterable[str] = RIVALS, dtype: torch.dtype = torch.float32, training: bool = False,
    seconds: float = 10.0, tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[Contest, Report]:  # fmt: skip
    """Run all contenders on one input; exactness first, then times in turn."""
    # 1 the right numbers
    exact = _run(copy.deepcopy(named.model).double(), [_as(x, torch.float64) for x in named.inputs], training)()
    model, inputs = named.model.to(dtype), [_as(x, dtype) for x in named.inputs]
    plain, fused = copy.deepcopy(model), None if named.fused is None else named.fused.to(dtype)
    report = accelerate(model, training=training)
    ways: dict[str, Callable[[], Call]] = {
        "as it comes": lambda: _run(plain, inputs, training),
        **({} if fused is None else {"fused": lambda: _run(fused, inputs, training)}),
        **{name: _rival(name, plain, inputs, dtype, training) for name in against},
        "locant": lambda: _run(model, inputs, training),
        **({"locant compile": lambda: _run(_compiled(model), inputs, training)} if "compile" in against else {}),
    }
    # 2 each by itself: does it run, and is it right
    contest = Contest(named.name, len(inputs[0]), str(dtype).removeprefix("torch."), training, 0.0)
    for name, prepare in ways.items():
        tell(f"preparing {name}")
        contest.contenders.append(_prepared(name, prepare, exact))
    contest.own_error = float("inf") if contest.contenders[0].error is None else contest.contenders[0].error
    size = max(float(x.abs().max()) for x in exact if x.numel())
    if not contest.own_error <= DRAWN * size:
        raise ValueError(
            f"a contest needs a model that gives the same numbers twice; {named.name} is {contest.own_error:.1e} off "
            f"itself in float64, of {size:.1e}: {contest.contenders[0].why or 'something is drawn at each call'}. Set "
            "its rates of dropout to 0."
        )
    for contender in contest.contenders:
        allowed = allowed_error(contest.own_error, size, dtype)
        if contender.error is not None and not contender.error <= allowed:
            contender.why = f"wrong: the largest error is {contender.error:.1e}, allowed {allowed:.1e}"
    # 3 times in turn, and memory
    running = {c.name: c for c in contest.contenders if c.call is not None and not c.why}
    tell(f"timing {', '.join(running)}")
    gate = Gate()
    gate.calibrate()
    times = time_in_turn({name: c.call for name, c in running.items() if c.call}, seconds, gate)
    for name, contender in running.items():
        contender.seconds = times.seconds(name)
        contender.ratio = times.ratio(name, "locant") if "locant" in running else None
        contender.bytes = memory.extra(contender.call, "cpu") if contender.call else None
    return contest, report


def _prepared(name: str, prepare: Callable[[], Call], exact: list[Tensor]) -> Contender:
    start = time.perf_counter()
    try:
        call = prepare()
        found = call()
    except Exception as error:  # whatever an exporter of others raises is its cell of the table
        reason = (str(error).splitlines() or [""])[0]
        return Contender(name, why=f"{type(error).__name__}: {reason}"[:200])
    first = time.perf_counter() - start
    return Contender(name, call, error=difference(exact, found)[0], first=first)


def _compiled(model: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(model)
    return compiled


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _run(model: nn.Module, inputs: list[Tensor], training: bool) -> Call:
    """A forward pass, or a training step without the optimiser: the gradients of the sum of squares."""
    model.train(training)
    for module in model.modules():  # dropouts, drop paths: what is drawn can't be compared, and is nobody's to speed up
        if not [*module.children(), *module.parameters(), *module.buffers()]:
            module.eval()
        for rate in RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    learned = [p for p in model.parameters() if p.requires_grad]

    def infer() -> list[Tensor]:
        with torch.inference_mode():
            return _tensors(model(*inputs))

    def step() -> list[Tensor]:
        out = _tensors(model(*inputs))
        loss = torch.stack([x.square().mean() for x in out if x.requires_grad]).sum()
        return [g for g in torch.autograd.grad(loss, learned, allow_unused=True) if g is not None]

    return step if training else infer


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


# --- rivals -----------------------------------------------------------------------------------------------------------


def _rival(name: str, model: nn.Module, inputs: list[Tensor], dtype: torch.dtype, training: bool) -> Callable[[], Call]:
    if name not in RIVALS:
        raise ValueError(f"--against needs names out of {', '.join(RIVALS)}; got {name!r}. Name some of these.")
    if name == "compile":
        return lambda: _run(_compiled(copy.deepcopy(model)), inputs, training)
    if training:

        def refuse() -> Call:
            raise ValueError("it has no training")

        return refuse
    return lambda: (_onnxruntime if name == "onnxruntime" else _openvino)(model, inputs, dtype)


def _onnxruntime(model: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> Call:
    runtime: Any = library("onnxruntime")
    library("onnxscript")
    if dtype != torch.float32:
        raise ValueError(f"its CPU provider has no kernels for {dtype}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(model, tuple(inputs), Path(folder) / "model.onnx")
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: [torch.from_numpy(y) for y in session.run(None, feed) if y.dtype.kind == "f"]


def _openvino(model: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> Call:
    openvino: Any = library("openvino")
    library("onnxscript")
    core = openvino.Core()
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    with tempfile.TemporaryDirectory() as folder:
        given = tuple(_as(x, torch.float32) for x in inputs)
        path = write_onnx(copy.deepcopy(model).float(), given, Path(folder) / "model.onnx")
        compiled = core.compile_model(
            core.read_model(path), "CPU",
            {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
             "PERFORMANCE_HINT": "LATENCY"},
        )  # fmt: skip
    request, feed = compiled.create_infer_request(), [_as(x, torch.float32).numpy() for x in inputs]
    return lambda: [torch.from_numpy(y.copy()) for y in request.infer(feed).values() if y.dtype.kind == "f"]
