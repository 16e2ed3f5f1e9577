"""Causal convolutions, the pyramid and FIERY's blocks: by formula, closed form, and the original's composition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fiery import MAP, Published, frames, shaken, under
from near import apart
from torch import nn
from torch.nn import functional as F

from locant.nn.causal import Bottleneck3D, CausalConv3d, PyramidPooling, TemporalBlock
from locant.nn.temporal import TemporalModel

# --- causal convolutions ---------------------------------------------------------------------------------------------

KERNELS = [((2, 3, 3), (1, 1, 1)), ((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 1, 1)), ((2, 3, 5), (3, 2, 1))]


@pytest.mark.row(31)
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_a_convolution_reads_its_past_alone(kernel: tuple[int, int, int], dilation: tuple[int, int, int]) -> None:
    """Frame 4 of 8 changes: the outputs that change are 4, 4 + d, … 4 + (k - 1) d, to the last bit."""
    module = shaken(CausalConv3d(3, 5, kernel, dilation=dilation))
    module.norm.bias.data.fill_(9.0)  # no output is cut by ReLU
    x = frames(2, 3, 8, 5, 6)
    moved = x.clone()
    moved[:, :, 4] += 0.1 * torch.rand(2, 3, 5, 6, dtype=x.dtype)
    changed = (module(moved) != module(x)).flatten(3).any(-1).any(0).any(0)
    expected = {4 + n * dilation[0] for n in range(kernel[0])}
    assert {t for t in range(8) if changed[t]} == {t for t in expected if t < 8}


@pytest.mark.row(31)
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_a_convolution_by_its_formula(kernel: tuple[int, int, int], dilation: tuple[int, int, int], parity) -> None:
    """y[t] = relu(norm(Σ_k conv_k(x[t - (kt - 1 - k) d]))), 2-D convolutions of torch, frames before the first zero."""
    module = shaken(CausalConv3d(3, 5, kernel, dilation=dilation))
    x = frames(2, 3, 6, 5, 6)
    weight, norm = module.conv.weight, module.norm
    edge = tuple((k - 1) * d // 2 for k, d in zip(kernel[1:], dilation[1:], strict=True))
    out = torch.zeros(2, 5, 6, 5, 6, dtype=x.dtype)
    for t in range(6):
        for k in range(kernel[0]):
            past = t - (kernel[0] - 1 - k) * dilation[0]
            if past >= 0:
                out[:, :, t] += F.conv2d(x[:, :, past], weight[:, :, k], padding=edge, dilation=dilation[1:])
    by_channel = [v[:, None, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    mean, var, scale, bias = by_channel
    expected = torch.relu((out - mean) / torch.sqrt(var + 1e-5) * scale + bias)
    parity(31, "torch conv2d, frame by frame", apart(module(x), expected), 1e-10)


@pytest.mark.row(31)
@pytest.mark.plain
@pytest.mark.parametrize(
    ("kernel", "dilation", "sentence"),
    [
        ((2, 2, 3), (1, 1, 1), r"has a middle over height and width.*got \(2, 2, 3\).*Use odd sizes"),
        ((2, 3, 4), (1, 1, 1), r"got \(2, 3, 4\)"),
        ((2, 4, 3), (1, 3, 1), r"dilation \(1, 3, 1\)"),
        ((0, 3, 3), (1, 1, 1), r"at least 1; got 4 and 4 channels, \(0, 3, 3\)"),
        ((2, 3, 3), (0, 1, 1), r"at least 1"),
    ],
)
def test_kernels_that_would_shrink_the_map(kernel, dilation, sentence) -> None:
    """The published code returns smaller maps without a word."""
    with pytest.raises(ValueError, match=sentence):
        CausalConv3d(4, 4, kernel, dilation=dilation)


def test_an_even_kernel_may_be_made_up_for() -> None:
    """(k - 1) · d = 2: the map keeps its size, so it is allowed."""
    assert CausalConv3d(2, 3, (1, 2, 3), dilation=(1, 2, 1))(torch.randn(1, 2, 3, 4, 5)).shape == (1, 3, 3, 4, 5)


# --- pyramid pooling -------------------------------------------------------------------------------------------------


def plain_pyramid(channels: int, pool: str = "fixed", shape: tuple[int, int] = MAP) -> PyramidPooling:
    """Its convolution and norm changed to the identity, for what is positive."""
    module = PyramidPooling(channels, channels, shape, pool=pool).double().eval()
    unit = module.features[0].conv_bn_relu
    unit.conv.weight.data.copy_(torch.eye(channels)[..., None, None, None])
    unit.norm.eps = 1e-30
    return module


@pytest.mark.row(33)
def test_the_pyramid_is_the_mean_of_two_frames_and_all_of_space() -> None:
    """Frames that are constant: out_t = (c_t + c_{t-1}) / 2, and out_0 = c_0. The present frame takes part."""
    levels = torch.tensor([1.0, 2.0, 7.0, 4.0], dtype=torch.float64)
    x = levels[None, None, :, None, None].expand(2, 3, 4, *MAP)
    golden = torch.tensor([1.0, 1.5, 4.5, 5.5], dtype=torch.float64)
    assert torch.equal(plain_pyramid(3)(x), golden[None, None, :, None, None].expand(2, 3, 4, *MAP))


@pytest.mark.row(33)
def test_the_pyramid_takes_space_as_a_whole() -> None:
    x = torch.rand(2, 3, 5, *MAP, dtype=torch.float64)
    out = plain_pyramid(3)(x)
    for b, c, t in ((0, 0, 0), (1, 2, 3), (0, 1, 4)):
        seen = x[b, c, max(0, t - 1) : t + 1]
        mean = sum(float(n) for n in seen.flatten()) / seen.numel()
        assert apart(out[b, c, t], torch.full_like(out[b, c, t], mean)) <= 1e-12


@pytest.mark.row(33)
def test_larger_maps_mean_what_was_named() -> None:
    """8 × 6 with a pyramid for 4 × 6: two cells as published, or one mean; frame 0 has rows of 0 above, of 1 below."""
    x = torch.zeros(1, 1, 1, 8, 6, dtype=torch.float64)
    x[..., 4:, :] = 1.0
    assert torch.equal(plain_pyramid(1, "whole")(x), torch.full_like(x, 0.5))
    drawn = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]  # two cells, drawn out over eight rows
    assert torch.equal(plain_pyramid(1, "cells")(x)[0, 0, 0, :, 2], torch.tensor(drawn, dtype=torch.float64))
    same = torch.rand(1, 1, 3, *MAP, dtype=torch.float64)
    assert torch.equal(plain_pyramid(1, "whole")(same), plain_pyramid(1)(same))
    smaller = torch.rand(1, 1, 1, 3, 3, dtype=torch.float64)
    assert apart(plain_pyramid(1, "whole")(smaller), smaller.mean().expand_as(smaller)) <= 1e-12


@pytest.mark.row(33)
@pytest.mark.parametrize("size", [MAP, (8, 6), (4, 18), (8, 12)])
def test_the_pyramid_is_torchs_pooling(size: tuple[int, int], parity) -> None:
    module = shaken(PyramidPooling(6, 2, MAP, pool="cells"))
    x = frames(2, 6, 4, *size)
    for training in (False, True):
        module.train(training)
        expected = Published(under("p", module), training).pyramid("p", x, MAP)
        parity(33, "torch AvgPool3d, padding not counted", apart(module(x), expected), 1e-10)


@pytest.mark.row(33)
def test_training_counts_the_step_that_is_dropped() -> None:
    """Published, and kept: with frames 2 and 4 the statistics hold the means 2, 3 and 4, the last of them dropped."""
    module = plain_pyramid(1).train()
    x = torch.tensor([2.0, 4.0], dtype=torch.float64)[None, None, :, None, None].expand(1, 1, 2, *MAP)
    out = module(x)
    norm = module.features[0].conv_bn_relu.norm
    assert float(norm.running_mean) == pytest.approx(0.1 * 3.0)
    assert float(norm.running_var) == pytest.approx(0.9 + 0.1 * 1.0)  # of 2, 3 and 4
    assert out.shape == x.shape
    module.eval()(x)
    assert float(norm.running_mean) == pytest.approx(0.1 * 3.0)


@pytest.mark.row(33)
@pytest.mark.plain
@pytest.mark.parametrize(
    ("pool", "size", "sentence"),
    [
        ("fixed", (3, 6), r"needs maps of 4 × 6, its `input_shape`; got 3 × 6. Build it with"),
        ("fixed", (8, 12), r'needs maps of 4 × 6.*got 8 × 12.*pool="whole".*pool="cells"'),
        ("cells", (3, 6), r"multiples of 4 × 6.*got 3 × 6"),
        ("cells", (8, 7), r"multiples of 4 × 6.*got 8 × 7"),
    ],
)
def test_maps_of_another_size(pool: str, size: tuple[int, int], sentence: str) -> None:
    """Published: torch's error for smaller ones, and a changed meaning without a word for larger ones."""
    model = TemporalModel(4, 2, MAP, start_out_channels=4, pool=pool)
    with pytest.raises(ValueError, match=sentence):
        model(torch.randn(1, 2, 4, *size))


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.row(32)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shape", [MAP, None], ids=["pyramid", "no-pyramid"])
@pytest.mark.parametrize("out_channels", [8, 6])
def test_a_block_is_its_composition(out_channels: int, shape: tuple[int, int] | None, training: bool, parity) -> None:
    """Values, every gradient, and what training writes into the statistics."""
    block = shaken(TemporalBlock(8, out_channels, shape=shape)).train(training)
    assert (block.projection is None) == (out_channels == 8)
    x, target = frames(2, 8, 4, *MAP).requires_grad_(), frames(2, out_channels, 4, *MAP)
    named = {"x": x} | dict(block.named_parameters())
    published = Published(under("b", block), training)
    expected = published.temporal("b", x, shape)
    wanted = torch.autograd.grad((expected * target).sum(), list(named.values()))
    found = block(x)
    gradients = torch.autograd.grad((found * target).sum(), list(named.values()))
    parity(32, "torch Conv3d, BatchNorm3d, AvgPool3d in the published order", apart(found, expected), 1e-10)
    assert len(published.after) == 2 * sum(isinstance(module, nn.BatchNorm3d) for module in block.modules())
    for name, statistic in published.after.items():
        assert apart(block.state_dict()[name.removeprefix("b.")], statistic) <= 1e-12, name
    for name, mine, theirs in zip(named, gradients, wanted, strict=True):
        assert apart(mine, theirs) <= 1e-10 * max(1.0, float(theirs.abs().max())), name


