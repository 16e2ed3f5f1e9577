"""transformers' encoders of speech, accelerated: distances both ways, clipped, under padding and in chunks."""

from __future__ import annotations

import copy
import importlib
from types import ModuleType
from typing import Any

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations import named
from locant.integrations.conformer import FAMILIES

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_depthwise_kernel_size": 5, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
SEAMLESS = {
    "hidden_size": 32, "speech_encoder_layers": 2, "speech_encoder_attention_heads": 2, "conv_depthwise_kernel_size": 5,
    "speech_encoder_intermediate_size": 48, "speech_encoder_dropout": 0.0, "speech_encoder_layerdrop": 0.0,
    "adaptor_dropout": 0.0,
}  # fmt: skip
FILES = {
    "Wav2Vec2Conformer": ("wav2vec2_conformer", SMALL), "Wav2Vec2Bert": ("wav2vec2_bert", SMALL),
    "SeamlessM4TConformer": ("seamless_m4t", SEAMLESS), "SeamlessM4Tv2Conformer": ("seamless_m4t_v2", SEAMLESS),
}  # fmt: skip
KINDS = [
    ("Wav2Vec2Conformer", "relative"), ("Wav2Vec2Conformer", "rotary"), ("Wav2Vec2Conformer", None),
    ("Wav2Vec2Bert", "relative"), ("Wav2Vec2Bert", "relative_key"), ("Wav2Vec2Bert", "rotary"),
    ("SeamlessM4TConformer", "relative"), ("SeamlessM4TConformer", "rotary"),
    ("SeamlessM4Tv2Conformer", "relative_key"), ("SeamlessM4Tv2Conformer", "none"),
]  # fmt: skip
SEEN = torch.arange(75) < torch.tensor([[75], [52]])


