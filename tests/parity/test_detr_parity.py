"""DETR on the weights of transformers and torch: the whole model, its layers, its positions, one step of training."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest
import torch
from redrawing import redraw
from torch import Tensor, nn

from locant import Grid, MaskedSine, Padding, checkpoints
from locant.models.detr import DETR, detr
from locant.models.detr_layers import DecoderLayer, EncoderLayer
from locant.nn import MultiHeadAttention
from locant.positions.learned_axes import LearnedAxial

Parity = Callable[[int, str, float, float], None]

KINDS = {"DetrForObjectDetection": "transformers", "TableTransformerForObjectDetection": "transformers 4"}
DIM, HEADS, HIDDEN, LAYERS, QUERIES, CLASSES = 32, 4, 40, 3, 7, 5
MOST = 1e-5
EXACT = 1e-10


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def peer(transformers: ModuleType, kind: str, position: str = "sine") -> nn.Module:
    """A small one of transformers' with a small backbone of its own and everything drawn at random."""
    backbone = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    model = getattr(transformers, kind)
    config = model.config_class(
        backbone_config=backbone, use_timm_backbone=False, position_embedding_type=position, d_model=DIM,
        encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, num_queries=QUERIES, num_labels=CLASSES,
        dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return redraw(model(config)).eval()


def ours(kind: str, position: str = "sine") -> DETR:
    """The same behind the backbone; Table Transformer is DETR with its norms first."""
    return detr(
        channels=6, num_classes=CLASSES, dim=DIM, heads=HEADS, encoder_layers=LAYERS, decoder_layers=LAYERS,
        hidden=HIDDEN, num_queries=QUERIES, dropout=0.0, position=position, pre_norm=kind.startswith("Table"),
    ).eval()  # fmt: skip


def carried(theirs: nn.Module, model: DETR, layout: str) -> DETR:
    """Strictly: of theirs the backbone alone is left, of ours nothing is."""
    report = checkpoints.load(model, theirs.state_dict())
    assert report.layout == layout
    assert all("backbone" in name and "position" not in name for name in report.left)
    assert len(report.left) > 20
    return model


def pictures(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two of different sizes, padded, and their pixel_mask (1 = real)."""
    pixels, real = torch.randn(2, 3, 60, 88, dtype=dtype), torch.zeros(2, 60, 88, dtype=torch.long)
    real[0, :60, :50], real[1, :41, :88] = 1, 1
    return pixels * real[:, None], real


def features_of(theirs: nn.Module, pixels: Tensor, real: Tensor) -> Tensor:
    """What its backbone gives."""
    found = theirs.model.backbone(pixels, real)
    last = found[0][-1] if isinstance(found, tuple) else found[-1]  # Table Transformer's gives positions as well
    return last[0].detach()


CASES = pytest.mark.parametrize("kind", KINDS)
POSITIONS = pytest.mark.parametrize("position", ["sine", "learned"])


@pytest.mark.row(28)
@pytest.mark.row(29)
@CASES
@POSITIONS
def test_whole_models(transformers: ModuleType, parity: Parity, kind: str, position: str) -> None:
    """Features and pixel masks in, logits and boxes out: encoder, decoder, heads, positions, mask of the cells."""
    theirs = peer(transformers, kind, position)
    model = carried(theirs, ours(kind, position), KINDS[kind])
    pixels, real = pictures()
    expected = theirs(pixels, pixel_mask=real)
    features, mask = features_of(theirs, pixels, real), Padding.from_attention_mask(real)
    out, (_, memory) = model(features, mask), model.states(features, mask)
    name = f"transformers {kind}, {position}"
    parity(28, f"{name}: memory", relative(memory, expected.encoder_last_hidden_state), MOST)
    parity(28, f"{name}: logits", relative(out["pred_logits"], expected.logits), MOST)
    parity(28, f"{name}: boxes", relative(out["pred_boxes"], expected.pred_boxes), MOST)
    inverse = model(features, Padding.from_key_padding_mask(real.bool()))["pred_logits"]
    assert relative(inverse, expected.logits) > 1e-3, "the sense of the mask matters"


@pytest.mark.row(28)
@pytest.mark.parametrize(
    ("kind", "position"),
    [
        ("DetrForObjectDetection", "sine"),
        ("DetrForObjectDetection", "learned"),
        ("TableTransformerForObjectDetection", "learned"),  # its sine vectors are float32 whatever the model is
    ],
)
def test_a_step_of_training(transformers: ModuleType, parity: Parity, kind: str, position: str) -> None:
    """Everything after one step of SGD, in float64, so that nothing but the mathematics can differ."""
    theirs = peer(transformers, kind, position).double()
    model = carried(theirs, ours(kind, position).double(), KINDS[kind])
    pixels, real = pictures(torch.float64)
    features = features_of(theirs, pixels, real)
    theirs.train()
    model.train()
    theirs.model.backbone.eval()
    expected, out = theirs(pixels, pixel_mask=real), model(features, Padding.from_attention_mask(real))
    targets = [torch.randn_like(expected.logits), torch.randn_like(expected.pred_boxes)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for module, found in (
        (theirs, (expected.logits, expected.pred_boxes)),
        (model, (out["pred_logits"], out["pred_boxes"])),
    ):
        sum((f * t).sum() for f, t in zip(found, targets, strict=True)).backward()
        torch.optim.SGD(module.parameters(), lr=0.01).step()
    stepped = dict(carried(theirs, ours(kind, position).double(), KINDS[kind]).named_parameters())
    steps = {name: float((after.detach() - before[name]).abs().max()) for name, after in stepped.items()}
    worst = 0.0
    for name, parameter in model.named_parameters():
        # some gradients cancel, as those of the biases of keys do: a step is measured by itself or by a larger one
        size = max(steps[name], 1e-3 * max(steps.values()))
        worst = max(worst, float((parameter - stepped[name]).detach().abs().max()) / size)
    parity(28, f"transformers {kind}, {position}: a training step (float64)", worst, EXACT)


@pytest.mark.row(28)
def test_layers_of_transformers(transformers: ModuleType, parity: Parity) -> None:
    """One encoder and one decoder layer, every argument given."""
    theirs, model = peer(transformers, "DetrForObjectDetection"), ours("DetrForObjectDetection")
    carried(theirs, model, "transformers")
    x, memory = torch.randn(2, 12, DIM), torch.randn(2, 12, DIM)
    pos, query_pos, y = torch.randn(2, 12, DIM), torch.randn(2, QUERIES, DIM), torch.randn(2, QUERIES, DIM)
    real = torch.arange(12) < torch.tensor([[12], [7]])
    blocked = torch.zeros(2, 1, 1, 12).masked_fill(~real[:, None, None], -torch.inf)
    expected = theirs.model.encoder.layers[1](x, blocked, spatial_position_embeddings=pos)
    found = model.transformer.encoder.layers[1](x, pos, Padding(real))
    parity(28, "transformers DetrEncoderLayer", relative(found, expected), MOST)
    expected = theirs.model.decoder.layers[1](y, None, pos, query_pos, memory, encoder_attention_mask=blocked)
    found = model.transformer.decoder.layers[1](y, memory, query_pos, pos, Padding(real))
    parity(28, "transformers DetrDecoderLayer", relative(found, expected), MOST)


@pytest.mark.row(28)
def test_the_norm_between_layers_is_where_transformers_parts_from_the_original(transformers: ModuleType) -> None:
    """With its `auxiliary_loss` the normalised state goes on, and the last boxes change; ours are those without."""
    theirs = peer(transformers, "DetrForObjectDetection")
    model = carried(theirs, ours("DetrForObjectDetection"), "transformers")
    pixels, real = pictures()
    features, mask = features_of(theirs, pixels, real), Padding.from_attention_mask(real)
    plain = theirs(pixels, pixel_mask=real).logits
    theirs.config.auxiliary_loss = theirs.model.decoder.config.auxiliary_loss = True
    auxiliary = theirs.model(pixels, pixel_mask=real)
    found, _ = model.states(features, mask)
    first = auxiliary.intermediate_hidden_states[0]
    assert relative(found[0], first) <= MOST, "after the first layer both agree"
    assert relative(found[-1], auxiliary.last_hidden_state) > 1e-2
    assert relative(model.class_embed(found[-1]), plain) <= MOST


def torchs(attention: MultiHeadAttention) -> dict[str, Tensor]:
    """The weights of nn.MultiheadAttention."""
    parts = (attention.q, attention.k, attention.v)
    return {
        "in_proj_weight": torch.cat([p.weight for p in parts]),
        "in_proj_bias": torch.cat([p.bias for p in parts]),
        "out_proj.weight": attention.out.weight,
        "out_proj.bias": attention.out.bias,
    }


def as_torchs(layer: EncoderLayer | DecoderLayer) -> dict[str, Tensor]:
    state = {f"self_attn.{name}": value for name, value in torchs(layer.self_attn).items()}
    if isinstance(layer, DecoderLayer):
        state |= {f"multihead_attn.{name}": value for name, value in torchs(layer.multihead_attn).items()}
    for name, value in layer.state_dict().items():
        if "norm" in name or "mlp" in name:
            state[name.replace("mlp.fc", "linear")] = value
    return state


@pytest.mark.row(28)
@pytest.mark.row(30)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_of_torch_without_positions(parity: Parity, pre_norm: bool) -> None:
    """Values and the gradient by the input, in float32; what torch's fast path drops of padded rows is left out."""
    options = {"dim_feedforward": HIDDEN, "dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    real = torch.arange(9) < torch.tensor([[9], [4]])
    x, y = torch.randn(2, 9, DIM, requires_grad=True), torch.randn(2, QUERIES, DIM, requires_grad=True)
    encoder = redraw(EncoderLayer(DIM, HEADS, hidden=HIDDEN, dropout=0.0, pre_norm=pre_norm)).eval()
    decoder = redraw(DecoderLayer(DIM, HEADS, hidden=HIDDEN, dropout=0.0, pre_norm=pre_norm)).eval()
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, **options)
    theirs.load_state_dict(as_torchs(encoder))
    found, expected = encoder(x, None, Padding(real))[real], theirs(x, src_key_padding_mask=~real)[real]
    which = "pre-norm" if pre_norm else "post-norm"
    parity(28, f"nn.TransformerEncoderLayer, {which}", relative(found, expected), MOST)
    weight = torch.randn_like(found)
    by_x = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (found, expected)]
    parity(28, f"nn.TransformerEncoderLayer, {which}: gradient", relative(*by_x), 3 * MOST)
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, **options)
    theirs.load_state_dict(as_torchs(decoder))
    found, expected = decoder(y, x, None, None, Padding(real)), theirs(y, x, memory_key_padding_mask=~real)
    parity(28, f"nn.TransformerDecoderLayer, {which}", relative(found, expected), MOST)
    weight = torch.randn_like(found)
    for name, leaf in (("query", y), ("memory", x)):
        by = [torch.autograd.grad((out * weight).sum(), leaf, retain_graph=True)[0] for out in (found, expected)]
        parity(28, f"nn.TransformerDecoderLayer, {which}: gradient by the {name}", relative(*by), 3 * MOST)


