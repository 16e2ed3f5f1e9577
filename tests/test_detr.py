"""DETR against its formulas written out, and what must hold of positions, padding and object queries."""

from __future__ import annotations

import math

import pytest
import torch
from detrs import SIZES, SMALL, padded, small
from near import close
from redrawing import redraw
from torch import Tensor, nn

from locant import Grid, MaskedSine, Padding
from locant.models.detr import DETR, on_cells
from locant.models.detr_layers import EncoderLayer
from locant.nn import MultiHeadAttention

pytestmark = pytest.mark.row(28)

# The formulas, sample by sample and head by head, from tensors by name alone.


def attended(p: dict[str, Tensor], where: str, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None):
    q, k, v = (
        x @ p[f"{where}.{n}.weight"].T + p[f"{where}.{n}.bias"] for n, x in zip("qkv", (query, key, value), strict=True)
    )
    size, out = q.shape[1] // SMALL["heads"], []
    for head in range(SMALL["heads"]):
        part = slice(head * size, (head + 1) * size)
        logits = q[:, part] @ k[:, part].T / size**0.5
        logits = logits if real is None else logits.masked_fill(~real, -math.inf)
        out.append(logits.softmax(-1) @ v[:, part])
    return torch.cat(out, -1) @ p[f"{where}.out.weight"].T + p[f"{where}.out.bias"]


