"""Sequence models on the weights of torch and transformers, and on d2l's names: forward and one step of training."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest
import torch
from redrawing import redraw
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from locant import Padding, Pairs, checkpoints
from locant.models.bahdanau import Bahdanau
from locant.models.bert import BertEmbeddings
from locant.models.transformer import Transformer
from locant.nn import MultiHeadAttention

Parity = Callable[[int, str, float, float], None]

DTYPES = [torch.float64, torch.float32]
DIM, HEADS, HIDDEN, LAYERS = 24, 4, 40, 2
LENGTHS = torch.tensor([6, 3, 1])
OF_QUERIES = torch.tensor([[1, 6, 2, 3], [5, 1, 1, 4], [2, 2, 6, 6]])


def drawn(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return redraw(module).to(dtype).eval()


def compare(parity: Parity, row: int, reference: str, found: Tensor, golden: Tensor) -> None:
    assert found.shape == golden.shape
    most = 1e-10 if golden.dtype == torch.float64 else 1e-5 * float(golden.detach().abs().max())
    name = str(golden.dtype).removeprefix("torch.")
    parity(row, f"{reference}, {name}", float((found - golden).detach().abs().max()), most)


@pytest.mark.row(38)
@pytest.mark.row(39)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(None, None), (7, 5)])
def test_torchs_multihead_attention(
    key_dim: int | None, value_dim: int | None, bias: bool, dtype: torch.dtype, parity: Parity
) -> None:
    """Packed and separate projections, carried over by the layout; lengths, and 0 = blocked between unlike lengths."""
    peer = drawn(nn.MultiheadAttention(DIM, HEADS, bias=bias, kdim=key_dim, vdim=value_dim, batch_first=True), dtype)
    module = MultiHeadAttention(DIM, HEADS, key_dim=key_dim, value_dim=value_dim, bias=bias).to(dtype)
    assert checkpoints.load(module, peer.state_dict()).layout == "torch"
    sizes = ((4, DIM), (6, key_dim or DIM), (6, value_dim or DIM))
    query, key, value = (torch.randn(3, n, c, dtype=dtype) for n, c in sizes)
    ignored = torch.arange(6) >= LENGTHS[:, None]
    golden, weights = peer(query, key, value, key_padding_mask=ignored, average_attn_weights=False)
    found, p = module(query, key, value, mask=Padding.from_lengths(LENGTHS, 6), need_weights=True)
    compare(parity, 38, "torch nn.MultiheadAttention, lengths", found, golden)
    compare(parity, 38, "torch nn.MultiheadAttention, weights", p, weights)
    kept = (torch.rand(4, 6) > 0.4).long().index_fill(1, torch.tensor([2]), 1)
    golden, weights = peer(query, key, value, attn_mask=kept == 0, average_attn_weights=False)
    found, p = module(query, key, value, mask=Pairs.from_kept(kept[None, None]), need_weights=True)
    compare(parity, 39, "torch nn.MultiheadAttention, 0 = blocked", found, golden)
    compare(parity, 39, "torch nn.MultiheadAttention, weights", p, weights)
    again = checkpoints.export(module, "torch")
    assert {n: tuple(x.shape) for n, x in again.items()} == {n: tuple(x.shape) for n, x in peer.state_dict().items()}
    assert all(torch.equal(again[name], x) for name, x in peer.state_dict().items())


@pytest.mark.row(38)
@pytest.mark.parametrize("lengths", [LENGTHS, OF_QUERIES], ids=["1-D", "2-D"])
def test_d2ls_folding_of_heads_into_the_batch(lengths: Tensor, parity: Parity) -> None:
    """Batch-major: head h of sample b is row b · heads + h, and so lengths are repeated one after the other."""
    module = drawn(MultiHeadAttention.from_d2l_zh(7, 9, 5, DIM, HEADS, 0.1), torch.float64)
    w = checkpoints.export(module, "d2l")
    assert list(w) == ["W_q.weight", "W_k.weight", "W_v.weight", "W_o.weight"]
    query, key, value = (torch.randn(3, n, c, dtype=torch.float64) for n, c in ((4, 9), (6, 7), (6, 5)))

    def folded(x: Tensor) -> Tensor:
        return x.reshape(3, -1, HEADS, DIM // HEADS).permute(0, 2, 1, 3).reshape(3 * HEADS, -1, DIM // HEADS)

    q, k, v = (folded(x @ w[f"W_{n}.weight"].T) for x, n in ((query, "q"), (key, "k"), (value, "v")))
    repeated = torch.repeat_interleave(lengths, HEADS, dim=0)
    hidden = torch.arange(6) >= (repeated[:, None, None] if lengths.ndim == 1 else repeated[..., None])
    scores = (q @ k.transpose(1, 2) / (DIM / HEADS) ** 0.5).masked_fill(hidden, -1e6)
    out = (torch.softmax(scores, -1) @ v).reshape(3, HEADS, 4, -1).permute(0, 2, 1, 3).reshape(3, 4, DIM)
    mask = Padding.from_lengths(lengths, 6) if lengths.ndim == 1 else Pairs.from_lengths(lengths, 6)
    compare(parity, 38, "d2l MultiHeadAttention", module(query, key, value, mask=mask)[0], out @ w["W_o.weight"].T)


@pytest.mark.row(39)
@pytest.mark.row(50)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_attention(dtype: torch.dtype, parity: Parity) -> None:
    """Wq, Wk, Wv, fc: by its formula with -1e9, and by torch's. The TensorFlow tutorial says 1 = blocked."""
    module = drawn(MultiHeadAttention(DIM, HEADS), dtype)
    w = checkpoints.export(module, "plain")
    assert [n for n in w if n.endswith("weight")] == ["Wq.weight", "Wk.weight", "Wv.weight", "fc.weight"]
    other = MultiHeadAttention(DIM, HEADS).to(dtype)
    checkpoints.load(other, w)
    query, key = torch.randn(3, 4, DIM, dtype=dtype), torch.randn(3, 6, DIM, dtype=dtype)
    mask = (torch.rand(3, 1, 4, 6) > 0.4).long().index_fill(3, torch.tensor([1]), 1)
    parts = ((query, "Wq"), (key, "Wk"), (key, "Wv"))
    q, k, v = (
        (x @ w[f"{n}.weight"].T + w[f"{n}.bias"]).view(3, -1, HEADS, DIM // HEADS).permute(0, 2, 1, 3) for x, n in parts
    )
    scores = (q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5).masked_fill(mask == 0, -1e9)
    weights = torch.softmax(scores, -1)
    golden = (weights @ v).permute(0, 2, 1, 3).reshape(3, 4, DIM) @ w["fc.weight"].T + w["fc.bias"]
    for sense in (Pairs.from_kept(mask), Pairs.from_blocked(1 - mask)):
        found, p = other(query, key, key, mask=sense, need_weights=True)
        compare(parity, 39, "plain Wq, Wk, Wv, fc", found, golden)
        compare(parity, 39, "plain Wq, Wk, Wv, fc, weights", p, weights)
    merged = scaled_dot_product_attention(q, k, v, mask.bool()).transpose(1, 2).flatten(2)
    compare(parity, 39, "torch SDPA", found, merged @ w["fc.weight"].T + w["fc.bias"])


def torchs(pre_norm: bool, dtype: torch.dtype) -> nn.Transformer:
    """Encoder and decoder of torch's layers; norms behind them only where those come first."""
    options = {"dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    encoder = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, **options)
    decoder = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, **options)
    last = (lambda: nn.LayerNorm(DIM)) if pre_norm else (lambda: None)
    halves = {
        "custom_encoder": nn.TransformerEncoder(encoder, LAYERS, last(), enable_nested_tensor=False),
        "custom_decoder": nn.TransformerDecoder(decoder, LAYERS, last()),
    }
    return drawn(nn.Transformer(DIM, HEADS, batch_first=True, **halves), dtype)


@pytest.mark.row(42)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_torchs_transformer_layers_and_one_step_of_training(pre_norm: bool, dtype: torch.dtype, parity: Parity) -> None:
    peer = torchs(pre_norm, dtype).train()  # without dropout; in evaluation torch has another path
    model = Transformer(
        9, 11, dim=DIM, heads=HEADS, hidden=HIDDEN, depth=LAYERS, dropout=0.0, bias=True, pre_norm=pre_norm
    ).to(dtype)
    fresh = ("*embedding.weight", "head.*")  # torch's begins and ends with vectors
    source, target = torch.randint(0, 9, (3, 6)), torch.randint(0, 11, (3, 5))
    ignored, future = torch.arange(6) >= LENGTHS[:, None], torch.ones(5, 5).triu(1).bool()

    def both() -> tuple[Tensor, Tensor]:
        found, _ = model.decoder(target, model.start(source, mask=Padding.from_key_padding_mask(ignored)))
        golden = peer(
            model.encoder.embed(source).detach(), model.decoder.embed(target).detach(),
            tgt_mask=future, src_key_padding_mask=ignored, memory_key_padding_mask=ignored,
        )  # fmt: skip
        return found, golden

    assert checkpoints.load(model, peer.state_dict(), fresh=fresh).layout == "torch"
    name = "torch nn.TransformerEncoderLayer and DecoderLayer" + (", norm_first" if pre_norm else "")
    found, golden = both()
    compare(parity, 42, name, found, golden)
    memory = peer.encoder(model.encoder.embed(source), src_key_padding_mask=ignored)
    ours = model.encoder(source, mask=Padding.from_key_padding_mask(ignored))
    compare(parity, 42, "torch nn.TransformerEncoder", ours[~ignored], memory[~ignored])
    wanted = torch.randn_like(golden)
    for module, out in ((model, found), (peer, golden)):
        for half in (module.encoder, module.decoder):
            half.zero_grad()
        ((out - wanted) ** 2).mean().backward(retain_graph=True)
    for half in (model.encoder, model.decoder):
        half.embedding.zero_grad()
    with torch.no_grad():
        for module in (model, peer):
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    stepped, golden = both()
    assert float((stepped - found).detach().abs().max()) > 1e-3
    compare(parity, 42, f"{name}, after a step of training", stepped, golden)


@pytest.mark.row(42)
@pytest.mark.row(54)
def test_d2ls_names_of_a_transformer() -> None:
    model = drawn(Transformer(9, 11, dim=DIM, heads=HEADS, hidden=HIDDEN, depth=LAYERS), torch.float32)
    theirs = checkpoints.export(model, "d2l")
    attention = [f"{name}.W_{part}.weight" for name in ("attention1", "attention2") for part in "qkvo"]
    others = ("addnorm1.ln", "addnorm3.ln", "ffn.dense1", "ffn.dense2")
    ends = [f"{name}.{kind}" for name in others for kind in ("weight", "bias")]
    assert {f"decoder.blks.block1.{name}" for name in [*attention, *ends]} <= set(theirs)
    assert {"encoder.embedding.weight", "encoder.blks.block0.attention.W_k.weight", "decoder.dense.bias"} <= set(theirs)
    other = Transformer(9, 11, dim=DIM, heads=HEADS, hidden=HIDDEN, depth=LAYERS)
    checkpoints.load(other, theirs, layout="d2l")
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())


