"""Content schemes, T5's buckets and Swin V2's bias against transformers, timm and torchvision, on equal weights."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from near import apart
from redrawing import redraw_alike
from torch import Tensor, nn

from locant.attend import attention, weights
from locant.grid import Grid
from locant.masks import Causal, Pairs
from locant.positions.buckets import T5Buckets
from locant.positions.decomposed import Decomposed
from locant.positions.field import LogCPB
from locant.positions.shaw import Shaw
from locant.positions.transformer_xl import TransformerXL

MOST = 1e-10  # in float64
DIM, HEADS, WIDTH, LENGTH = 24, 3, 8, 11


def drawn(module: nn.Module) -> nn.Module:
    return redraw_alike(module.eval().double())


def parted(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def halves(weight: Tensor) -> Tensor:
    """W_r for sin, cos, sin, cos as W_r for sines, then cosines."""
    return weight.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)


@pytest.mark.row(45)
@pytest.mark.parametrize("family", ["wav2vec2_conformer", "wav2vec2_bert"])
def test_conformer_relative(transformers, parity, family):
    name = {"wav2vec2_conformer": "Wav2Vec2Conformer", "wav2vec2_bert": "Wav2Vec2Bert"}[family]
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=DIM, num_attention_heads=HEADS, position_embeddings_type="relative", max_source_positions=50,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = drawn(getattr(module, f"{name}SelfAttention")(config))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    codes = getattr(module, f"{name}RelPositionalEmbedding")(config)(x)
    ours = TransformerXL(DIM, HEADS).double()
    with torch.no_grad():
        ours.u.copy_(theirs.pos_bias_u)
        ours.v.copy_(theirs.pos_bias_v)
        ours.r_net.weight.copy_(halves(theirs.linear_pos.weight))
    wide = torch.randn(2, LENGTH, DIM, dtype=torch.float64)

    def found() -> Tensor:
        q, k, v = (parted(layer(wide)) for layer in (theirs.linear_q, theirs.linear_k, theirs.linear_v))
        return theirs.linear_out(joined(attention(q, k, v, grid=Grid(LENGTH), position=ours)))

    exact = ours.distances(LENGTH - 1).flip(0)  # theirs begin with the farthest key before the query, in float32
    laid_out = exact.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)[None]
    assert apart(laid_out, codes) <= 1e-5
    golden = theirs(wide, relative_position_embeddings=laid_out)[0]
    parity(45, f"transformers {name}SelfAttention, relative", apart(found(), golden), MOST)
    golden = theirs(wide, relative_position_embeddings=codes)[0]
    parity(45, "the same with its own float32 sinusoids", apart(found(), golden), 1e-5 * golden.abs().max().item())


@pytest.mark.row(44)
@pytest.mark.row(45)
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("clamp", [None, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_xlnet(transformers, parity, memory, clamp, causal):
    """Length first, 1 = blocked, halves, distances of either sign, memory in front."""
    module = import_module("transformers.models.xlnet.modeling_xlnet")
    config = transformers.XLNetConfig(
        vocab_size=5,
        pad_token_id=0,
        d_model=DIM,
        n_head=HEADS,
        n_layer=1,
        d_inner=4,
        clamp_len=-1 if clamp is None else clamp,
    )
    model = drawn(module.XLNetModel(config))
    theirs = model.layer[0].rel_attn
    x, past = torch.randn(LENGTH, 2, DIM, dtype=torch.float64), torch.randn(memory, 2, DIM, dtype=torch.float64)
    keys = memory + LENGTH
    blocked = torch.triu(torch.ones(LENGTH, keys), 1 + memory) if causal else torch.zeros(LENGTH, keys)
    ours = TransformerXL(DIM, HEADS, clamp=clamp).double()
    with torch.no_grad():
        ours.u.copy_(theirs.r_w_bias)
        ours.v.copy_(theirs.r_r_bias)
        ours.r_net.weight.copy_(theirs.r.flatten(1).T)
    codes = ours.distances(keys).flip(0)[: keys + LENGTH, None].expand(-1, 2, -1)  # keys .. 1 - LENGTH
    if clamp is not None:
        steps = torch.arange(keys, -LENGTH, -1).clamp(-clamp, clamp)
        codes = ours.distances(keys)[steps + keys, None].expand(-1, 2, -1)
    single = model.relative_positional_encoding(LENGTH, keys, bsz=2)
    assert apart(single.double(), codes) <= 1e-5
    mask = blocked.double()[:, :, None, None].expand(-1, -1, 2, HEADS)
    golden, _ = theirs(x, None, mask, None, codes, None, mems=past if memory else None)
    whole = torch.cat([past, x])
    q = torch.einsum("ibh,hnd->bnid", x, theirs.q)
    k, v = (torch.einsum("ibh,hnd->bnid", whole, weight) for weight in (theirs.k, theirs.v))
    grid = Grid(keys)
    for sense in (Pairs.from_blocked(blocked), Causal() if causal else None):
        found = attention(q, k, v, grid=grid[memory:], key_grid=grid, position=ours, mask=sense)
        found = theirs.post_attention(x, found.permute(2, 0, 1, 3))
        parity(45, "transformers XLNetRelativeAttention", apart(found, golden), MOST)
        parity(44, "transformers XLNetRelativeAttention with memory", apart(found, golden), MOST)


@pytest.mark.row(48)
@pytest.mark.parametrize("distance", [2, 30])
def test_shaw(transformers, parity, distance):
    module = import_module("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=DIM, num_attention_heads=HEADS, position_embeddings_type="relative_key",
        left_max_position_embeddings=distance, right_max_position_embeddings=distance, attn_implementation="eager",
    )  # fmt: skip
    theirs = drawn(module.Wav2Vec2BertSelfAttention(config))
    ours = Shaw(HEADS, WIDTH, distance).double()
    with torch.no_grad():
        ours.table.copy_(theirs.distance_embedding.weight.flip(0)[None])  # theirs is key - query
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    q, k, v = (parted(layer(x)) for layer in (theirs.linear_q, theirs.linear_k, theirs.linear_v))
    found = theirs.linear_out(joined(attention(q, k, v, grid=Grid(LENGTH), position=ours)))
    parity(48, "transformers Wav2Vec2BertSelfAttention, relative_key", apart(found, theirs(x)[0]), MOST)


@pytest.mark.parametrize("sides", [(5, 5), (3, 6)])
def test_sam(transformers, sides):
    module = import_module("transformers.models.sam.modeling_sam")
    config = transformers.SamVisionConfig(hidden_size=DIM, num_attention_heads=HEADS)
    theirs = drawn(module.SamVisionSdpaAttention(config, window_size=5))  # the other rounds to float32
    rows, columns = sides
    grid, ours = Grid(*sides), Decomposed(Grid(*sides), HEADS, WIDTH).double()
    with torch.no_grad():
        for table, name, size in zip(ours.tables, ("rel_pos_h", "rel_pos_w"), sides, strict=True):
            wanted = theirs.get_rel_pos(size, size, getattr(theirs, name))  # resized by theirs where it must be
            table.copy_(torch.cat([wanted[0].flip(0), wanted[1:, 0]]))
    trained = Decomposed(Grid(5, 5), HEADS, WIDTH).double()
    trained.load_state_dict({"tables.0": theirs.rel_pos_h, "tables.1": theirs.rel_pos_w})
    for table, resized in zip(ours.tables, trained.resized(grid, method="bilinear").tables, strict=True):
        assert apart(resized, table) <= MOST
    x = torch.randn(2, rows, columns, DIM, dtype=torch.float64)
    q, k, v = theirs.qkv(x).flatten(1, 2).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
    found = theirs.proj(joined(attention(q, k, v, grid=grid, position=ours)).unflatten(1, sides))
    assert apart(found, theirs(x)[0]) <= MOST


@pytest.mark.parametrize("pooled", [1, 2, 4])
@pytest.mark.parametrize("cls", [False, True])
def test_mvit(timm, pooled, cls):
    """Published offsets are 0 at the last key: with pooled keys that is pooled - 1 rows before the centre."""
    published = import_module("timm.models.mvitv2").cal_rel_pos_type
    grid = Grid(8, 8, prefix=int(cls))
    keys = grid.pooled(pooled)
    ours = drawn(Decomposed(Grid(8, 8), HEADS, WIDTH))
    q, k = (torch.randn(2, HEADS, g.tokens, WIDTH, dtype=torch.float64) for g in (grid, keys))
    logits = q * WIDTH**-0.5 @ k.mT
    theirs = [table.roll(1 - pooled, 0) for table in ours.tables]
    golden = published(logits, q, cls, list(grid.shape), list(keys.shape), *theirs).softmax(-1)
    assert apart(weights(q, k, grid=grid, key_grid=keys, position=ours), golden) <= MOST


def test_video_mvit(timm):
    published = import_module("torchvision.models.video.mvit")._add_rel_pos
    grid = Grid(4, 6, 6, prefix=1)
    keys = Grid(4, 3, 3, prefix=1, stride=(1, 2, 2))
    ours = drawn(Decomposed(Grid(4, 6, 6), HEADS, WIDTH))
    q, k = (torch.randn(2, HEADS, g.tokens, WIDTH, dtype=torch.float64) for g in (grid, keys))
    time, row, column = ours.tables
    logits = q * WIDTH**-0.5 @ k.mT
    golden = published(logits, q, (4, 6, 6), (4, 3, 3), row.roll(-1, 0), column.roll(-1, 0), time).softmax(-1)
    assert apart(weights(q, k, grid=grid, key_grid=keys, position=ours), golden) <= MOST


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 20)])
def test_t5(transformers, decoder, buckets, most):
    module = import_module("transformers.models.t5.modeling_t5")
    config = transformers.T5Config(
        d_model=DIM, num_heads=HEADS, d_kv=WIDTH, is_decoder=decoder, relative_attention_num_buckets=buckets,
        relative_attention_max_distance=most, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    theirs = drawn(module.T5Attention(config, has_relative_attention_bias=True, layer_idx=0, is_causal=decoder))
    ours = T5Buckets(HEADS, buckets=buckets, max_distance=most, bidirectional=not decoder).double()
    with torch.no_grad():
        ours.table.copy_(theirs.relative_attention_bias.weight.T)
    mask, long = Causal() if decoder else None, 1200
    golden = theirs.compute_bias(long, long)[0]
    seen = torch.ones(long, long, dtype=torch.bool)
    seen = seen.tril() if decoder else seen
    assert torch.equal(ours(Grid(long), mask=mask)[:, seen], golden[:, seen]), "every bucket of every offset"
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    hidden = torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(~seen[:LENGTH, :LENGTH], -torch.inf)
    golden = theirs(x, mask=hidden[None, None].expand(2, 1, -1, -1))[0]
    q, k, v = (parted(layer(x)) for layer in (theirs.q, theirs.k, theirs.v))
    found = theirs.o(joined(attention(q, k, v, grid=Grid(LENGTH), position=ours, mask=mask, scale=1.0)))
    assert apart(found, golden) <= MOST


@pytest.mark.row(14)
@pytest.mark.parametrize(
    ("window", "pretrained"), [((7, 7), None), ((4, 6), None), ((8, 8), (4, 4)), ((1, 5), None), ((1, 1), None)]
)
def test_swin_v2(timm, parity, window, pretrained):
    """The coordinates are theirs in float32; in float64 theirs are those of the formula."""
    module = import_module("timm.models.swin_transformer_v2")
    theirs = module.WindowAttention(DIM, window, HEADS, pretrained_window_size=pretrained or (0, 0))
    coordinates, _ = theirs._make_pair_wise_relative_positions(dtype=torch.float64)
    theirs = drawn(theirs)
    theirs.relative_coords_table.copy_(coordinates)
    grid = Grid(*window)
    ours = LogCPB(grid, HEADS, pretrained=None if pretrained is None else Grid(*pretrained)).double()
    with torch.no_grad():
        for layer, number in ((ours.mlp.fc1, 0), (ours.mlp.fc2, 2)):
            layer.load_state_dict(theirs.cpb_mlp[number].state_dict())
    x = torch.randn(2, grid.tokens, DIM, dtype=torch.float64)
    bias = torch.cat([theirs.q_bias, theirs.k_bias, theirs.v_bias])
    qkv = nn.functional.linear(x, theirs.qkv.weight, bias)
    q, k, v = qkv.unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
    q, k = (nn.functional.normalize(y, dim=-1) for y in (q, k))
    q = q * theirs.logit_scale.clamp(max=torch.tensor(100.0).log().item()).exp()
    found = theirs.proj(joined(attention(q, k, v, grid=grid, position=ours, scale=1.0)))
    golden = theirs(x)
    limit = 1e-5 * golden.abs().max().item()  # their coordinates are float32
    parity(14, "timm swin_transformer_v2 WindowAttention", apart(found, golden), limit)