@pytest.mark.row(27)
@pytest.mark.parametrize("model", ["detr", "table_transformer"])
def test_learned_positions(transformers: ModuleType, parity: Parity, model: str) -> None:
    module = import_module(f"transformers.models.{model}.modeling_{model}")
    prefix = {"detr": "Detr", "table_transformer": "TableTransformer"}[model]
    theirs = redraw(getattr(module, f"{prefix}LearnedPositionEmbedding")(16)).eval()
    with torch.no_grad():
        theirs.row_embeddings.weight.normal_()
        theirs.column_embeddings.weight.normal_()
    position = LearnedAxial(Grid(50, 50), 32)
    position.load_state_dict({"row": theirs.row_embeddings.weight, "column": theirs.column_embeddings.weight})
    if model == "detr":
        expected = theirs(shape=torch.Size((1, 3, 6, 9)), device="cpu", dtype=torch.float32)
    else:
        expected = theirs(torch.empty(1, 3, 6, 9))
    found = position(Grid(6, 9)).unflatten(0, (6, 9))
    parity(27, f"transformers {prefix}LearnedPositionEmbedding", relative(found, expected[0].permute(1, 2, 0)), 0.0)


@pytest.mark.row(26)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-4), (torch.bfloat16, 2e-3)])
def test_half_precision_is_wider_than_transformers(
    transformers: ModuleType, parity: Parity, dtype: torch.dtype, bound: float
) -> None:
    """It counts and divides in the dtype of the pictures; here the only rounding is the last."""
    module = import_module("transformers.models.detr.modeling_detr")
    real = torch.zeros(1, 25, 34, dtype=torch.bool)
    real[0, :25, :31] = True
    exact = MaskedSine(256).double().encode(real)
    embedded = {
        "shape": torch.Size((1, 3, 25, 34)), "device": "cpu", "dtype": dtype, "mask": real
    }  # fmt: skip
    theirs = module.DetrSinePositionEmbedding(128, normalize=True)(**embedded).permute(0, 2, 3, 1)
    found = MaskedSine(256).encode(real).to(dtype)
    parity(26, f"the formula in float64, {dtype}", float((found - exact).abs().max()), bound)
    assert float((theirs - exact).abs().max()) > 10 * bound


