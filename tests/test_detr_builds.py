"""DETR as a module: names, sizes, starts, copies, dtypes, graphs, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from detrs import SMALL, padded, small
from near import close
from torch import Tensor, nn

from locant import Grid, Learned, MaskedSine, Padding
from locant.models.detr import DETR, detr
from locant.models.detr_layers import Transformer
from locant.positions.learned_axes import LearnedAxial


@pytest.mark.row(54)
def test_the_names_are_the_original_ones_but_for_projections_and_perceptrons() -> None:
    model = detr(**{**SMALL, "encoder_layers": 1, "decoder_layers": 1}, position="learned")
    projections = [f"{part}.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")]
    half = "transformer.{}.layers.0."
    names = [half.format(where) + "self_attn." + p for where in ("encoder", "decoder") for p in projections]
    names += [half.format("decoder") + "multihead_attn." + p for p in projections]
    for where, norms in (("encoder", 2), ("decoder", 3)):
        parts = ["mlp.fc1", "mlp.fc2", *(f"norm{i + 1}" for i in range(norms))]
        names += [f"{half.format(where)}{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    parts = ["transformer.decoder.norm", "input_proj", "class_embed", *(f"bbox_embed.layers.{i}" for i in range(3))]
    names += [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    names += ["query_embed.weight", "position.row", "position.column"]
    assert sorted(model.state_dict()) == sorted(names)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not any("position" in name for name in detr(**SMALL).state_dict()), "sine vectors are computed, not kept"
    assert "transformer.encoder.norm.weight" in detr(**SMALL, pre_norm=True).state_dict()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_detr_r50() -> None:
    """17,363,456 in the transformer: those of torch's own layers and one more norm. 18,069,856 with the heads.

    The paper's table 2 counts what a ResNet-50 trains beside it, 23,232,512 (its convolutions but for the first and
    those of its first stage, norms frozen): 33.4, 37.4, 41.3 and 49.2 million for 0, 3, 6 and 12 encoder layers.
    """
    with torch.device("meta"):
        models = {layers: detr(encoder_layers=layers) for layers in (0, 3, 6, 12)}
        encoder, decoder = nn.TransformerEncoderLayer(256, 8, 2048), nn.TransformerDecoderLayer(256, 8, 2048)
    published = models[6]
    assert count(published.transformer) == 6 * count(encoder) + 6 * count(decoder) + 2 * 256 == 17_363_456
    heads = (2048 + 1) * 256 + 100 * 256 + 257 * 92 + 2 * 257 * 256 + 257 * 4
    assert count(published) == 17_363_456 + heads == 18_069_856
    millions = [round((count(model) + 23_232_512) / 1e6, 1) for model in models.values()]
    assert millions == [33.4, 37.4, 41.3, 49.2]
    assert published.query_embed.weight.shape == (100, 256)
    assert published.input_proj.weight.shape == (256, 2048, 1, 1)


@pytest.mark.row(56)
def test_256_channels_are_128_of_each_axis() -> None:
    """Against the text: 256 is what row and column have together."""
    position = detr().position
    assert (position.dim, position.normalize) == (256, True)
    rows = position(Grid(3, 4)).unflatten(0, (3, 4))
    assert bool((rows[:, :1, :128] == rows[..., :128]).all())
    assert bool((rows[:1, :, 128:] == rows[..., 128:]).all())


def test_matrices_start_xavier_uniform_and_biases_of_attention_at_zero() -> None:
    """q, k and v as one matrix [3 dim, dim]; heads, query_embed and input_proj as torch starts them."""
    model = detr(encoder_layers=1, decoder_layers=1, channels=64, hidden=512)
    for name, parameter in model.transformer.named_parameters():
        if parameter.ndim == 2:
            out, into = parameter.shape
            out = 3 * out if name.split(".")[-2] in "qkv" else out
            bound = math.sqrt(6 / (into + out))
            assert 0.99 * bound < float(parameter.detach().abs().max()) <= bound, name
            spread = float(parameter.detach().std())
            assert abs(spread - bound / 3**0.5) < 0.02 * bound, name  # over 65,536 draws: 0.001 at most
        elif "attn" in name:
            assert not parameter.any(), name
    assert abs(float(model.query_embed.weight.detach().std()) - 1) < 5 / (2 * 25600) ** 0.5


def test_on_the_meta_device_it_says_its_shapes() -> None:
    with torch.device("meta"):
        model = detr(position="learned")
        out = model(torch.empty(2, 2048, 25, 34), Padding(torch.empty(2, 800, 1066, dtype=torch.bool)))
    assert out["pred_logits"].shape == (2, 100, 92)
    assert out["pred_boxes"].device.type == "meta"


def test_an_encoder_of_no_layers() -> None:
    model = small(encoder_layers=0)
    features = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    _, memory = model.states(features)
    close(memory, model.input_proj(features).flatten(2).transpose(1, 2))


def test_any_embedding_may_say_where_cells_are() -> None:
    position = Learned(Grid(4, 5), 8)
    options = {"encoder_layers": 1, "decoder_layers": 1, "hidden": 12, "dropout": 0.0}
    model = DETR(Transformer(8, 2, **options), position, channels=5, num_classes=3, num_queries=4).double()
    features = torch.randn(1, 5, 4, 5, dtype=torch.float64)
    before = model(features)["pred_logits"]
    nn.init.normal_(position.table)
    assert float((model(features)["pred_logits"] - before).detach().abs().max()) > 1e-3


# What it survives.


def test_dropout_acts_in_training_alone() -> None:
    model = small(dropout=0.3)
    features = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    assert not torch.equal(model(features)["pred_boxes"], model(features)["pred_boxes"])
    assert torch.equal(model.eval()(features)["pred_boxes"], model(features)["pred_boxes"])


@pytest.mark.row(53)
def test_gradcheck() -> None:
    """By the features, the tables of positions and the object queries; parity holds the other gradients."""
    model = small(dim=4, hidden=5, num_queries=2, encoder_layers=1, decoder_layers=1, position="learned")
    model.position = LearnedAxial(Grid(2, 2), 4).double()
    names, values = ("position.row", "position.column", "query_embed.weight"), [*model.position.parameters()]
    features = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    mask = Padding(torch.tensor([[[True, True], [True, True]], [[True, False], [True, False]]]))

    def call(features: Tensor, *values: Tensor) -> Tensor:
        out = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (features, mask))
        return torch.cat([out["pred_logits"], out["pred_boxes"]], -1)

    assert torch.autograd.gradcheck(call, (features, *values, model.query_embed.weight), fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_exact_result(dtype: torch.dtype) -> None:
    """The weights rounded to the dtype, computed in float64, against the same computed in the dtype."""
    model = small().to(dtype)
    _, whole, valid = padded()
    whole, mask = whole.to(dtype), Padding(valid)
    out = model(whole, mask)["pred_boxes"]
    assert out.dtype == dtype
    exact = copy.deepcopy(model).double()(whole.double(), mask)["pred_boxes"]
    # a box is in (0, 1); behind it lie 5 layers and 3 more, some 40 roundings of numbers no larger than a few
    assert float((out.double() - exact).detach().abs().max()) <= 40 * torch.finfo(dtype).eps


@pytest.mark.row(53)
def test_autocast_trains() -> None:
    model = small().float()
    _, whole, valid = padded()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(whole.float(), Padding(valid))
    expected = model(whole.float(), Padding(valid))["pred_boxes"]
    assert float((out["pred_boxes"].float() - expected).detach().abs().max()) <= 40 * torch.finfo(torch.bfloat16).eps
    sum(one["pred_boxes"].float().sum() for one in (out, *out["aux_outputs"])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.row(54)
def test_copies_and_files_compute_the_same() -> None:
    model = small(position="learned")
    features = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    expected = model(features)["pred_boxes"]
    copied = copy.deepcopy(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))(features)["pred_boxes"], expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(copied(features)["pred_boxes"], expected)


@pytest.mark.row(55)
@pytest.mark.compiled
def test_compiled_whole_it_computes_and_trains_the_same() -> None:
    model = small(encoder_layers=1, decoder_layers=1)
    _, whole, valid = padded()
    pixels = valid.repeat_interleave(8, 1).repeat_interleave(8, 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out, expected = (m(whole, Padding(pixels))["pred_boxes"] for m in (compiled, model))
    close(out, expected)
    leaves = [p for p in model.parameters() if p is not model.class_embed.weight and p is not model.class_embed.bias]
    found, wanted = (torch.autograd.grad(y.square().sum(), leaves) for y in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        close(a, b)


@pytest.mark.row(55)
@pytest.mark.compiled
def test_it_exports() -> None:
    model = small(encoder_layers=1, decoder_layers=2).eval()
    _, whole, valid = padded()
    exported = torch.export.export(model, (whole, Padding(valid)))
    close(exported.module()(whole, Padding(valid))["pred_boxes"], model(whole, Padding(valid))["pred_boxes"])


# What is refused.


def test_learned_positions_end_where_their_tables_end() -> None:
    model = detr(**SMALL, position="learned").double()
    wide = torch.randn(1, 5, 1, 51, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"has 50 entries for the columns .* asks for 51, .*Use `resized\(grid\)`"):
        model(wide)
    model.position = model.position.resized(Grid(50, 60))
    assert model(wide)["pred_boxes"].shape == (1, 4, 4)


@pytest.mark.plain
@pytest.mark.parametrize(
    "mask", [torch.ones(3, 4, 5, dtype=torch.bool), torch.zeros(3, 20), "valid"], ids=["bool", "float", "word"]
)
def test_a_mask_must_say_its_sense(mask: object) -> None:
    with pytest.raises(ValueError, match=r"a `mask` that says its sense, a Padding; got .*from_key_padding_mask"):
        small()(torch.randn(3, 5, 4, 5, dtype=torch.float64), mask)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 3, 5), (3, 4, 4), (4, 128, 160)])
def test_a_mask_must_fit_the_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features of 3 × 4 × 5 on cpu needs a `mask` .* more pixels; got .* Give"):
        small()(torch.randn(3, 5, 4, 5, dtype=torch.float64), Padding(torch.ones(shape, dtype=torch.bool)))


def test_a_mask_must_lie_where_the_features_do() -> None:
    away = Padding(torch.ones(3, 4, 5, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match=r"on cpu needs a `mask` .* got \[3, 4, 5\] on meta"):
        small()(torch.randn(3, 5, 4, 5, dtype=torch.float64), away)


@pytest.mark.parametrize("shape", [(3, 19), (3, 1, 128, 160)])
def test_a_mask_must_have_rows_and_columns(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Padding on Grid\(4, 5\) needs `valid` of shape"):
        small()(torch.randn(3, 5, 4, 5, dtype=torch.float64), Padding(torch.ones(shape, dtype=torch.bool)))


@pytest.mark.plain
@pytest.mark.parametrize("shape", [(5, 4, 5), (1, 4, 5, 5), (1, 6, 4, 5)])
def test_features_must_be_a_map_of_the_right_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"DETR needs `features` \[batch, 5, height, width\]; got .* channels="):
        small()(torch.randn(shape, dtype=torch.float64))


def test_features_must_be_of_the_weights_dtype() -> None:
    with pytest.raises(ValueError, match=r"`features` must be torch.float64 on cpu, .* got torch.float32"):
        small()(torch.randn(1, 5, 4, 5))


def test_an_embedding_must_fit_the_transformer() -> None:
    model = DETR(Transformer(8, 2, encoder_layers=1, decoder_layers=1, hidden=4), MaskedSine(12), channels=5)
    with pytest.raises(ValueError, match=r"MaskedSine must give vectors that fit .* Build it with dim=8"):
        model(torch.randn(1, 5, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "v4"}, r"detr needs a `position` out of 'sine', 'learned'; got 'v4'. For another"),
        ({"channels": 0}, r"`channels`, `num_classes` and `num_queries` of at least 1; got channels=0"),
        ({"num_classes": 0}, r"at least 1; got .*num_classes=0"),
        ({"num_queries": 0}, r"at least 1; got .*num_queries=0. For COCO"),
        ({"encoder_layers": -1}, r"`encoder_layers` of at least 0 .* got encoder_layers=-1"),
        ({"decoder_layers": 0}, r"`decoder_layers` of at least 1; got .*decoder_layers=0. DETR uses 6"),
        ({"hidden": 0}, r"EncoderLayer needs a `hidden` of at least 1; got 0"),
        ({"dropout": 1.0}, r"EncoderLayer needs `dropout` of at least 0 and below 1; got 1.0"),
        ({"heads": 3}, r"a `dim` that its `heads` divide, .* got dim=8, heads=3"),
        ({"dim": 6}, r"MaskedSine shares `dim` out to sin and cos of 2 axes, .* multiple of 4; got 6"),
    ],
)
def test_sizes_must_make_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detr(**{**SMALL, **options})(torch.randn(1, 5, 2, 2))