class Published(nn.Module):
    """d2l's encoder and attention decoder put together anew from torch's GRU; `wrapped` is the English edition."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.embedding, self.decoder.embedding = nn.Embedding(9, 5), nn.Embedding(11, 5)
        rnn, self.encoder.rnn = nn.GRU(5, 6, 2), nn.Module()
        if wrapped:
            self.encoder.rnn.rnn = rnn
        else:
            self.encoder.rnn = rnn
        self.decoder.rnn, self.decoder.dense, self.decoder.attention = nn.GRU(11, 6, 2), nn.Linear(6, 11), nn.Module()
        for name, sizes in (("W_q", (6, 6)), ("W_k", (6, 6)), ("w_v", (6, 1))):
            self.decoder.attention.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        rnn, attention = getattr(self.encoder.rnn, "rnn", self.encoder.rnn), self.decoder.attention
        outputs, state = rnn(self.encoder.embedding(source).transpose(0, 1))
        h, logits, weights = outputs.transpose(0, 1), [], []
        for x in self.decoder.embedding(target).transpose(0, 1):
            scores = attention.w_v(torch.tanh(attention.W_q(state[-1])[:, None] + attention.W_k(h))).squeeze(-1)
            if lengths is not None:
                scores = scores.masked_fill(torch.arange(source.shape[1]) >= lengths[:, None], -1e6)
            weights.append(torch.softmax(scores, -1))
            context = (weights[-1][:, None] @ h)[:, 0]
            out, state = self.decoder.rnn(torch.cat([context, x], -1)[None], state)
            logits.append(self.decoder.dense(out[0]))
        return torch.stack(logits, 1), torch.stack(weights, 1)


@pytest.mark.row(43)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edition", ["d2l", "d2l-zh"])
def test_d2ls_bahdanau(edition: str, dtype: torch.dtype, parity: Parity) -> None:
    peer = drawn(Published(edition == "d2l"), dtype)
    model = Bahdanau(9, 11, embed=5, hidden=6, layers=2).to(dtype).eval()
    assert checkpoints.load(model, peer.state_dict()).layout == edition
    assert set(checkpoints.export(model, edition)) == set(peer.state_dict())
    source, target = torch.randint(0, 9, (3, 6)), torch.randint(0, 11, (3, 5))
    golden, p = peer(source, target, None)
    found, weights = model(source, target, need_weights=True)
    compare(parity, 43, f"{edition} Seq2SeqAttentionDecoder", found, golden)
    compare(parity, 43, f"{edition} Seq2SeqAttentionDecoder, weights", weights, p)
    # with lengths its decoder alone minds them: start it from the state that its encoder hands over
    golden, p = peer(source, target, LENGTHS)
    state = model.decoder.start(*model.encoder(source), mask=Padding.from_lengths(LENGTHS, 6))
    found, _, weights = model.decode(target, state)
    compare(parity, 43, f"{edition} Seq2SeqAttentionDecoder, lengths", found, golden)
    compare(parity, 43, f"{edition} Seq2SeqAttentionDecoder, lengths, weights", weights, p)


@pytest.fixture
def bert(transformers: ModuleType) -> Callable[[torch.dtype], nn.Module]:
    def build(dtype: torch.dtype) -> nn.Module:
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=DIM, num_attention_heads=HEADS, intermediate_size=HIDDEN, num_hidden_layers=1
        )
        config._attn_implementation = "eager"
        return drawn(import_module("transformers.models.bert.modeling_bert").BertModel(config), dtype)

    return build


@pytest.mark.row(41)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bert_embeddings(bert: Callable[[torch.dtype], nn.Module], dtype: torch.dtype, parity: Parity) -> None:
    """The default places, those behind others, and places of a batch padded on the left."""
    peer, module = bert(dtype), BertEmbeddings(20, DIM).to(dtype).eval()
    report = checkpoints.load(module, peer.state_dict())
    assert report.layout == "transformers"
    assert all(name.startswith(("encoder.", "pooler.")) for name in report.left)
    ids, kinds = torch.randint(0, 20, (2, 7)), torch.randint(0, 2, (2, 7))
    compare(parity, 41, "transformers BertEmbeddings", module(ids, types=kinds), peer.embeddings(ids, kinds))
    places = torch.tensor([[0, 0, 0, 1, 2, 3, 4], [505, 506, 507, 508, 509, 510, 511]])
    found, golden = module(ids, types=kinds, places=places), peer.embeddings(ids, kinds, places)
    compare(parity, 41, "transformers BertEmbeddings, position_ids", found, golden)
    with pytest.raises((IndexError, RuntimeError)):
        peer.embeddings(torch.zeros(1, 513, dtype=torch.int64))


@pytest.mark.row(41)
@pytest.mark.row(50)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bert_self_attention(bert: Callable[[torch.dtype], nn.Module], dtype: torch.dtype, parity: Parity) -> None:
    """1 = keep, and the -10000 that is added for the others; the output projection is another module's in BERT."""
    peer = bert(dtype).encoder.layer[0].attention.self
    module = MultiHeadAttention(DIM, HEADS).to(dtype)
    for ours, theirs in ((module.q, peer.query), (module.k, peer.key), (module.v, peer.value)):
        ours.load_state_dict(theirs.state_dict())
    nn.init.eye_(module.out.weight)
    nn.init.zeros_(module.out.bias)
    x, keep = torch.randn(3, 6, DIM, dtype=dtype), (torch.arange(6) < LENGTHS[:, None]).long()
    added = ((1 - keep) * -10000.0)[:, None, None].to(dtype)
    golden, weights = peer(x, added)
    for mask in (Padding.from_attention_mask(keep), Padding.from_additive(added)):
        found, p = module(x, x, x, mask=mask, need_weights=True)
        compare(parity, 41, "transformers BertSelfAttention", found, golden)
        compare(parity, 41, "transformers BertSelfAttention, weights", p, weights)
