"""transformers' BERT and its kin, accelerated and explained: outputs are the library's, decoders and masks stay its."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import accelerated
import numpy as np
import pytest
import torch
from torch import nn

import locant
from locant import explain
from locant.integrations.named import build
from locant.integrations.transformers_encoders import FAMILIES

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 160,
}  # fmt: skip
DISTIL = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 160}
IDS = 2 + torch.arange(2 * 150).reshape(2, 150) * 7 % 48
MASK = (torch.arange(150) < torch.tensor([[150], [101]])).long()


def _encoder(transformers: ModuleType, name: str, **more: object) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(DISTIL if name == "DistilBert" else SIZES), **more)
    return accelerated.randomised(getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra", "LayoutLM", "DistilBert"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_encoders(transformers, name: str, mask: torch.Tensor | None) -> None:
    model = _encoder(transformers, name)
    report = accelerated.check(model, {"input_ids": IDS, "attention_mask": mask}, ("native", "sdpa"), count=2)
    assert all(row.what == "no position" for row in report.rows if row.kind == "attention")


def test_a_number_that_a_copy_reads_in_place_of_its_dropout(transformers) -> None:
    model = _encoder(transformers, "LayoutLM", attention_probs_dropout_prob=0.0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9 if module.p == 0.0 else 0.0  # that of attention is not asked
    wanted = model(IDS).last_hidden_state
    locant.accelerate(model, pack=False)
    assert torch.allclose(model(IDS).last_hidden_state, wanted, atol=1e-5)


def test_a_decoder_and_weights_stay_with_the_library(transformers) -> None:
    decoder = _encoder(transformers, "Bert", is_decoder=True)
    report = locant.accelerate(decoder, dry_run=True)
    rows = [row for row in report.rows if row.kind == "attention"]
    assert all(not row.kernel and row.why.startswith("it is a decoder's") for row in rows)
    model = _encoder(transformers, "Bert")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(IDS, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        locant.accelerate(model, pack=False)
        model.set_attn_implementation("eager")
        found = model(IDS, output_attentions=True).attentions
    assert len(found) == len(wanted) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_line_of_text_is_explained(transformers, tmp_path: Path) -> None:
    """A folder with a tokenizer: words are queries, the weights are the library's, and places are told from words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "down"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = _encoder(transformers, "Bert")
    model.save_pretrained(tmp_path)
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    found = explain.run(f"hf:{tmp_path}", "The cat sat down").data
    assert found.input.words == ("[CLS]", "the", "cat", "sat", "down", "[SEP]")
    assert [layer.name for layer in found.layers] == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        dense = model(torch.tensor([[2, 5, 6, 7, 8, 3]]), output_attentions=True).attentions
    for layer, expected in zip(found.layers, dense, strict=True):
        rows = np.stack([row.both for row in layer.rows], 1)
        assert np.allclose(rows, expected[0].numpy(), atol=1e-5)
        assert all(np.isclose(h.position_share + h.content_share, 1) for h in layer.heads)
    (places,) = [one for one in found.embeddings if one.name.endswith("position_embeddings.weight")]
    assert places.shape == (160,)


def test_an_encoder_that_was_saved_alone_is_built_alone(transformers, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2}
    model = accelerated.randomised(transformers.T5EncoderModel(transformers.T5Config(**sizes)))
    model.save_pretrained(tmp_path)
    found = build(f"hf:{tmp_path}", size=9)
    assert type(found.model).__name__ == "T5EncoderModel"
    ids = found.inputs[0] % 50
    assert torch.equal(found.model(ids).last_hidden_state, model(ids).last_hidden_state)


def test_sources_are_known(transformers) -> None:
    accelerated.check_known(FAMILIES)
