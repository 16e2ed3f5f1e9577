"""Whatever is put around a layer acts: hooks, adapters such as LoRA, quantised layers, in every module that has one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from near import close
from torch import Tensor, nn
from torch.nn.utils import parametrize

from locant import (
    ALiBi,
    Decomposed,
    Grid,
    Learned,
    LogCPB,
    MaskedSine,
    RelativeTable,
    Rotary,
    Shaw,
    Sinusoid,
    T5Buckets,
    TransformerXL,
)
from locant.models.detr import DETR
from locant.models.detr_layers import Transformer
from locant.models.nonlocality import attention_map
from locant.models.transformer_xl import MemTransformerLM
from locant.models.transformer_xl_layers import MemoryAttention
from locant.nn import (
    AdditiveAttention,
    Attention,
    Block,
    CosineWindowAttention,
    GatedAttention,
    MultiHeadAttention,
    PatchEmbedding,
    PatchMerging,
    RelativeAttention,
    SpaceTimeAttention,
    SpaceTimeBlock,
    WindowAttention,
)
from locant.positions.gate import GatedPosition

DIM, HEADS, GRID, LINE = 8, 2, Grid(4, 4), Grid(6)
CLIP = Grid(2, 4, 4)


def on(grid: Grid) -> Tensor:
    return torch.randn(2, grid.tokens, DIM, generator=torch.Generator().manual_seed(5)).to(torch.get_default_dtype())


def alone(
    module: nn.Module, on_grid: Grid = GRID, **arguments: object
) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return module, lambda m: m(on(on_grid), **arguments)


def line(position: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return alone(Attention(DIM, HEADS, grid=LINE, position=position), LINE)


def plane(position: nn.Module | tuple[nn.Module, ...]) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return alone(Attention(DIM, HEADS, grid=GRID, position=position))


def both(x: Tensor) -> Tensor:
    return torch.cat([x[:, :3], x], 1)


# every module with a linear map or a convolution, and every entrance; the one that reads x + e beside x among them
CASES: dict[str, Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]] = {
    "plain": lambda: alone(Attention(DIM, HEADS)),
    "learned": lambda: plane(Learned(GRID, DIM, init_std=1.0)),
    "sinusoid": lambda: line(Sinusoid(DIM)),
    "masked sine": lambda: plane(MaskedSine(DIM)),
    "no bias": lambda: alone(Attention(DIM, HEADS, grid=LINE, position=Sinusoid(DIM), qkv_bias=False), LINE),
    "rotary": lambda: plane(Rotary(4, axes=2)),
    "table": lambda: plane(RelativeTable(GRID, HEADS, init_std=1.0)),
    "slopes": lambda: line(ALiBi(HEADS)),
    "buckets": lambda: line(T5Buckets(HEADS)),
    "field": lambda: plane(LogCPB(GRID, HEADS, init_std=1.0)),
    "content": lambda: line(TransformerXL(DIM, HEADS, init_std=1.0)),
    "shaw": lambda: line(Shaw(HEADS, DIM // HEADS, 3)),
    "decomposed": lambda: plane(Decomposed(GRID, HEADS, DIM // HEADS)),
    "several": lambda: plane((Learned(GRID, DIM, init_std=1.0), RelativeTable(GRID, HEADS), Rotary(4, axes=2))),
    "window": lambda: alone(WindowAttention(DIM, HEADS, (2, 2), grid=GRID, shift=1)),
    "window, embedded": lambda: alone(
        WindowAttention(DIM, HEADS, (2, 2), grid=GRID, position=Learned(GRID, DIM, init_std=1.0))
    ),
    "window, filled": lambda: alone(WindowAttention(DIM, HEADS, (3, 3), grid=GRID, shift=1, border="pad-roll")),
    "cosine": lambda: alone(CosineWindowAttention(DIM, HEADS, (2, 2), grid=GRID)),
    "cosine, embedded": lambda: alone(
        CosineWindowAttention(DIM, HEADS, (2, 2), grid=GRID, position=Learned(GRID, DIM, init_std=1.0))
    ),
    "gated": lambda: alone(GatedAttention(DIM, HEADS, grid=GRID)),
    "gated, embedded": lambda: alone(
        GatedAttention(
            DIM, HEADS, grid=GRID, position=(GatedPosition(HEADS, axes=2), Learned(GRID, DIM, init_std=1.0))
        )
    ),
    "multihead": lambda: (
        MultiHeadAttention(DIM, HEADS, position=Sinusoid(DIM)),
        lambda m: m(on(LINE), on(LINE), on(LINE))[0],
    ),
    "multihead, cached": lambda: (
        MultiHeadAttention(DIM, HEADS),
        lambda m: m.attend(on(LINE), *m.projected(on(LINE), on(LINE)))[0],
    ),
    "relative": lambda: alone(RelativeAttention(DIM, 6, HEADS), LINE),
    "space": lambda: alone(SpaceTimeAttention(DIM, HEADS, frames=2, window=(2, 2), grid=CLIP), CLIP),
    "time": lambda: alone(SpaceTimeAttention(DIM, HEADS, frames=2, window=(2, 2), grid=CLIP), CLIP, temporal=True),
    "space, embedded": lambda: alone(
        SpaceTimeAttention(DIM, HEADS, frames=2), CLIP, grid=CLIP, position=Learned(CLIP, DIM, init_std=1.0)
    ),
    "block": lambda: alone(Block(DIM, HEADS, grid=GRID, position=Learned(GRID, DIM, init_std=1.0))),
    "clip block": lambda: alone(SpaceTimeBlock(DIM, HEADS, frames=2, adapters=2), CLIP, grid=CLIP),
    "additive": lambda: (AdditiveAttention(DIM), lambda m: m(on(LINE), on(LINE), on(LINE))[0]),
    "patches": lambda: (PatchEmbedding(DIM, (2, 2), channels=DIM), lambda m: m(on(GRID).mT.unflatten(2, (4, 4)))[0]),
    "merging": lambda: (PatchMerging(DIM), lambda m: m(on(GRID), GRID)[0]),
    "memory": lambda: (
        MemoryAttention(DIM, HEADS, DIM // HEADS, position=TransformerXL(DIM, HEADS)),
        lambda m: m(on(LINE), on(LINE)[:, :3]),
    ),
    "language": lambda: (
        MemTransformerLM(7, DIM, 1, HEADS, 12, mem_len=3, tie_weight=False),
        lambda m: m(torch.arange(6).expand(2, 6))[0],
    ),
    "boxes": lambda: (
        DETR(
            Transformer(DIM, HEADS, encoder_layers=1, decoder_layers=1, hidden=12, dropout=0.0), Learned(GRID, DIM),
            channels=DIM, num_classes=3, num_queries=2,
        ),
        lambda m: torch.cat(list(m.eval()(on(GRID).mT.unflatten(2, (4, 4))).values())[:2]),
    ),
    "a map": lambda: (Attention(DIM, HEADS, position=Sinusoid(DIM)), lambda m: attention_map(m, on(LINE), LINE)),
    "a gated map": lambda: (GatedAttention(DIM, HEADS, grid=GRID), lambda m: attention_map(m, on(GRID), GRID)),
}  # fmt: skip
UNUSED = {"a map": {"proj"}, "a gated map": {"v", "proj"}}  # what a map of probabilities does not need


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, Callable[[nn.Module], Tensor], set[str]]]:
    """A module in float64 with weights that matter, how it is called, and the layers that the call has no use for."""
    torch.set_default_dtype(torch.float64)
    module, call = CASES[request.param]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    yield module, call, UNUSED.get(request.param, set())
    torch.set_default_dtype(torch.float32)


def layers(module: nn.Module, unused: set[str]) -> list[str]:
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding) and name not in unused
    ]


class LowRank(nn.Module):
    """y = W x + b + B A x around a layer, which says neither what it takes nor has a weight: LoRA."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = (nn.Parameter(torch.randn(2, n)) for n in (base.weight[0].numel(), len(base.weight)))

    def delta(self) -> Tensor:
        return (self.b.T @ self.a).view_as(self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.Conv2d):
            return self.base(x) + nn.functional.conv2d(x, self.delta(), stride=self.base.stride)
        if isinstance(self.base, nn.Embedding):
            return self.base(x) + self.delta()[x]
        return self.base(x) + x @ self.delta().T