@pytest.mark.row(28)
@pytest.mark.row(54)
def test_official_names(parity: Parity) -> None:
    """A checkpoint as the original repository saves it, its shapes written out, in and out again."""
    wide, attention = 256, ("self_attn", "multihead_attn")
    shapes: dict[str, tuple[int, ...]] = {}
    for half, kinds, norms in (("encoder", attention[:1], 2), ("decoder", attention, 3)):
        for i in range(6):
            at = f"transformer.{half}.layers.{i}"
            for kind in kinds:
                shapes |= {f"{at}.{kind}.in_proj_weight": (768, 256), f"{at}.{kind}.in_proj_bias": (768,)}
                shapes |= {f"{at}.{kind}.out_proj.weight": (256, 256), f"{at}.{kind}.out_proj.bias": (256,)}
            shapes |= {f"{at}.linear1.weight": (2048, 256), f"{at}.linear1.bias": (2048,)}
            shapes |= {f"{at}.linear2.weight": (256, 2048), f"{at}.linear2.bias": (256,)}
            shapes |= {f"{at}.norm{n + 1}.{part}": (256,) for n in range(norms) for part in ("weight", "bias")}
    shapes |= {"transformer.decoder.norm.weight": (256,), "transformer.decoder.norm.bias": (256,)}
    shapes |= {"query_embed.weight": (100, 256), "input_proj.weight": (256, 2048, 1, 1), "input_proj.bias": (256,)}
    shapes |= {"class_embed.weight": (92, 256), "class_embed.bias": (92,)}
    for i, out in enumerate((wide, wide, 4)):
        shapes |= {f"bbox_embed.layers.{i}.weight": (out, 256), f"bbox_embed.layers.{i}.bias": (out,)}
    shapes |= {"backbone.1.row_embed.weight": (50, 128), "backbone.1.col_embed.weight": (50, 128)}
    official = {name: torch.randn(shape) / 16 for name, shape in shapes.items()}
    backbone = {
        "backbone.0.body.conv1.weight": torch.zeros(64, 3, 7, 7),
        "backbone.0.body.bn1.running_var": torch.ones(64),
    }
    model = detr(position="learned").eval()
    report = checkpoints.load(model, {"model": {**official, **backbone}})
    assert (report.layout, sorted(report.left)) == ("official", sorted(backbone))
    third = official["transformer.decoder.layers.2.multihead_attn.in_proj_weight"]
    assert torch.equal(model.transformer.decoder.layers[2].multihead_attn.v.weight, third[512:])
    assert torch.equal(model.position.row, official["backbone.1.row_embed.weight"])
    back = checkpoints.export(model, "official")
    assert sorted(back) == sorted(official)
    assert all(torch.equal(back[name], official[name]) for name in official)
    attend = nn.MultiheadAttention(256, 8, batch_first=True)
    at = "transformer.encoder.layers.5.self_attn."
    attend.load_state_dict({name.removeprefix(at): value for name, value in official.items() if name.startswith(at)})
    x, pos = torch.randn(1, 6, 256), torch.randn(1, 6, 256)
    expected, _ = attend(x + pos, x + pos, x)
    ours, _ = model.transformer.encoder.layers[5].self_attn(x + pos, x + pos, x)
    parity(28, "nn.MultiheadAttention on the original's names", relative(ours, expected), MOST)


