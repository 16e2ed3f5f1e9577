"""The original's names for Transformer-XL, every attention type, in and out; and what its numbers then give."""

from __future__ import annotations

import pytest
import torch
from near import apart
from test_transformer_xl import DIM, HEADS, HIDDEN, LAYERS, MOST, WORDS, built, drawn
from test_transformer_xl import published as published_algorithm
from torch import Tensor

from locant.checkpoints import export, load
from locant.models.transformer_xl import MemTransformerLM

LONGEST, WIDTH = 20, DIM // HEADS
TYPES = pytest.mark.parametrize("attn_type", [0, 1, 2, 3])


def file_of(attn_type: int, tied: bool = True) -> dict[str, Tensor]:
    """A state dict as the original saves it: names and shapes of mem_transformer.py."""
    draw = torch.Generator().manual_seed(5)

    def new(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=draw, dtype=torch.float64)

    state = {"word_emb.emb_layers.0.weight": new(WORDS, DIM), "crit.out_layers.0.bias": new(WORDS)}
    state["crit.out_layers.0.weight"] = state["word_emb.emb_layers.0.weight"].clone() if tied else new(WORDS, DIM)
    for i in range(LAYERS):
        attention, forward = f"layers.{i}.dec_attn", f"layers.{i}.pos_ff"
        if attn_type < 2:
            state[f"{attention}.qkv_net.weight"] = new(3 * DIM, DIM)
        else:
            state[f"{attention}.q_net.weight"], state[f"{attention}.kv_net.weight"] = new(DIM, DIM), new(2 * DIM, DIM)
        state[f"{attention}.o_net.weight"] = new(DIM, DIM)
        if attn_type == 0:
            state[f"{attention}.r_net.weight"] = new(DIM, DIM)
        for norm in (f"{attention}.layer_norm", f"{forward}.layer_norm"):
            state |= {f"{norm}.weight": 1 + new(DIM), f"{norm}.bias": new(DIM)}
        state |= {f"{forward}.CoreNet.0.weight": new(HIDDEN, DIM), f"{forward}.CoreNet.0.bias": new(HIDDEN)}
        state |= {f"{forward}.CoreNet.3.weight": new(DIM, HIDDEN), f"{forward}.CoreNet.3.bias": new(DIM)}
    if attn_type == 0:
        state |= {"r_w_bias": new(HEADS, WIDTH), "r_r_bias": new(HEADS, WIDTH)}
    if attn_type == 1:
        state |= {"r_w_bias": new(LAYERS, HEADS, WIDTH), "r_bias": new(LAYERS, LONGEST, HEADS)}
    if attn_type in (1, 3):
        state["r_emb"] = new(LAYERS, LONGEST, HEADS, WIDTH)
    if attn_type in (0, 2):
        state["pos_emb.inv_freq"] = new(DIM // 2)
    return state


def model_of(attn_type: int, **given: object) -> MemTransformerLM:
    return built(attn_type, head_dim=None, **given)


@pytest.mark.row(54)
@TYPES
@pytest.mark.parametrize("tied", [True, False])
def test_in_and_out(attn_type, tied):
    state, model = file_of(attn_type, tied), model_of(attn_type, tie_weight=tied)
    report = load(model, state)
    assert report.exact
    assert report.resized == []
    assert report.dropped == ["pos_emb.inv_freq"] * (attn_type in (0, 2))
    if attn_type == 3:
        with pytest.raises(ValueError, match="parted into heads" if tied else "needs a counterpart"):
            export(model, "official 3")
        return
    out = export(model, "official" if attn_type == 0 else f"official {attn_type}")
    state.pop("pos_emb.inv_freq", None)
    assert out.keys() == state.keys()
    assert all(torch.equal(out[name], tensor) for name, tensor in state.items())


@pytest.mark.row(54)
def test_numbers_lie_where_they_belong():
    """One number each, by hand: distance 0 comes last in the original, queries before keys and values."""
    state, model = file_of(1), model_of(1)
    load(model, state)
    shaw = model.layers[1].attention.position
    assert torch.equal(shaw.table[2, 0], state["r_emb"][1, -1, 2])
    assert torch.equal(shaw.table[2, 7], state["r_emb"][1, LONGEST - 8, 2])
    assert shaw.bias[0, 3] == state["r_bias"][1, LONGEST - 4, 0]
    assert torch.equal(shaw.u, state["r_w_bias"][1])
    state, model = file_of(3), model_of(3)
    load(model, state)
    assert torch.equal(model.positions[1].table[4], state["r_emb"][1, 4].flatten())
    assert torch.equal(model.layers[0].attention.qkv.weight[DIM], state["layers.0.dec_attn.kv_net.weight"][0])
    state, model = file_of(0), model_of(0)
    load(model, state)
    assert torch.equal(model.layers[1].attention.position.biases()[1], state["r_r_bias"])


@pytest.mark.row(44)
@pytest.mark.row(48)
@TYPES
def test_loaded_numbers_give_what_the_original_gives(attn_type, parity):
    """The model's own numbers, read by the published algorithm, after a file: nothing is turned twice."""
    model = model_of(attn_type)
    load(model, file_of(attn_type))
    empty = [torch.zeros(0, 2, DIM, dtype=torch.float64)] * (LAYERS + 1)
    golden, _ = published_algorithm(model, drawn(8), empty)
    row = 48 if attn_type else 44
    parity(row, f"a file of the original, attn_type {attn_type}", apart(model(drawn(8))[0], golden), MOST)


@pytest.mark.row(54)
def test_one_u_and_v_for_layers_of_their_own():
    """A file with shared ones fills a model that has them per layer; the other way there is no name."""
    model = model_of(0, untie_r=True)
    assert load(model, file_of(0)).exact
    assert torch.equal(model.layers[0].attention.position.u, model.layers[1].attention.position.u)
    assert export(model, "official")["r_w_bias"].shape == (HEADS, WIDTH)
    with torch.no_grad():
        model.layers[1].attention.position.u.add_(1)
    with pytest.raises(ValueError, match="one tensor that all layers share; got layers that differ"):
        export(model, "official")


@pytest.mark.row(54)
def test_an_untied_file_and_a_tied_model():
    with pytest.raises(ValueError, match="to be equal; got two that differ. Build it with tie_weight=False"):
        load(model_of(0), file_of(0, tied=False))