def test_a_hook_on_any_layer_is_called_and_what_it_returns_counts(case) -> None:
    module, call, unused = case
    for name in layers(module, unused):
        part, called = module.get_submodule(name), []

        def double(_: nn.Module, __: object, out: Tensor, called: list[int] = called) -> Tensor:
            called.append(1)
            return 2 * out

        hook = part.register_forward_hook(double)
        found = call(module)
        hook.remove()
        doubled = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in doubled.get_submodule(name).parameters():
                parameter.mul_(2)
        assert called, name
        close(found, call(doubled))


def test_low_rank_adapters_equal_merged_weights_and_train(case) -> None:
    module, call, unused = case
    names = layers(module, unused)
    merged = copy.deepcopy(module)
    for name in names:
        wrapped = LowRank(module.get_submodule(name))
        module.set_submodule(name, wrapped)
        with torch.no_grad():
            merged.get_submodule(name).weight += wrapped.delta()
    out = call(module)
    close(out, call(merged))
    out.square().sum().backward()
    for name in names:
        grad = module.get_submodule(name).a.grad
        assert grad is not None, name


def test_a_hook_on_all_modules_sees_every_layer(case) -> None:
    module, call, unused = case
    seen: set[nn.Module] = set()
    hook = nn.modules.module.register_module_forward_hook(lambda part, _, __: seen.add(part))
    try:
        call(module)
    finally:
        hook.remove()
    assert {module.get_submodule(name) for name in layers(module, unused)} <= seen


