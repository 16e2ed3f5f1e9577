"""`attn_implementation="locant"`: transformers' models on our kernels, against their own eager attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from near import apart

from locant.explain.run import ADDED, UNTOLD, run
from locant.integrations import transformers_interface
from locant.integrations.transformers_interface import LineTable, attend, register

EXACT = 256 * torch.finfo(torch.float32).eps  # of numbers about 1, through two layers in another order


def _t5(transformers):
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5Model(config)


def _llama(transformers):
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _bert(transformers):
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    )


MODELS = {"t5": _t5, "llama": _llama, "bert": _bert}
IDS = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
ENDS = torch.ones(2, 9, dtype=torch.long).index_put((torch.tensor([1, 1]), torch.tensor([7, 8])), torch.tensor(0))


def outputs(model, how, **inputs):
    model.set_attn_implementation(how)
    return model(input_ids=IDS, **inputs).last_hidden_state


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_give_what_eager_gives(transformers, name, padded, monkeypatch):
    """Real tokens, forward and every gradient; and the kernels are ours: transformers' sdpa is not asked."""
    register()
    torch.manual_seed(0)
    model = MODELS[name](transformers).double().eval()
    inputs = {"attention_mask": ENDS} if padded else {}
    if name == "t5":
        inputs["decoder_input_ids"] = IDS[:, :6]
    real = slice(None, 6) if padded else slice(None)
    wanted = outputs(model, "sdpa" if name == "llama" else "eager", **inputs)[:, real]  # llama: float32 in its softmax
    grads = torch.autograd.grad(wanted.square().sum(), list(model.parameters()), allow_unused=True)
    monkeypatch.setattr(transformers_interface, "_by_sdpa", None)
    found = outputs(model, "locant", **inputs)[:, real]
    assert apart(found, wanted) <= 1e-10 * float(wanted.abs().max())
    ours = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
    for mine, theirs in zip(ours, grads, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert apart(mine, theirs) <= 1e-10 * max(1.0, float(theirs.abs().max()))


def test_decoding_with_a_cache(transformers):
    register()
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(_t5(transformers).config).eval()
    found = []
    for how in ("eager", "locant"):
        model.set_attn_implementation(how)
        found.append(
            model.generate(IDS, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
        )
    assert torch.equal(found[0].sequences, found[1].sequences)
    for theirs, ours in zip(found[0].logits, found[1].logits, strict=True):
        assert apart(ours, theirs) <= EXACT * float(theirs.abs().max())


class Owner(torch.nn.Module):
    is_causal = False


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 7), (3, 7), (7, 3)])
def test_a_bias_by_difference_is_read_back(queries, keys, monkeypatch):
    """Exactly its numbers, and as many as differences."""
    monkeypatch.setattr(transformers_interface, "_by_sdpa", None)
    numbers = torch.randn(2, queries + keys - 1, dtype=torch.float64)
    apart_by = torch.arange(queries)[:, None] - torch.arange(keys) + keys - 1
    bias = numbers[:, apart_by][None]
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.float64) for n in (queries, keys, keys))
    found, _ = attend(Owner(), q, k, v, None, position_bias=bias)
    weights = torch.softmax(q @ k.mT * 8**-0.5 + bias, dim=-1)
    assert apart(found, (weights @ v).transpose(1, 2)) <= 1e-13
    assert isinstance(transformers_interface._table(bias), LineTable)


def test_a_bias_of_places_runs_by_sdpa():
    q = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found, _ = attend(Owner(), q, q, q, None, position_bias=bias)
    assert apart(found, (torch.softmax(q @ q.mT * 8**-0.5 + bias, dim=-1) @ q).transpose(1, 2)) <= 1e-13


def test_masks_of_numbers_are_parted():
    """-inf and the least number are who may not attend; what else is added stays added."""
    q = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[..., 3:] = torch.finfo(torch.float64).min
    found, _ = attend(Owner(), q, q, q, mask)
    assert apart(found, _by_hand(q, mask)) <= 1e-13
    mask[..., :3] = torch.randn(5, 3, dtype=torch.float64)
    found, _ = attend(Owner(), q, q, q, mask)
    assert apart(found, _by_hand(q, mask)) <= 1e-13


def _by_hand(q, mask):
    return (torch.softmax(q @ q.mT * 8**-0.5 + mask, dim=-1) @ q).transpose(1, 2)


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_no_scheme_has_is_refused(name):
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match=f"without `{name}`"):
        attend(Owner(), q, q, q, None, **{name: 30.0})


def _gpt2(transformers):
    return transformers.GPT2Model(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4))


@pytest.mark.parametrize(("build", "entrance"), [(_gpt2, "embed"), (_llama, "rotate")])
def test_decoders_are_explained(transformers, build, entrance) -> None:
    """As the library's eager attention weighs; content is what it weighs with all tokens at one place."""
    torch.manual_seed(0)
    model, ids = build(transformers).eval(), torch.arange(6)[None] + 3
    with torch.no_grad():
        before = model(ids).last_hidden_state
        own = model.config._attn_implementation
        found = run(model, ids, queries=[((i + 0.5) / 6,) for i in range(6)]).data
        assert model.config._attn_implementation == own
        assert torch.equal(model(ids).last_hidden_state, before)
        model.set_attn_implementation("eager")
        eager = model(ids, output_attentions=True).attentions
        still = torch.zeros_like(ids)
        if entrance == "embed":  # the mean of the vectors in use, in every place
            model.wpe.weight[:] = model.wpe.weight[:6].mean(0)
        alone = model(ids, position_ids=still, output_attentions=True).attentions
    assert ADDED[entrance] in found.notes
    assert [layer.entrance for layer in found.layers] == [entrance] * 2
    for layer, whole, content in zip(found.layers, eager, alone, strict=True):
        assert layer.reason == ""
        for i, row in enumerate(layer.rows):
            assert row.both.shape == (4, i + 1)
            assert np.allclose(row.both, whole[0, :, i, : i + 1], atol=1e-5)
            assert np.allclose(row.content, content[0, :, i, : i + 1], atol=1e-5)


def test_places_that_act_unseen_are_said(transformers) -> None:
    ids = torch.arange(6)[None]
    layers = run(_llama(transformers).eval(), ids).data.layers
    assert [UNTOLD in layer.reason for layer in layers] == [False] * 2
    model = _llama(transformers).eval()
    model.doubled = torch.nn.Parameter(torch.ones(2)) * 2  # computed from another: no copy, no second run
    layers = run(model, ids).data.layers
    assert [UNTOLD in layer.reason for layer in layers] == [True] * 2
    assert all(row.position is None for layer in layers for row in layer.rows)
