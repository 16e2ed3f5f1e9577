"""What tests of accelerated models share: random tables, both modes of graphs, sources that are known."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import locant
from locant.dispatch import tree_leaves
from locant.integrations.family import Family, digest
from locant.integrations.model import family_of
from locant.integrations.report import Report

TABLES = (
    "bias_table", "relative_attention_bias", "cpb_mlp.2", "position_bias_mlp.2", "pos_proj.weight", "rel_pos_",
)  # fmt: skip
CONTENT = ("native", "sdpa")  # whichever kernel takes what a query meets


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with tables of standard deviation 1, and nothing at 0: a norm that starts there
    would hide all that comes before it."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in TABLES):
                p.normal_(std=0.1 if "mlp" in name else 1.0)
            elif not p.any():
                p.normal_(std=0.5)
    model.eval()
    return model


def check(
    model: nn.Module, example: Any, kernel: str | Sequence[str] = "native", count: int | None = None
) -> Report:  # fmt: skip
    """Accelerated strictly, outputs and gradients compared with the library's own, and with float64."""
    report = locant.accelerate(randomised(model), example=example, strict=True, training=True)
    attention = [row for row in report.rows if row.kind == "attention"]
    assert attention
    kernels = (kernel,) if isinstance(kernel, str) else tuple(kernel)
    assert all(row.kernel in (*kernels, "planned at the call") for row in attention), attention
    assert count is None or len(attention) == count, attention
    return report


def check_halves(model: nn.Module, arguments: Sequence[Any], part: str | None, apart: Sequence[str] = ()) -> None:
    """Norms and sums go with products, to the last digits; a hooked part is called once, wherever it is.

    Args:
        part: of the model, which gets a hook; None: nothing but what `apart` names is normalised by itself.
        apart: the paths of norms that stand alone.
    """
    called: list[int] = []
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.eval()
    if part is not None:
        model.get_submodule(part).register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        right = _tensor(copy.deepcopy(model).double()(*(_leaf(x) for x in arguments)))
        low = (_tensor(model(*arguments)) - right).abs().max()
        called.clear()
        report = locant.accelerate(model)
        with Counts() as counts:
            found = _tensor(model(*arguments))
    assert (found - right).abs().max() <= max(2 * low, 1e-5 * right.abs().max())
    assert len(called) == (part is not None)
    if part is None:
        assert counts.norms == len(apart), (counts.norms, apart)
    report.undo()
    with torch.no_grad():
        assert (_tensor(model(*arguments)) - right).abs().max() <= low


def check_a_later_forward(model: nn.Module, x: torch.Tensor, path: str) -> None:
    """Whoever puts another forward on a part of an accelerated model has it called, and gets ours back without it."""
    locant.accelerate(model)
    module = model.get_submodule(path)
    with torch.no_grad():
        before = model(x)
        module.forward = lambda rows, **_: torch.zeros_like(rows)
        assert not torch.equal(model(x), before)
        del module.forward
        locant.accelerate(module)
        assert torch.equal(model(x), before)


class Counts(TorchDispatchMode):
    """LayerNorms that torch does by themselves, and T5's RMSNorms, which are made of several operators."""

    norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += func in (torch.ops.aten.native_layer_norm.default, torch.ops.aten.rsqrt.default)
        return func(*args, **(kwargs or {}))


def check_exact(model: nn.Module, example: Any, parity: Callable[..., None] | None = None, row: int = 0) -> None:
    """In float64, outputs and the gradient of every parameter and input to 1e-10 of the largest number in each.

    With `parity`, the largest of these goes to a row of docs/parity.md.
    """
    plain = randomised(model).double()
    ours = copy.deepcopy(plain)
    locant.accelerate(ours, strict=True)
    found, wanted = (_all_numbers(m, example) for m in (ours, plain))
    assert found.keys() == wanted.keys()
    errors = {
        name: float((found[name] - golden).abs().max()) / max(float(golden.abs().max()), 1.0)
        for name, golden in wanted.items()
    }
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-10, (worst, errors[worst])
    if parity is not None:
        library = type(model).__module__.partition(".")[0]
        parity(row, f"{library} {version(library)} {type(model).__name__}", errors[worst], 1e-10)


def _all_numbers(model: nn.Module, example: Any) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of a random sum of them, in training mode without its dropouts: nothing is drawn."""
    fed = {k: _leaf(x) for k, x in example.items()} if isinstance(example, dict) else {"": _leaf(example)}
    given = {k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in fed.items()}  # may be written into
    output = model(**given) if isinstance(example, dict) else model(given[""])
    tensors = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    torch.manual_seed(1)
    sum((x * torch.randn_like(x)).sum() for x in tensors).backward()
    numbers = {f"output {i}": x.detach() for i, x in enumerate(tensors)}
    numbers |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return numbers | {f"input {k}": x.grad for k, x in fed.items() if getattr(x, "grad", None) is not None}


def _leaf(x: Any) -> Any:
    return x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def check_graphs(model: nn.Module, arguments: Sequence[torch.Tensor]) -> None:
    """Compiled before it is accelerated and after, and exported with torch's own operators alone."""
    plain, arguments = copy.deepcopy(randomised(model)), tuple(arguments)
    with torch.no_grad():
        wanted = _tensor(plain(*arguments))
        before = torch.compile(model, fullgraph=True, backend="aot_eager")
        locant.accelerate(model, strict=True)
        for run in (before, torch.compile(model, fullgraph=True, backend="aot_eager")):
            assert _near(_tensor(run(*arguments)), wanted)
            torch._dynamo.reset()
    program = torch.export.export(model, arguments)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "locant" in name or "mkldnn" in name], names
    with torch.no_grad():
        assert _near(_tensor(program.module()(*arguments)), wanted)


def check_known(families: Sequence[Family]) -> None:
    """The pinned version is known by its source: a newer one whose source differs is tried on random input."""
    for family in families:
        for name in family.classes:
            module, _, cls = name.rpartition(".")
            found = getattr(importlib.import_module(module), cls)
            assert digest(found, family.methods) in family.known, (name, digest(found, family.methods))
            assert family_of(found) is family, name


def check_tried(model: nn.Module, monkeypatch: Any) -> None:
    """Were its source unknown, random input in float64 would let the replacement pass."""
    monkeypatch.setattr("locant.integrations.model.digest", lambda *_: "another")
    report = locant.accelerate(model, strict=True, dry_run=True)
    assert report.replaced


def _tensor(output: Any) -> torch.Tensor:
    return (
        output
        if isinstance(output, torch.Tensor)
        else next(iter(output.values() if hasattr(output, "values") else output))
    )


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())