class Called(nn.Module):
    """A layer behind a call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("name", sorted(CASES))
def test_quantised_layers_are_called(name: str) -> None:
    """`quantize_dynamic` leaves layers without a weight: the module computes what they do, one by one behind a call."""
    module, call = CASES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao will have this instead
        quantised = torch.ao.quantization.quantize_dynamic(module.eval(), {nn.Linear}, dtype=torch.qint8)
    behind = copy.deepcopy(quantised)
    parts = [n for n, part in quantised.named_modules() if isinstance(part, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(parts) == sum(type(part) is nn.Linear for part in module.modules())
    for part in parts:
        behind.set_submodule(part, Called(behind.get_submodule(part)))
    found, plain = call(quantised).detach(), call(module).detach()
    assert bool(found.isfinite().all())
    assert torch.equal(found, call(behind))
    if parts:
        assert not torch.equal(found, plain)


class Transposed(nn.Module):
    """A parametrization: the weight upside down."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.flip(0)


def embedded() -> tuple[Attention, Tensor]:
    return Attention(DIM, HEADS, grid=LINE, position=Sinusoid(DIM)).double(), on(LINE).double()


def flipped(module: Attention) -> Attention:
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.qkv.weight.copy_(module.qkv.weight.flip(0))
        other.qkv.bias.copy_(module.qkv.bias.flip(0))
    return other


def test_a_parametrized_weight_is_used() -> None:
    module, x = embedded()
    expected = flipped(module)(x)
    parametrize.register_parametrization(module.qkv, "weight", Transposed())
    parametrize.register_parametrization(module.qkv, "bias", Transposed())
    close(module(x), expected)


def test_a_forward_of_the_instance_is_used() -> None:
    module, x = embedded()
    expected = flipped(module)(x)
    plain = module.qkv.forward
    module.qkv.forward = lambda y: plain(y).flip(-1)
    close(module(x), expected)


def test_a_hook_in_front_of_a_layer_may_bring_its_weights() -> None:
    """As offloading does: the weights lie elsewhere until the layer is called, so x is not asked to lie there."""
    module, x = embedded()
    expected, weights = module(x), {n: p.detach().clone() for n, p in module.qkv.named_parameters()}
    module.qkv.to("meta")

    def load(layer: nn.Module, _: object) -> None:
        for name, value in weights.items():
            setattr(layer, name, nn.Parameter(value))

    module.qkv.register_forward_pre_hook(load)
    close(module(x), expected)


def test_without_torchs_private_names_every_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = embedded()
    expected, other = module(x), flipped(module)(x)
    monkeypatch.delattr(nn.modules.module, "_has_any_global_hook")
    close(module(x), expected)
    module.qkv.register_forward_hook(lambda _, __, out: out.flip(-1))
    close(module(x), other)


def test_a_bare_layer_projects_each_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an embedding as many products as without: q and k of x + e, v of x."""
    module, x = embedded()
    products = []
    linear = nn.functional.linear

    def counted(y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        products.append(weight.numel())
        return linear(y, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    module(x)
    assert sum(products) == 4 * DIM * DIM


@pytest.mark.compiled
@pytest.mark.parametrize("hooked", [False, True])
def test_in_a_graph(hooked: bool) -> None:
    module, x = embedded()
    if hooked:
        module.qkv.register_forward_hook(lambda _, __, out: out.flip(-1))
    close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
