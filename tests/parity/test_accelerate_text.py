"""transformers' encoders of text, accelerated: a shared table, padding, and the calls that stay with the library."""

from __future__ import annotations

import copy
from types import ModuleType

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.transformers_text import FAMILIES

T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "decoder_start_token_id": 0}


def _encoder(transformers: ModuleType, name: str, **more) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(num_layers=3, **T5, **more)
    return accelerated.randomised(getattr(transformers, f"{name}EncoderModel")(config))


IDS = torch.arange(2 * 150).reshape(2, 150) * 7 % 50
MASK = (torch.arange(150) < torch.tensor([[150], [101]])).long()


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("mask", [None, MASK, MASK.bool()])
def test_t5(transformers, mask: torch.Tensor | None, feed_forward: str) -> None:
    model = _encoder(transformers, "T5", feed_forward_proj=feed_forward)
    report = accelerated.check(model, {"input_ids": IDS, "attention_mask": mask}, count=1)
    assert report.rows[0].what == "32 buckets of offsets, 3 layers"


@pytest.mark.parametrize(
    "part", ["0.layer_norm", "1.layer_norm", "0.SelfAttention.k", "0.dropout", "1.DenseReluDense", None]
)
@pytest.mark.parametrize("mask", [None, MASK])
def test_norms_and_sums_of_t5_are_joined(transformers, mask: torch.Tensor | None, part: str | None) -> None:
    config = transformers.T5Config(num_layers=2, **T5 | {"d_model": 64, "d_ff": 128, "num_heads": 4})
    model, path = transformers.T5EncoderModel(config), None if part is None else f"encoder.block.1.layer.{part}"
    accelerated.check_halves(model, [IDS, mask], path, ["encoder.final_layer_norm"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_t5_in_halves_beside_last_layers_in_float32(transformers, dtype: torch.dtype) -> None:
    """As `from_pretrained` loads it in float16: behind its first perceptron everything is float32."""
    model = _encoder(transformers, "T5").to(dtype)
    for name, module in model.named_modules():
        if name.endswith("DenseReluDense.wo"):
            module.float()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(IDS).last_hidden_state
        plain = model(IDS).last_hidden_state
        locant.accelerate(model, strict=True)
        found = model(IDS).last_hidden_state
    assert found.dtype == plain.dtype
    assert (found - exact).norm() <= 1.1 * (plain - exact).norm()


@pytest.mark.parametrize("mask", [None, MASK])
def test_umt5(transformers, mask: torch.Tensor | None) -> None:
    accelerated.check(_encoder(transformers, "UMT5"), {"input_ids": IDS, "attention_mask": mask}, count=3)


def _mpnet(transformers: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=160,
    )  # fmt: skip
    return accelerated.randomised(transformers.MPNetModel(config))


@pytest.mark.parametrize("mask", [None, MASK])
def test_mpnet(transformers, mask: torch.Tensor | None) -> None:
    """Under padding, which comes as numbers for every pair, with its class's own attention."""
    report = accelerated.check(_mpnet(transformers), {"input_ids": IDS, "attention_mask": mask}, count=1)
    assert report.rows[0].what == "32 buckets of offsets, 2 layers"


def test_mpnet_hands_out_its_weights(transformers) -> None:
    model = _mpnet(transformers)
    with torch.no_grad():
        wanted = model(IDS, output_attentions=True).attentions
        locant.accelerate(model, strict=True)
        found = model(IDS, output_attentions=True).attentions
    assert len(found) == 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["T5", "UMT5"])
def test_weights_and_other_masks_stay_with_the_library(transformers, name: str) -> None:
    model = _encoder(transformers, name)
    plain = copy.deepcopy(model)
    locant.accelerate(model, strict=True)
    for m in (model, plain):
        m.set_attn_implementation("eager")
    with torch.no_grad():
        model(IDS)
        ours, theirs = (m(IDS, output_attentions=True) for m in (model, plain))
    assert len(ours.attentions) == 3
    for one, other in zip(ours.attentions, theirs.attentions, strict=True):
        assert (one - other).abs().max() <= 1e-5


def _translator(transformers: ModuleType, **more) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.T5Config(num_layers=2, **T5, **more)
    return accelerated.randomised(transformers.T5ForConditionalGeneration(config))


def _pair(mask: torch.Tensor | None, **more) -> dict:
    return {"input_ids": IDS, "attention_mask": mask, "decoder_input_ids": IDS[:, 3:77], **more}


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_t5_with_its_decoder(transformers, mask: torch.Tensor | None, feed_forward: str) -> None:
    model = _translator(transformers, feed_forward_proj=feed_forward)
    report = accelerated.check(model, _pair(mask, use_cache=False), count=2)
    assert [row.what for row in report.rows if row.kind == "attention"] == [
        "32 buckets of offsets, 2 layers", "32 buckets of offsets, 2 layers, causal",
    ]  # fmt: skip


@pytest.mark.parametrize("mask", [None, MASK])
def test_t5_with_its_decoder_exactly(transformers, mask: torch.Tensor | None) -> None:
    accelerated.check_exact(_translator(transformers), _pair(mask, use_cache=False))


@pytest.mark.parametrize("cache", ["dynamic", "static", "no"])
def test_translation_with_a_cache(transformers, cache: str) -> None:
    """Token by token, behind a cache that grows; another one is left to the library."""
    model = _translator(transformers)
    plain = copy.deepcopy(model)
    locant.accelerate(model, strict=True)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": MASK, "output_logits": True}
    options |= {"return_dict_in_generate": True, "use_cache": cache != "no"}
    options |= {"cache_implementation": "static"} if cache == "static" else {}
    ours, theirs = (m.generate(IDS, **options) for m in (model, plain))
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_a_decoder_in_steps_sees_what_came_before(transformers) -> None:
    """Several tokens at once behind some that a cache holds, and a decoder's own padding, which is the library's."""
    model = _translator(transformers)
    with torch.no_grad():
        told, padded = model(**_pair(MASK)).logits, model(**_pair(MASK, decoder_attention_mask=MASK[:, 60:134])).logits
        locant.accelerate(model, strict=True)
        first = model(**_pair(MASK) | {"decoder_input_ids": IDS[:, 3:50]})
        more = {"decoder_input_ids": IDS[:, 50:77], "cache": first.cache, "encoder_outputs": (first[2],)}
        rest = model(attention_mask=MASK, **more)
        for found, wanted in (
            (torch.cat((first.logits, rest.logits), 1), told),
            (model(**_pair(MASK, decoder_attention_mask=MASK[:, 60:134])).logits, padded),
        ):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_copy_has_its_own_table_and_undo_reaches_the_layers(transformers) -> None:
    model = _encoder(transformers, "T5")
    with torch.no_grad():
        before = model(IDS)[0]
        report = locant.accelerate(model, strict=True)
        other = copy.deepcopy(model)
        other.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.neg_()
        changed = other(IDS)[0]
        assert (changed - before).abs().max() > 1e-2 * before.abs().max()
        assert (model(IDS)[0] - before).abs().max() <= 1e-5 * before.abs().max()
        report.undo()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.compiled
def test_graphs(transformers) -> None:
    accelerated.check_graphs(_encoder(transformers, "T5"), [IDS])


@pytest.mark.compiled
def test_graphs_of_a_decoder(transformers) -> None:
    model = _translator(transformers, use_cache=False)
    accelerated.check_graphs(model, [IDS, MASK, IDS[:, 3:77]])


@pytest.mark.parametrize("name", ["T5", "UMT5", "MPNet", "T5 with its decoder"])
def test_unknown_sources_are_tried(transformers, monkeypatch, name: str) -> None:
    others = {"MPNet": _mpnet, "T5 with its decoder": _translator}
    model = others[name](transformers) if name in others else _encoder(transformers, name)
    accelerated.check_tried(model, monkeypatch)


def test_the_classes_are_known_by_source(transformers) -> None:
    accelerated.check_known(FAMILIES)
