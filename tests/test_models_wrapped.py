"""Every layer of every model is called as a module: what stands around one (LoRA, hooks, FSDP) is not bypassed."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from near import apart
from redrawing import redraw_alike
from small import MODELS
from torch import Tensor, nn

from locant import Grid
from locant.models.nonlocality import attention_map
from locant.models.transformer_xl import MemTransformerLM
from locant.nn import Attention, GatedAttention
from locant.positions.learned import Learned

EXACT = 1e-10


def words(most: int, tokens: int = 6) -> Tensor:
    return torch.randint(0, most, (2, tokens))


def clip(model: nn.Module) -> Iterable[Tensor]:
    return [model(torch.randn(2, 3, 4, 16, 16).double())]


def boxes(model: nn.Module) -> Iterable[Tensor]:
    found = model(torch.randn(2, 6, 3, 4).double())
    return found["pred_logits"], found["pred_boxes"]


def segments(model: nn.Module) -> Iterable[Tensor]:
    """The second one meets a memory."""
    model.reset_length(mem_len=6)
    first, memory = model(words(11))
    return first, model(words(11), memory)[0]


def learned_language() -> nn.Module:
    return MemTransformerLM(11, 8, 2, 2, 12, attn_type=3, max_len=12, tie_weight=False)


RUNS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Iterable[Tensor]]]] = {
    **{name: (MODELS[name], run) for name, run in {
        "models.aim_swin.AIMSwin": clip,
        "models.aim_vit.AIMViT": clip,
        "models.bahdanau.Bahdanau": lambda model: [model(words(7), words(9))[0]],
        "models.bert.BertEmbeddings": lambda model: [model(words(11)), model(words(11), places=words(6))],
        "models.convit.ConViT": lambda model: [model(torch.randn(2, 3, 32, 32).double())],
        "models.deit.DeiT": lambda model: [model(torch.randn(2, 3, 32, 32).double())],
        "models.detr.DETR": boxes,
        "models.swin.Swin": lambda model: [model(torch.randn(2, 3, 36, 40).double())],
        "models.swin_v2.SwinV2": lambda model: [model(torch.randn(2, 3, 36, 40).double())],
        "models.transformer.Transformer": lambda model: [model(words(7), words(9))],
        "models.transformer_xl.MemTransformerLM": segments,
        "models.vit.ViT": lambda model: [model(torch.randn(2, 3, 32, 32).double())],
        "nn.multihead.MultiHeadAttention": lambda model: [model(*torch.randn(3, 2, 5, 8).double().unbind(0))[0]],
        "nn.temporal.TemporalModel": lambda model: [model(torch.randn(2, 3, 10, 4, 4).double())],
    }.items()},
    "with learned places": (learned_language, segments),
}  # fmt: skip


class Adapted(nn.Linear):
    """A layer and a small product beside it, as LoRA has it; a Linear by type, with the numbers of `base`."""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base, self.down, self.up = base, nn.Parameter(down), nn.Parameter(up)

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # as peft has it: whoever reads it goes without the adapter

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.down) @ self.up


def redrawn(model: nn.Module) -> nn.Module:
    return redraw_alike(model.double().eval())


def outputs(model: nn.Module, run: Callable[[nn.Module], Iterable[Tensor]]) -> list[Tensor]:
    torch.manual_seed(5)
    with torch.no_grad():
        return list(run(model))


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_beside_every_linear_is_what_merging_it_gives(name: str) -> None:
    make, run = RUNS[name]
    wrapped = redrawn(make())
    merged, plain = copy.deepcopy(wrapped), outputs(wrapped, run)
    linears = [path for path, module in wrapped.named_modules() if isinstance(module, nn.Linear)]
    assert linears or name in ("models.bert.BertEmbeddings", "nn.temporal.TemporalModel")  # which have none
    for path in linears:
        parent, _, last = path.rpartition(".")
        base = wrapped.get_submodule(path)
        down, up = (torch.randn(*size).double() / 4 for size in ((base.in_features, 2), (2, base.out_features)))
        setattr(wrapped.get_submodule(parent), last, Adapted(base, down, up))
        with torch.no_grad():
            merged.get_submodule(path).weight += (down @ up).T
    found, wanted = outputs(wrapped, run), outputs(merged, run)
    for one, other, without in zip(found, wanted, plain, strict=True):
        assert apart(one, other) <= EXACT * max(1.0, float(other.abs().max()))
        assert not linears or apart(one, without) > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_a_hook_on_every_module_with_numbers_is_called(name: str) -> None:
    """Embeddings and learned positions too; not of recurrent layers, which are one kernel each."""
    make, run = RUNS[name]
    model, called = redrawn(make()), set[str]()
    wanted = set[str]()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | Learned | nn.Conv2d | nn.Conv3d):
            wanted.add(path)
            module.register_forward_hook(lambda *_, path=path: called.add(path))
    outputs(model, run)
    assert wanted
    assert called == wanted


def test_a_hook_changes_what_a_memory_is_read_with() -> None:
    """One that doubles the keys and values of the projection is the same as doubled weights, memory included."""
    hooked = redrawn(MemTransformerLM(11, 8, 2, 2, 12))
    doubled = copy.deepcopy(hooked)
    for one, other in zip(hooked.layers, doubled.layers, strict=True):
        scale = torch.cat([torch.ones(8), torch.full((16,), 2.0)]).double()
        one.attention.qkv.register_forward_hook(lambda module, inputs, y, scale=scale: y * scale)
        with torch.no_grad():
            other.attention.qkv.weight *= scale[:, None]
    for found, wanted in zip(outputs(hooked, segments), outputs(doubled, segments), strict=True):
        assert apart(found, wanted) <= EXACT * float(wanted.abs().max())


@pytest.mark.parametrize("make", [Attention, GatedAttention])
def test_a_map_is_that_of_the_wrapped_projection(make: type[nn.Module]) -> None:
    grid, x = Grid(3, 4), torch.randn(2, 12, 8).double()
    module = redrawn(make(8, 2, grid=grid))
    plain = attention_map(module, x, grid)
    name = "qk" if make is GatedAttention else "qkv"
    getattr(module, name).register_forward_hook(lambda module, inputs, y: y * 2)
    found = attention_map(module, x, grid)
    with torch.no_grad():
        getattr(module, name)._forward_hooks.clear()
        for parameter in getattr(module, name).parameters():
            parameter *= 2
    assert apart(found, attention_map(module, x, grid)) <= EXACT
    assert apart(found, plain) > 1e-3


def test_tied_logits_are_read_by_the_embedding_itself() -> None:
    """One matrix by design: a hook on the look-up does not touch the product with it."""
    model = redrawn(MemTransformerLM(11, 8, 1, 2, 12))
    x = torch.randn(2, 3, 8).double()
    features, _ = model.forward_features(x)
    model.word_emb.register_forward_hook(lambda module, inputs, y: x)
    logits, _ = model(words(11, 3))
    scaled, _ = model.forward_features(x * 8**0.5)
    wanted = scaled @ model.word_emb.weight.T + model.head_bias
    assert apart(logits, wanted) <= EXACT * float(wanted.detach().abs().max())
    assert apart(features, scaled) > 1e-3


RANKS = """
import copy, sys, torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
sys.path[:0] = sys.argv[2:]
from redrawing import redraw
from small import swin
distributed.init_process_group("gloo")
torch.manual_seed(0)
alone = redraw(swin()).double()
x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
alone(x).square().sum().backward()
model = copy.deepcopy(alone)
model.zero_grad()
if sys.argv[1] == "ddp":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
else:
    for module in [m for m in model.modules() if isinstance(m, torch.nn.Linear)]: fully_shard(module)
    wrapped = fully_shard(model)
wrapped(x[2 * distributed.get_rank():][:2]).square().sum().backward()
for (name, p), whole in zip(model.named_parameters(), alone.parameters(), strict=True):
    grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    assert (2 * grad - whole.grad).abs().max() <= 1e-10 * max(1, whole.grad.abs().max()), name
print("same")
"""


@pytest.mark.plain
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(tmp_path: Path, kind: str) -> None:
    """The gradients of the whole batch, averaged over two processes; under FSDP2 every linear is sharded by itself."""
    script, here = tmp_path / "ranks.py", Path(__file__).parent
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
    for _ in range(2):  # the port that torchrun finds free may be taken before it is bound
        done = subprocess.run(
            [*command, str(here), str(here.parent / "src")], env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        if done.returncode == 0:
            break
    assert done.stdout.count("same") == 2, done.stderr[-3000:]