@pytest.mark.row(32)
@pytest.mark.parametrize("out_channels", [8, 6])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (2, 3, 3)])
def test_a_bottleneck_is_its_composition(kernel: tuple[int, int, int], out_channels: int, parity) -> None:
    block = shaken(Bottleneck3D(8, out_channels, kernel))
    x = frames(2, 8, 4, *MAP)
    expected = Published(under("b", block)).bottleneck("b", x)
    parity(32, "torch Conv3d and BatchNorm3d", apart(block(x), expected), 1e-10)


@pytest.mark.row(32)
def test_there_is_no_activation_after_the_sum() -> None:
    out = shaken(TemporalBlock(8, 8))(frames(1, 8, 2, *MAP))
    assert float(out.detach().min()) < 0


@pytest.mark.row(32)
@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TemporalBlock(7, 8), "even number of channels, at least 2.*got 7. Use 8"),
        (lambda: TemporalBlock(2, 8, shape=MAP), "at least 4.*got 2. Use 4"),
        (lambda: TemporalBlock(0, 8), "got 0. Use 2"),
        (lambda: Bottleneck3D(5, 8), "Bottleneck3D needs an even number.*got 5. Use 6"),
        (lambda: PyramidPooling(6, 2, MAP, pool="mean"), "one of 'fixed', 'cells', 'whole'; got 'mean'. Name one"),
    ],
)
def test_channels_that_do_not_halve(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