@pytest.mark.row(54)
@CASES
def test_names_of_transformers_come_out_as_they_went_in(transformers: ModuleType, kind: str) -> None:
    theirs = peer(transformers, kind, "learned")
    model = carried(theirs, ours(kind, "learned"), KINDS[kind])
    state, back = theirs.state_dict(), checkpoints.export(model, KINDS[kind])
    assert set(state) - set(back) == {n for n in state if "backbone" in n and "position" not in n}
    assert all(torch.equal(state[name], value) for name, value in back.items())


@pytest.mark.row(54)
def test_files_of_the_part_without_heads(transformers: ModuleType) -> None:
    """Names of DetrModel begin without "model."; what it does not hold stays as it is, if asked for."""
    theirs = peer(transformers, "DetrForObjectDetection", "learned")
    model, again = carried(theirs, ours("Detr", "learned"), "transformers"), ours("Detr", "learned")
    heads = ("class_embed.*", "bbox_embed.*")
    checkpoints.load(again, theirs.model.state_dict(), fresh=heads)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) is (not name.startswith(("class_embed", "bbox_embed"))), (
            name
        )


@pytest.mark.row(27)
@pytest.mark.row(54)
def test_learned_positions_are_carried_to_a_larger_map(transformers: ModuleType) -> None:
    theirs, model = peer(transformers, "DetrForObjectDetection", "learned"), ours("Detr", "learned")
    model.position = LearnedAxial(Grid(99, 50), DIM)
    report = checkpoints.load(model, theirs.state_dict(), method="linear")
    assert [(line.name, line.old, line.new) for line in report.resized] == [("position.row", (50,), (99,))]
    rows = theirs.model.position_embedding.row_embeddings.weight
    assert torch.equal(model.position.row[::2], rows), "twice as fine: every second entry is an old one"
