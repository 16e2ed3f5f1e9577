"""An accelerated model among the things that people do with models: each as with the plain one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import locant
from locant.integrations.replacing import is_replaced

SWIN = {
    "img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 10,
    "drop_path_rate": 0.0,
}  # fmt: skip


@pytest.fixture
def pair(timm) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The same model, plain and accelerated, and pictures."""
    torch.manual_seed(0)
    plain = timm.models.swin_transformer.SwinTransformer(**SWIN).eval()
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if "bias_table" in name:
                p.normal_()
    ours = copy.deepcopy(plain)
    locant.accelerate(ours, strict=True)
    return plain, ours, torch.randn(3, 3, 64, 64)


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.detach().double() - theirs.detach().double()).abs().max() / theirs.detach().double().abs().max())


def _gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], bound: float = 2e-5) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, g in theirs.items():
        assert float((ours[name] - g).abs().max()) <= bound * max(float(g.abs().max()), 1e-3 * largest), name


def test_training_mode_and_gradients(pair) -> None:
    plain, ours, x = pair
    _same_gradients(_gradients(ours.train(), x), _gradients(plain.train(), x))


@pytest.mark.parametrize("when", ["before", "after"])
def test_lora(pair, when: str) -> None:
    peft = pytest.importorskip("peft")
    plain, _, x = pair
    config = peft.LoraConfig(target_modules=["qkv", "fc1", "proj"], init_lora_weights=False)
    found = []
    for accelerated in (True, False):
        model = copy.deepcopy(plain)
        if accelerated and when == "before":
            locant.accelerate(model)
        torch.manual_seed(1)
        model = peft.get_peft_model(model, config).train()
        if accelerated and when == "after":
            locant.accelerate(model, strict=True)
        assert accelerated == any(is_replaced(m) for m in model.modules())
        found.append((_gradients(model, x), model.eval()(x)))
    (ours, out), (theirs, expected) = found
    assert sum("lora_" in name and float(g.abs().sum()) > 0 for name, g in ours.items()) == 2 * (
        3 * 4 + 1
    )  # and patch_embed.proj
    _same_gradients(ours, theirs)
    assert _apart(out, expected) <= 1e-5
    with torch.no_grad():
        assert _apart(model(x), expected) <= 1e-5


def test_gradient_checkpointing(pair) -> None:
    plain, ours, x = pair
    theirs = _gradients(plain.train(), x)
    ours.set_grad_checkpointing(True)
    _same_gradients(_gradients(ours.train(), x), theirs)


