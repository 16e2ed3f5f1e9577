"""FIERY's temporal model: order, names and sizes, and the original's composition of torch's own layers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from fiery import MAP, Published, frames, shaken
from near import apart
from torch import nn

from locant.nn.temporal import TemporalModel

MODELS: dict[str, Callable[[], TemporalModel]] = {
    "plain": lambda: TemporalModel(4, 3, MAP, start_out_channels=6),
    "spatial": lambda: TemporalModel(
        4, 3, MAP, start_out_channels=4, extra_in_channels=2, n_spatial_layers_between_temporal_layers=2
    ),
    "no-pyramid": lambda: TemporalModel(4, 4, MAP, start_out_channels=4, use_pyramid_pooling=False),
}


@pytest.mark.row(34)
@pytest.mark.parametrize("name", MODELS)
def test_output_t_depends_on_exactly_its_receptive_field(name: str) -> None:
    """Each frame is changed in turn; an output changes if, and only if, the frame lies among its rf."""
    model = shaken(MODELS[name]())
    for unit in model.modules():
        if isinstance(unit, nn.BatchNorm3d):
            unit.bias.data.fill_(9.0)  # little is cut by ReLU
    field, time = model.receptive_field, 7
    x = frames(1, time, 4, *MAP)
    out = model(x)
    assert out.shape == (1, time - field + 1, model.out_channels, *MAP)
    for frame in range(time):
        moved = x.clone()
        moved[:, frame] += 1.0
        changed = (model(moved) != out).flatten(2).any(-1)[0].tolist()
        assert changed == [t <= frame <= t + field - 1 for t in range(time - field + 1)]


@pytest.mark.row(34)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_model_is_its_composition(name: str, training: bool, parity) -> None:
    model = shaken(MODELS[name]()).train(training)
    x = frames(2, 5, 4, *MAP)
    shape = None if name == "no-pyramid" else MAP
    expected = Published(dict(model.state_dict()), training).model(x, model.receptive_field, shape)
    limit = 1e-10 * max(1.0, float(expected.abs().max()))
    parity(34, "torch Conv3d, BatchNorm3d, AvgPool3d in the published order", apart(model(x), expected), limit)


def published_names(blocks: list[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of temporal blocks (in, out) without spatial layers, as the original's checkpoints have them."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(at: str, channels: int) -> None:
        found.update({f"{at}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")})
        found[f"{at}.num_batches_tracked"] = ()

    def unit(at: str, out: int, into: int, kernel: tuple[int, ...] = (1, 1, 1)) -> None:
        found[f"{at}.conv.weight"] = (out, into, *kernel)
        norm(f"{at}.norm", out)

    for i, (into, out) in enumerate(blocks):
        half, third = into // 2, into // 3
        for path, kernel in (("0", (2, 3, 3)), ("1", (1, 3, 3))):
            unit(f"model.{i}.convolution_paths.{path}.0", half, into)
            unit(f"model.{i}.convolution_paths.{path}.1", half, half, kernel)
        unit(f"model.{i}.convolution_paths.2", half, into)
        unit(f"model.{i}.pyramid_pooling.features.0.conv_bn_relu", third, into)
        unit(f"model.{i}.aggregation.0", out, 3 * half + third)
        if into != out:
            found[f"model.{i}.projection.0.weight"] = (out, into, 1, 1, 1)
            norm(f"model.{i}.projection.1", out)
    return found


@pytest.mark.row(34)
@pytest.mark.row(54)
def test_names_shapes_and_the_number_of_parameters_are_published() -> None:
    model = TemporalModel(70, 3, (200, 200))
    assert sum(p.numel() for p in model.parameters()) == 98_473
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == published_names([(70, 64), (64, 64)])
    # as the specification writes them out
    assert found["model.0.convolution_paths.0.1.conv.weight"] == (35, 35, 2, 3, 3)
    assert found["model.0.pyramid_pooling.features.0.conv_bn_relu.conv.weight"] == (23, 70, 1, 1, 1)
    assert found["model.0.aggregation.0.conv.weight"] == (64, 128, 1, 1, 1)
    assert found["model.1.aggregation.0.conv.weight"] == (64, 117, 1, 1, 1)
    assert model.out_channels == 64


@pytest.mark.row(34)
def test_temporal_and_spatial_blocks_are_counted_together() -> None:
    model = MODELS["spatial"]()
    kinds = [type(block).__name__ for block in model.model]
    assert kinds == ["TemporalBlock", "Bottleneck3D", "Bottleneck3D"] * 2
    assert "model.1.layers.conv_down_project.conv.weight" in model.state_dict()
    assert "model.3.projection.0.weight" in model.state_dict()  # 4 → 6 channels
    assert model.out_channels == 6


@pytest.mark.row(34)
def test_a_receptive_field_of_one_is_the_identity() -> None:
    model = TemporalModel(5, 1, MAP)
    x = torch.randn(2, 3, 5, 7, 7)
    assert torch.equal(model(x), x)
    assert (model.out_channels, len(list(model.parameters()))) == (5, 0)


@pytest.mark.row(34)
@pytest.mark.plain
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 2, 4, *MAP), r"at least receptive_field=3 frames; got 2. Give more frames.*receptive_field=2"),
        ((1, 0, 4, *MAP), r"got 0.*receptive_field=1"),
        ((1, 4, 3, *MAP), r"`x` must be \[batch, time, 4, height, width\]; got \[1, 4, 3, 4, 6\].*after time"),
        ((4, 3, *MAP), r"`x` must be"),
    ],
)
def test_clips_that_do_not_fit(shape: tuple[int, ...], sentence: str) -> None:
    """Published: a clip that is too short gives an empty one."""
    with pytest.raises(ValueError, match=sentence):
        MODELS["plain"]()(torch.randn(shape))


@pytest.mark.row(34)
@pytest.mark.plain
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"receptive_field": 0}, "`receptive_field` of at least 1; got 0. FIERY has"),
        ({"in_channels": 0}, "`in_channels` of at least 1; got 0"),
        ({"in_channels": 5}, "even number of channels, at least 4.*got 5. Use 6"),
        ({"start_out_channels": 7, "receptive_field": 3}, "got 7. Use 8"),
        ({"extra_in_channels": 1, "receptive_field": 4}, "got 7. Use 8"),
        ({"extra_in_channels": -2}, "`extra_in_channels` of at least 0; got -2"),
        ({"input_shape": (0, 3)}, "`input_shape` of at least 1; got 0"),
        ({"n_spatial_layers_between_temporal_layers": -1}, "of at least 0; got -1"),
        ({"pool": "mean"}, "one of 'fixed', 'cells', 'whole'; got 'mean'"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, object], sentence: str) -> None:
    given = {"in_channels": 4, "receptive_field": 2, "input_shape": MAP, "start_out_channels": 6} | change
    with pytest.raises(ValueError, match=sentence):
        TemporalModel(**given)


@pytest.mark.row(56)
def test_nothing_is_dilated_and_channels_come_after_time() -> None:
    """A source text says: dilated convolutions shorten the clip, and channels come before time. Neither holds."""
    model = shaken(MODELS["plain"]())
    assert {conv.dilation for conv in model.modules() if isinstance(conv, nn.Conv3d)} == {(1, 1, 1)}
    x = frames(1, 5, 4, *MAP)
    whole = model.model(x.transpose(1, 2))
    assert whole.shape[2] == 5  # time is kept; the cut makes 3 of 5
    assert torch.equal(model(x), whole.transpose(1, 2)[:, 2:])
    with pytest.raises(ValueError, match="Channels come after time"):
        model(frames(1, 4, 5, *MAP))


# --- what a module survives ------------------------------------------------------------------------------------------


@pytest.mark.row(53)
def test_gradients_are_those_of_differences() -> None:
    model = TemporalModel(4, 2, (2, 2), start_out_channels=4).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    x = frames(2, 3, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(model, x, atol=1e-6)


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_stay_near_the_exact_result(dtype: torch.dtype) -> None:
    """Against float64 on the same rounded numbers, beside the plain composition in that dtype."""
    model = shaken(MODELS["spatial"](), dtype)
    x = frames(2, 5, 4, *MAP, dtype=dtype)
    exact = copy.deepcopy(model).double()(x.double())
    out = model(x)
    assert out.dtype == dtype
    assert bool(out.isfinite().all())
    low = apart(Published(dict(model.state_dict())).model(x, 3, MAP).double(), exact)
    rounded = exact.to(dtype)
    beside = 2 * apart((rounded + 0.3 - 0.3).double(), rounded.double())
    limit = max(2 * low, 1e-5 * float(exact.detach().abs().max())) if dtype == torch.float32 else 2 * low + beside
    assert apart(out.double(), exact) <= limit


@pytest.mark.row(54)
def test_copies_and_files_compute_the_same() -> None:
    model = shaken(MODELS["spatial"]())
    x = frames(2, 4, 4, *MAP)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = MODELS["spatial"]().double().eval()
    assert apart(other(x), expected) > 0.01
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), expected)


def test_autocast_computes_and_trains() -> None:
    model = MODELS["plain"]().train()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 4, 4, *MAP)).float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.row(55)
@pytest.mark.compiled
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiled_it_is_the_same(training: bool) -> None:
    model = shaken(MODELS["spatial"]()).train(training)
    x, target = frames(2, 5, 4, *MAP).requires_grad_(), None
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    results = []
    for each in (compiled, model):
        out = each(x)
        target = torch.randn_like(out) if target is None else target
        results.append((out, torch.autograd.grad((out * target).sum(), x)[0]))
    for found, expected in zip(*results, strict=True):
        assert apart(found, expected) <= 1e-10 * max(1.0, float(expected.detach().abs().max()))