def _encoder(transformers: ModuleType, name: str, kind: str | None, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    file, small = FILES[name]
    library = importlib.import_module(f"transformers.models.{file}.modeling_{file}")
    config = getattr(transformers, f"{name.removesuffix('Conformer') if small is SEAMLESS else name}Config")
    clips = {"left_max_position_embeddings": 7, "right_max_position_embeddings": 3}
    encoder = getattr(library, f"{name}Encoder")(config(**{**small, **clips, "position_embeddings_type": kind, **more}))
    encoder.config._attn_implementation = encoder.config._attn_implementation or "sdpa"
    return accelerated.randomised(_widened(encoder))


def _widened(encoder: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if any(part in name for part in ("linear_pos", "distance_embedding", "relative_k_proj")):
                p.normal_(std=0.5)
    return encoder


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("seen", [None, SEEN])
@pytest.mark.row(63)
def test_encoders(transformers, parity, name: str, kind: str | None, seen: torch.Tensor | None) -> None:
    example = {"hidden_states": torch.randn(2, 75, 32), "attention_mask": seen}
    report = accelerated.check(_encoder(transformers, name, kind), dict(example), accelerated.CONTENT, count=1)
    assert "2 layers" in report.rows[0].what
    exact = _encoder(transformers, name, kind)
    for module in exact.modules():  # of float32 numbers, which its forward would round again
        if hasattr(module, "pe"):
            module.pe = module.pe.double()
    accelerated.check_exact(exact, example, parity, 63)


def test_a_clip_longer_than_the_sound(transformers) -> None:
    more = {"left_max_position_embeddings": 90, "right_max_position_embeddings": 70}
    encoder = _encoder(transformers, "Wav2Vec2Bert", "relative_key", **more)
    accelerated.check_exact(encoder, {"hidden_states": torch.randn(2, 75, 32), "attention_mask": SEEN})


@pytest.mark.parametrize("seen", [None, SEEN])
def test_chunks_are_pairs(transformers, seen: torch.Tensor | None) -> None:
    more = {"speech_encoder_chunk_size": 20, "speech_encoder_left_chunk_num": 1}
    encoder = _encoder(transformers, "SeamlessM4Tv2Conformer", "relative_key", **more)
    accelerated.check_exact(encoder, {"hidden_states": torch.randn(2, 75, 32), "attention_mask": seen})


def test_a_sound_that_is_nothing_but_padding(transformers) -> None:
    """The library's queries see all keys alike then."""
    seen = torch.stack([SEEN[0], torch.zeros(75, dtype=torch.bool)])
    encoder = _encoder(transformers, "Wav2Vec2Bert", "relative_key")
    accelerated.check_exact(encoder, {"hidden_states": torch.randn(2, 75, 32), "attention_mask": seen})


FAST = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "num_mel_bins": 16,
    "subsampling_conv_channels": 8, "conv_kernel_size": 5, "layerdrop": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "dropout_positions": 0.0,
}  # fmt: skip


def _parakeet(transformers: ModuleType, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {**FAST, **more}
    library = importlib.import_module("transformers.models.parakeet.modeling_parakeet")
    return accelerated.randomised(_widened(library.ParakeetEncoder(transformers.ParakeetEncoderConfig(**options))))


SOUND = torch.arange(200) < torch.tensor([[200], [131]])


@pytest.mark.parametrize("seen", [None, SOUND])
@pytest.mark.row(63)
def test_parakeet(transformers, parity, seen: torch.Tensor | None) -> None:
    """Queries in the padding see all keys alike: they are part of the output."""
    example = {"input_features": torch.randn(2, 200, 16), "attention_mask": seen}
    accelerated.check(_parakeet(transformers), example, accelerated.CONTENT, count=1)
    accelerated.check_exact(_parakeet(transformers), example, parity, 63)


def test_parakeets_positions_dropped_by_sample(transformers) -> None:
    """In training, with a dropout on them, they are another sample's own."""
    model = _parakeet(transformers, dropout_positions=0.5).train()
    plain, x = copy.deepcopy(model), torch.randn(2, 200, 16)
    locant.accelerate(model, strict=True)
    torch.manual_seed(3)
    wanted = plain(x)[0]
    torch.manual_seed(3)
    assert (model(x)[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def _nemotron(transformers: ModuleType, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {**FAST, "sliding_window": 9, "default_num_lookahead_tokens": 3, **more}
    library = importlib.import_module("transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming")
    config = transformers.NemotronAsrStreamingEncoderConfig(**options)
    return accelerated.randomised(_widened(library.NemotronAsrStreamingEncoder(config)))


@pytest.mark.parametrize("seen", [None, SOUND])
@pytest.mark.row(63)
def test_nemotron(transformers, parity, seen: torch.Tensor | None) -> None:
    example = {"input_features": torch.randn(2, 200, 16), "attention_mask": seen}
    for sliding_window in (9, 4):  # with the second some queries in the padding see nothing
        accelerated.check_exact(_nemotron(transformers, sliding_window=sliding_window), example, parity, 63)
    accelerated.check(_nemotron(transformers), example, accelerated.CONTENT, count=2)


def test_nemotron_streams(transformers) -> None:
    """With a cache its layers run as they are, before and after sounds that come whole."""
    model, x = _nemotron(transformers), torch.randn(1, 200, 16)
    plain = copy.deepcopy(model)
    locant.accelerate(model, strict=True)
    with torch.no_grad():
        for use_cache in (True, False, True):
            ours, theirs = (m(x, use_cache=use_cache).last_hidden_state for m in (model, plain))
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_adapter_and_a_whole_model(transformers) -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**SMALL, add_adapter=True, num_adapter_layers=1, output_hidden_size=32)
    model = accelerated.randomised(transformers.Wav2Vec2BertModel(config))
    seen = torch.arange(75) < torch.tensor([[75], [52]])
    example = {"input_features": torch.randn(2, 75, 160), "attention_mask": seen.long()}
    report = accelerated.check(model, example, ("native", "sdpa"), count=2)
    assert [row.what.split(",")[0] for row in report.rows if row.kind == "attention"] == [
        "a vector per clipped distance", "no position"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Wav2Vec2Conformer", "Wav2Vec2Bert"])
def test_weights_stay_with_the_library(transformers, name: str) -> None:
    encoder = _encoder(transformers, name, "relative")
    plain, x = copy.deepcopy(encoder), torch.randn(2, 75, 32)
    locant.accelerate(encoder, strict=True)
    for m in (encoder, plain):
        m.config._attn_implementation = "eager"
    with torch.no_grad():
        ours, theirs = (m(x)[0] for m in (encoder, plain))
    assert torch.equal(ours, theirs)
    report = locant.accelerate(plain)
    assert "set_attn_implementation" in report.rows[0].why


@pytest.mark.parametrize(
    ("name", "sound"),
    [("Wav2Vec2Conformer", (2, 4_000)), ("Wav2Vec2Bert", (2, 60, 24)), ("ParakeetEncoder", (2, 60, 16))],
)
def test_sounds_by_name(transformers, tmp_path, name: str, sound: tuple[int, ...]) -> None:
    """What fits a model whose folder is named on the command line."""
    small = FAST if name == "ParakeetEncoder" else {**SMALL, "feature_projection_input_dim": 24}
    small = {**small, **({"conv_dim": [8] * 7} if name == "Wav2Vec2Conformer" else {})}
    getattr(transformers, f"{name}Config")(**small).save_pretrained(tmp_path)
    found = named.build(f"hf:{tmp_path}", batch=2, size=sound[1])
    assert found.inputs[0].shape == sound
    assert found.inputs[0].is_floating_point()
    report = locant.accelerate(found.model, example=found.inputs, strict=True)
    assert report.checked is not None


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["Wav2Vec2Conformer", "Wav2Vec2Bert", "SeamlessM4Tv2Conformer"])
def test_graphs(transformers, name: str) -> None:
    kind = "relative" if name == "Wav2Vec2Conformer" else "relative_key"
    accelerated.check_graphs(_encoder(transformers, name, kind), [torch.randn(2, 75, 32)])


def test_unknown_sources_are_tried(transformers, monkeypatch) -> None:
    for name, kind in KINDS:
        accelerated.check_tried(_encoder(transformers, name, kind), monkeypatch)
    for model in (_parakeet(transformers), _nemotron(transformers)):
        accelerated.check_tried(model, monkeypatch)


def test_another_sign_of_distance_is_not_taken_for_it(transformers, monkeypatch) -> None:
    library = importlib.import_module("transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer")
    own = library._apply_relative_position_encoding
    monkeypatch.setattr(library, "_apply_relative_position_encoding", lambda m, q, k, r: own(m, q, k, r.flip(1)))
    monkeypatch.setattr("locant.integrations.model.digest", lambda *_: "another")
    row = locant.accelerate(_encoder(transformers, "Wav2Vec2Conformer", "relative")).rows[0]
    assert row.kernel is None
    assert "on random input it differs" in row.why


def test_the_classes_are_known_by_source(transformers) -> None:
    accelerated.check_known(FAMILIES)