def test_averaged_copies(pair) -> None:
    """An EMA of an accelerated model is accelerated, on weights of its own."""
    plain, ours, x = pair
    averages = []
    for model in (plain, ours):
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        ema.update_parameters(model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05)
        ema.update_parameters(model)
        averages.append(ema.eval())
    with torch.no_grad():
        assert _apart(averages[1](x), averages[0](x)) <= 1e-5
        assert _apart(averages[1](x), ours(x)) > 1e-2
    assert any(is_replaced(m) for m in averages[1].modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(pair, dtype: torch.dtype) -> None:
    plain, ours, x = pair
    exact = copy.deepcopy(plain).double()(x.double()).detach()
    with torch.no_grad():
        theirs, found = plain.to(dtype)(x.to(dtype)).double(), ours.to(dtype)(x.to(dtype)).double()
    error, own = (float((y - exact).abs().max()) for y in (found, theirs))
    assert error <= 2 * own + 1e-12


def test_autocast(pair) -> None:
    plain, ours, x = pair
    exact = copy.deepcopy(plain).double()(x.double()).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs, found = plain(x), ours(x)
    assert found.dtype == theirs.dtype
    error, own = (float((y.double() - exact).abs().max()) for y in (found, theirs))
    assert error <= 2 * own


def test_inference_mode_channels_last_and_odd_batches(pair) -> None:
    plain, ours, x = pair
    expected = plain(x)
    with torch.inference_mode():
        assert _apart(ours(x.to(memory_format=torch.channels_last)), expected) <= 1e-5
        assert _apart(ours(x[:1]), expected[:1]) <= 1e-5


def test_weights_loaded_afterwards(pair) -> None:
    plain, ours, x = pair
    with torch.no_grad():
        ours(x)
    for assign in (False, True):
        state = {name: t + 0.1 * torch.randn_like(t) for name, t in plain.state_dict().items()}
        plain.load_state_dict(state), ours.load_state_dict(copy.deepcopy(state), assign=assign)
        with torch.no_grad():
            assert _apart(ours(x), plain(x)) <= 1e-5


def test_pruned_and_parametrised_layers_are_called(pair) -> None:
    plain, _, x = pair
    prune.l1_unstructured(plain.layers[0].blocks[0].mlp.fc1, "weight", 0.5)
    parametrizations.weight_norm(plain.layers[0].blocks[1].attn.qkv)
    expected, gradients = plain(x), _gradients(plain, x)
    report = locant.accelerate(plain)
    assert "only a plain nn.Linear" in next(r.why for r in report.rows if r.path == "layers.0.blocks.1.attn.qkv")
    assert _apart(plain(x), expected) <= 1e-5
    _same_gradients(_gradients(plain, x), gradients)


def test_a_model_elsewhere_is_rows_with_the_reason(pair) -> None:
    plain, _, _ = pair
    report = locant.accelerate(plain.to("meta"))
    assert all(row.kernel is not None or row.why for row in report.rows)


@pytest.mark.compiled
def test_compiled_before_and_after(pair) -> None:
    plain, ours, x = pair
    expected = plain(x)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    _same_gradients(_gradients(compiled, x), {f"_orig_mod.{n}": g for n, g in _gradients(plain, x).items()})
    with torch.no_grad():
        assert _apart(compiled(x), expected) <= 1e-5
    later = torch.compile(plain, fullgraph=True, backend="aot_eager")
    later(x)
    report = locant.accelerate(plain)
    assert _apart(later(x), expected) <= 1e-5
    report.undo()
    assert _apart(later(x), expected) <= 1e-6


@pytest.mark.compiled
@pytest.mark.parametrize("strict", [True, False])
def test_exported_with_torchs_own_operators(pair, strict: bool) -> None:
    _, ours, x = pair
    program = torch.export.export(ours, (x,), strict=strict)
    assert not [node for node in program.graph.nodes if "locant" in str(node.target)]
    assert _apart(program.module()(x), ours(x)) <= 1e-5


RANKS = r"""
import copy, sys, torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, sys.argv[2])
from conftest import _mend_torchvision
_mend_torchvision()
import timm, locant
distributed.init_process_group("gloo")
torch.manual_seed(0)
plain = timm.models.swin_transformer.SwinTransformer(
    img_size=32, window_size=4, embed_dim=32, depths=(2,), num_heads=(2,), num_classes=10, drop_path_rate=0.0
)
x = torch.randn(4, 3, 32, 32)
plain(x).square().sum().backward()
expected = {name: p.grad.clone() for name, p in plain.named_parameters()}
model = copy.deepcopy(plain); model.zero_grad()
locant.accelerate(model)
mine = x[2 * distributed.get_rank():][:2]
if sys.argv[1] == "ddp":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
else:
    for block in model.layers[0].blocks: fully_shard(block)
    wrapped = fully_shard(model)
wrapped(mine).square().sum().backward()
for name, p in model.named_parameters():
    grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    want = expected[name] / 2
    apart, size = (grad - want).abs().max(), want.abs().max()
    assert apart <= 2e-5 * size + 1e-5, (name, apart, size)
with torch.no_grad():
    out = wrapped.eval()(mine)
assert (out - plain.eval()(mine)).abs().max() <= 1e-5 * out.abs().max()
print("same")
"""


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(timm, tmp_path, kind: str) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
    for _ in range(2):  # the port that torchrun finds free may be taken before it is bound
        done = subprocess.run(
            [*command, str(Path(__file__).parent)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
            text=True, timeout=180,
        )  # fmt: skip
        if done.returncode == 0:
            break
    assert done.stdout.count("same") == 2, done.stderr[-3000:]