def normed(p: dict[str, Tensor], where: str, x: Tensor) -> Tensor:
    middle = x - x.mean(-1, keepdim=True)
    return middle / (middle.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{where}.weight"] + p[f"{where}.bias"]


def perceptron(p: dict[str, Tensor], where: str, x: Tensor) -> Tensor:
    hidden = (x @ p[f"{where}.mlp.fc1.weight"].T + p[f"{where}.mlp.fc1.bias"]).clamp(min=0)
    return hidden @ p[f"{where}.mlp.fc2.weight"].T + p[f"{where}.mlp.fc2.bias"]


def slow(model: DETR, picture: Tensor, real: Tensor, pre: bool) -> list[tuple[Tensor, Tensor]]:
    """(logits, boxes) after every decoder layer, of one picture [channels, rows, columns]."""
    p = {name: value.double() for name, value in model.state_dict().items()}
    weight = p["input_proj.weight"][:, :, 0, 0]
    x = torch.einsum("dc,cyx->yxd", weight, picture).flatten(0, 1) + p["input_proj.bias"]
    pos = MaskedSine(x.shape[1]).double().encode(real).flatten(0, 1)
    real, queries = real.flatten(), p["query_embed.weight"]

    def residual(x: Tensor, norm: str, branch) -> Tensor:
        return x + branch(normed(p, norm, x)) if pre else normed(p, norm, x + branch(x))

    for i in range(SMALL["encoder_layers"]):
        at = f"transformer.encoder.layers.{i}"
        x = residual(x, f"{at}.norm1", lambda y, at=at: attended(p, f"{at}.self_attn", y + pos, y + pos, y, real))
        x = residual(x, f"{at}.norm2", lambda y, at=at: perceptron(p, at, y))
    memory = normed(p, "transformer.encoder.norm", x) if pre else x
    y, found = torch.zeros_like(queries), []
    for i in range(SMALL["decoder_layers"]):
        at = f"transformer.decoder.layers.{i}"
        y = residual(
            y, f"{at}.norm1", lambda z, at=at: attended(p, f"{at}.self_attn", z + queries, z + queries, z, None)
        )
        y = residual(
            y,
            f"{at}.norm2",
            lambda z, at=at: attended(p, f"{at}.multihead_attn", z + queries, memory + pos, memory, real),
        )
        y = residual(y, f"{at}.norm3", lambda z, at=at: perceptron(p, at, z))
        state = normed(p, "transformer.decoder.norm", y)  # y itself goes on as it is
        box = state
        for layer in range(3):
            box = box.clamp(min=0) if layer else box
            box = box @ p[f"bbox_embed.layers.{layer}.weight"].T + p[f"bbox_embed.layers.{layer}.bias"]
        found.append((state @ p["class_embed.weight"].T + p["class_embed.bias"], 1 / (1 + (-box).exp())))
    return found


@pytest.mark.parametrize("pre_norm", [False, True])
def test_it_is_its_formulas_and_so_are_the_auxiliary_outputs(pre_norm: bool) -> None:
    model = small(pre_norm=pre_norm)
    _, whole, valid = padded()
    out = model(whole, Padding(valid))
    assert len(out["aux_outputs"]) == SMALL["decoder_layers"] - 1
    for i in range(3):
        expected = slow(model, whole[i], valid[i], pre_norm)
        for found, (logits, boxes) in zip([*out["aux_outputs"], out], expected, strict=True):
            close(found["pred_logits"][i], logits)
            close(found["pred_boxes"][i], boxes)


def test_without_auxiliary_outputs_the_last_ones_are_the_same() -> None:
    model = small()
    _, whole, valid = padded()
    expected = model(whole, Padding(valid))
    model.aux_loss = False
    out = model(whole, Padding(valid))
    assert set(out) == {"pred_logits", "pred_boxes"}
    assert torch.equal(out["pred_logits"], expected["pred_logits"])
    assert torch.equal(out["pred_boxes"], expected["pred_boxes"])
    assert out["pred_logits"].shape == (3, 4, SMALL["num_classes"] + 1)
    assert bool(((out["pred_boxes"] > 0) & (out["pred_boxes"] < 1)).all())


# Where position enters.


def seen_by_projections(model: DETR, features: Tensor) -> dict[str, Tensor]:
    """What each q, k and v of each attention is projected from, and each norm's result."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, given, out, name=name: inputs.update({name: out if "norm" in name else given[0]})
        )
        for name, module in model.named_modules()
        if name.split(".")[-1] in ("q", "k", "v", "norm1", "norm2")
    ]
    model(features)
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("position", ["sine", "learned"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_position_enters_every_query_and_key_and_no_value(pre_norm: bool, position: str) -> None:
    model = small(pre_norm=pre_norm, position=position)
    features = torch.randn(1, 5, *SIZES[0], dtype=torch.float64)
    seen = seen_by_projections(model, features)
    pos = model.position(Grid(*SIZES[0]))[None]
    queries = model.query_embed.weight[None]
    for i in range(SMALL["encoder_layers"]):
        at = f"transformer.encoder.layers.{i}.self_attn"
        for part in "qk":
            close(seen[f"{at}.{part}"] - seen[f"{at}.v"], pos)
    _, memory = model.states(features)
    for i in range(SMALL["decoder_layers"]):
        at = f"transformer.decoder.layers.{i}"
        for part in "qk":
            close(seen[f"{at}.self_attn.{part}"] - seen[f"{at}.self_attn.v"], queries)
        close(seen[f"{at}.multihead_attn.v"], memory)
        close(seen[f"{at}.multihead_attn.k"] - memory, pos)
        close(seen[f"{at}.multihead_attn.q"] - seen[f"{at}.{'norm2' if pre_norm else 'norm1'}"], queries)
    close(seen["transformer.decoder.layers.0.self_attn.v"], *(
        [seen["transformer.decoder.layers.0.norm1"]] if pre_norm else [torch.zeros(1, 4, 8, dtype=torch.float64)]
    ))  # fmt: skip


@pytest.mark.row(51)
def test_without_products_of_queries_and_keys_no_position_shows() -> None:
    """With q or k at zero every weight is equal, and where a cell lies can no longer matter: values know nothing."""
    model = small(position="learned")
    features = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    first = model(features)["pred_logits"]
    nn.init.normal_(model.position.row)
    moved = model(features)["pred_logits"]
    assert float((moved - first).detach().abs().max()) > 1e-3
    for attention in (m for m in model.modules() if isinstance(m, MultiHeadAttention)):
        nn.init.zeros_(attention.k.weight)
    first = model(features)["pred_logits"]
    nn.init.normal_(model.position.row)
    close(model(features)["pred_logits"], first)


@pytest.mark.row(51)
def test_cells_without_position_are_a_set() -> None:
    """Why DETR needs position in every layer: without it the encoder cannot tell one order of cells from another."""
    layer = redraw(EncoderLayer(8, 2, hidden=12, dropout=0.0)).double()
    x, order = torch.randn(2, 12, 8, dtype=torch.float64), torch.randperm(12)
    close(layer(x[:, order]), layer(x)[:, order])
    pos = MaskedSine(8).double()(Grid(3, 4))
    assert float((layer(x[:, order], pos) - layer(x, pos)[:, order]).detach().abs().max()) > 1e-3


@pytest.mark.row(51)
def test_object_queries_are_a_set() -> None:
    model = small()
    features, order = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    out = model(features)
    with torch.no_grad():
        model.query_embed.weight.copy_(model.query_embed.weight[order])
    close(model(features)["pred_boxes"], out["pred_boxes"][:, order])


# Padding.


@pytest.mark.row(30)
@pytest.mark.row(51)
@pytest.mark.parametrize("garbage", [1e6, math.nan])
@pytest.mark.parametrize(("position", "pre_norm"), [("sine", False), ("sine", True), ("learned", False)])
def test_a_padded_batch_is_each_picture_alone(position: str, pre_norm: bool, garbage: float) -> None:
    """Encoder and decoder, whatever stands in the padding."""
    model = small(position=position, pre_norm=pre_norm)
    pictures, whole, valid = padded(garbage)
    states, memory = model.states(whole, Padding(valid))
    for i, picture in enumerate(pictures):
        alone_states, alone_memory = model.states(picture[None])
        close(memory[i].unflatten(0, SIZES[0])[valid[i]], alone_memory[0])
        close(states[:, i], alone_states[:, 0])


@pytest.mark.row(30)
def test_padding_takes_no_part_in_training() -> None:
    model = small()
    pictures, whole, valid = padded(3.0)
    weights = [torch.randn(4, 4, dtype=torch.float64) for _ in pictures]
    out = model(whole, Padding(valid))["pred_boxes"]
    sum((o * w).sum() for o, w in zip(out, weights, strict=True)).backward()
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for picture, w in zip(pictures, weights, strict=True):
        (model(picture[None])["pred_boxes"][0] * w).sum().backward()
    for found, expected in zip(together, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        close(found, expected, 1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.row(30)
def test_rows_of_padding_are_computed_and_a_picture_of_padding_alone_is_finite() -> None:
    """Blocking padded queries as well, as was tried in the original repository, gives NaN: here nothing does."""
    model = small()
    _, whole, valid = padded()
    valid[2] = False
    out, (_, memory) = model(whole, Padding(valid)), model.states(whole, Padding(valid))
    assert bool(memory.isfinite().all())
    assert bool(out["pred_boxes"].isfinite().all())
    out["pred_boxes"].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.row(29)
def test_golden_mask_of_8_by_8_pixels_on_2_by_2_cells() -> None:
    """Cell (r, c) is pixel (4 r, 4 c), so a cell that is half padding counts as real."""
    pixels = torch.zeros(3, 8, 8, dtype=torch.bool)
    pixels[0, :5, :3] = True
    pixels[1, :4, :8] = True
    pixels[2, :1, :5] = True
    found = on_cells(Padding(pixels), torch.empty(3, 1, 2, 2)).valid.tolist()
    assert found == [[True, False, True, False], [True, True, False, False], [True, True, False, False]]


@pytest.mark.row(29)
@pytest.mark.parametrize(("pixels", "cells"), [((800, 1066), (25, 34)), ((97, 64), (4, 2)), ((33, 40), (33, 40))])
def test_a_mask_is_read_at_the_nearest_pixel(pixels: tuple[int, int], cells: tuple[int, int]) -> None:
    """Sizes as a backbone of stride 32 makes them: cells = ⌈pixels / 32⌉."""
    mask = torch.rand(1, *pixels) > 0.4
    found = on_cells(Padding(mask), torch.empty(1, 1, *cells)).valid.unflatten(1, cells)[0]
    for r in range(cells[0]):
        for c in range(cells[1]):
            assert found[r, c] == mask[0, r * pixels[0] // cells[0], c * pixels[1] // cells[1]]


@pytest.mark.row(29)
@pytest.mark.row(50)
def test_a_mask_may_be_of_pixels_or_cells_and_of_every_published_sense() -> None:
    model = small()
    _, whole, valid = padded()
    expected = model(whole, Padding(valid))["pred_boxes"]
    pixels = valid.repeat_interleave(32, 1).repeat_interleave(32, 2)
    for mask in (
        Padding(pixels),
        Padding.from_key_padding_mask(~pixels),  # DETR's own: True = padding
        Padding.from_attention_mask(pixels.long()),  # transformers' pixel_mask: 1 = real
        Padding.from_key_padding_mask(~valid),
        Padding(valid.flatten(1)),
    ):
        assert torch.equal(model(whole, mask)["pred_boxes"], expected)
    inverse = model(whole, Padding.from_key_padding_mask(valid))["pred_boxes"]
    assert float((inverse - expected).detach().abs().max()) > 1e-3, "the sense matters"
    free = model(whole)["pred_boxes"]
    close(model(whole, Padding(torch.ones_like(valid)))["pred_boxes"], free)
    close(model(whole, Padding(torch.ones_like(valid[:1])))["pred_boxes"], free)
