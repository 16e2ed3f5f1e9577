"""transformers' Bloom and MPT, accelerated: order and ALiBi, padding behind and before, caches.

Both round their softmax to float32, whatever they are given: in float64 they differ from Locant by that.
"""

from __future__ import annotations

import copy
from types import ModuleType

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.transformers_alibi import FAMILIES

IDS = torch.arange(2 * 70).reshape(2, 70) * 7 % 50
BEHIND = (torch.arange(70) < torch.tensor([[70], [51]])).long()
NAMES = pytest.mark.parametrize("name", ["Bloom", "Mpt"])


def _model(transformers: ModuleType, name: str, heads: int = 4, kind: str = "Model", **more) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "initializer_range": 0.2, "use_cache": False}
    own = {
        "Bloom": {"hidden_size": 16 * heads, "n_layer": 3, "n_head": heads},
        "Mpt": {"d_model": 16 * heads, "n_layers": 3, "n_heads": heads, "max_seq_len": 80},
    }[name]
    config = getattr(transformers, f"{name}Config")(**sizes, **own, **more)
    return accelerated.randomised(getattr(transformers, f"{name}{kind}")(config))


@NAMES
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("mask", [None, BEHIND, BEHIND.bool()])
def test_outputs_and_gradients(transformers, name: str, heads: int, mask: torch.Tensor | None) -> None:
    example = {"input_ids": IDS, "attention_mask": mask}
    report = accelerated.check(_model(transformers, name, heads), example, count=1)
    assert report.rows[0].what == "ALiBi, causal, 3 layers"


@NAMES
def test_as_exact_as_its_own_softmax(transformers, name: str) -> None:
    """With its softmax in float64 the library's own numbers are those of Locant to 1e-10."""
    model = _model(transformers, name).double()
    ours = copy.deepcopy(model)
    locant.accelerate(ours, strict=True)

    def in_float64(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.softmax(x.double() if dtype is None else x, dim)

    found = ours(IDS, attention_mask=BEHIND)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "softmax", in_float64)
        patch.setattr(torch.Tensor, "float", lambda x: x)
        wanted = model(IDS, attention_mask=BEHIND)[0]
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@NAMES
@pytest.mark.parametrize("cache", ["dynamic", "static", "no"])
@pytest.mark.parametrize("pads", ["none", "before", "behind"])
def test_generation(transformers, name: str, cache: str, pads: str) -> None:
    model = _model(transformers, name, kind="ForCausalLM")
    plain = copy.deepcopy(model)
    locant.accelerate(model, strict=True)
    mask = {"none": None, "behind": BEHIND, "before": BEHIND.flip(1)}[pads]
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "attention_mask": mask,
        "output_logits": True,
        "pad_token_id": 0,
    }
    options |= {"return_dict_in_generate": True, "use_cache": cache != "no"}
    options |= {"cache_implementation": "static"} if cache == "static" else {}
    ours, theirs = (m.generate(IDS, **options) for m in (model, plain))
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@NAMES
def test_what_it_hands_out_beside_is_the_library_s(transformers, name: str) -> None:
    """Attention weights, hidden states, and rows whose keys are padding alone."""
    model = _model(transformers, name)
    plain = copy.deepcopy(model)
    locant.accelerate(model, strict=True)
    with torch.no_grad():
        for more in ({"output_attentions": True, "output_hidden_states": True}, {"attention_mask": BEHIND.flip(1)}):
            ours, theirs = (m(IDS, **more) for m in (model, plain))
            for key, value in theirs.items():
                for one, other in zip(
                    ours[key] if isinstance(value, tuple) else (ours[key],),
                    value if isinstance(value, tuple) else (value,),
                    strict=True,
                ):
                    assert (one - other).abs().max() <= 1e-5 * other.abs().max()
        ours, theirs = (m(IDS[:, 40:], past_key_values=m(IDS[:, :40], use_cache=True).cache)[0] for m in (model, plain))
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()  # a cache by its older name
        words = model.get_input_embeddings()(IDS)
        assert (model(inputs_embeds=words)[0] - model(IDS)[0]).abs().max() == 0
        assert isinstance(model(IDS, return_dict=False), tuple)


@pytest.mark.compiled
@NAMES
def test_graphs(transformers, name: str) -> None:
    accelerated.check_graphs(_model(transformers, name), [IDS])


def test_sums_in_slices_stay_with_the_library(transformers) -> None:
    report = locant.accelerate(_model(transformers, "Bloom", pretraining_tp=2, slow_but_exact=True))
    assert "in slices" in report.rows[0].why


@NAMES
def test_unknown_sources_are_tried(transformers, monkeypatch, name: str) -> None:
    accelerated.check_tried(_model(transformers, name), monkeypatch)


def test_the_classes_are_known_by_source(transformers) -> None:
    accelerated.check_known(FAMILIES)
