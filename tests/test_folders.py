"""Models in folders, without a network, and what timm's models offer: heads, layers in between, maps."""

from __future__ import annotations

import inspect
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from redrawing import redraw
from safetensors.torch import load
from small import MODELS, convit, deit, mvit_v2, swin, vit
from torch import nn

from locant import RelativeTable
from locant.models import ViT
from locant.models.folders import InFolders

INPUT = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KEPT = [name for name in MODELS if name.startswith("models.") and name != "models.detr.DETR"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a folder needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", KEPT)
def test_a_folder_gives_the_same_model_back(name, tmp_path):
    model = redraw(MODELS[name]())
    model.save_pretrained(tmp_path / "kept")
    again = type(model).from_pretrained(tmp_path / "kept")
    assert not again.training
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["model"] == type(model).__name__
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


@pytest.mark.parametrize("make", [swin, vit, convit, mvit_v2])
def test_other_sizes_heads_and_rules_are_kept(make, tmp_path):
    """What was changed since the model was built stands in the file: sizes, classes, whose rules hold."""
    model = redraw(make()).resized(img_size=64).eval()
    model.reset_classifier(7)
    if hasattr(model, "follow"):
        model.follow("timm")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    x = torch.randn(1, 3, 64, 64)
    assert again(x).shape == (1, 7)
    assert torch.equal(again(x), model(x))
    assert getattr(again, "rules", None) == getattr(model, "rules", None)


@pytest.mark.plain  # lists for tuples, as JSON has them: the shape hook refuses those
def test_a_class_of_the_hub_reads_and_writes_the_same_folders(tmp_path):
    """huggingface_hub's PyTorchModelHubMixin, put before one of our models."""
    hub = pytest.importorskip("huggingface_hub")
    ours = redraw(swin()).eval()

    class HubSwin(hub.PyTorchModelHubMixin, type(ours)):
        pass

    ours.save_pretrained(tmp_path / "ours")
    theirs = HubSwin.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(theirs(INPUT), ours(INPUT))
    told = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert told[0].pop("model") == type(ours).__name__
    assert told[0] == {name: told[1][name] for name in told[0]}


def test_what_json_cannot_say_is_refused(tmp_path):
    model = ViT(
        img_size=16, patch=8, dim=8, depth=1, heads=2, position=lambda grid, dim, heads: RelativeTable(grid, heads)
    )
    with pytest.raises(ValueError, match="others for position"):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_folders_that_do_not_fit(tmp_path):
    vit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Swin.from_pretrained needs a config.json .* for 'ViT'"):
        type(swin()).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ViT needs model.safetensors with its own tensors"):
        ViT.from_pretrained(tmp_path, num_classes=9)
    with pytest.raises(ValueError, match="or a name on the Hub"):
        ViT.from_pretrained(tmp_path / "nowhere")


def test_names_are_looked_up_by_huggingface_hub(tmp_path, monkeypatch):
    import huggingface_hub

    model = redraw(vit())
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert torch.equal(ViT.from_pretrained("someone/vit")(INPUT), model.eval()(INPUT))


@pytest.mark.parametrize(("make", "width"), [(swin, 16), (vit, 16), (deit, 16), (convit, 16), (mvit_v2, 16)])
def test_heads(make, width):
    model = redraw(make()).eval()
    assert model.num_features == width
    model.reset_classifier(0)
    pooled = model(INPUT)
    assert pooled.shape == (2, width)
    model.reset_classifier(3)
    wanted = nn.functional.linear(pooled, model.head.weight, model.head.bias)
    if hasattr(model, "head_dist"):
        assert model.head_dist.out_features == 3
        wanted = model.both(INPUT)[0]
    assert torch.equal(model.head(pooled), wanted)
    with pytest.raises(ValueError, match="`num_classes` as a whole number of at least 0"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("make", [swin, vit, deit, convit, mvit_v2])
def test_layers_in_between(make):
    model = redraw(make()).eval()
    (last,) = model.get_intermediate_layers(INPUT, norm=True)
    whole = model.forward_features(INPUT)
    front = whole.shape[1] - last.shape[1] if whole.ndim == 3 else 0
    assert torch.equal(last, whole[:, front:] if whole.ndim == 3 else whole.flatten(2).transpose(1, 2))
    ((patches, tokens),) = model.get_intermediate_layers(INPUT, [0], return_prefix_tokens=True)
    maps = model.features_only()(INPUT)
    assert torch.equal(maps[0], patches.transpose(1, 2).unflatten(2, maps[0].shape[2:]))
    assert torch.equal(model.features_only([0])(INPUT)[0], maps[0])
    assert maps[-1].shape[2] * maps[-1].shape[3] == last.shape[1]
    assert tokens.shape[1] == (0 if make in (swin, convit, mvit_v2) else 2 if make is deit else 1)
    with pytest.raises(ValueError, match="needs `n` from 1 to"):
        model.get_intermediate_layers(INPUT, 99)


def test_every_model_of_plain_settings_is_kept():
    from locant import models

    kinds = [getattr(models, name) for name in models.__all__ if isinstance(getattr(models, name), type)]
    # DETR is built of modules, two are halves of one
    without = {kind.__name__ for kind in kinds if not issubclass(kind, InFolders)}
    assert without == {"DETR", "TransformerDecoder", "TransformerEncoder"}


@pytest.mark.parametrize("name", KEPT)
def test_a_class_shows_the_arguments_of_its_constructor(name):
    cls = type(MODELS[name]())
    assert [*inspect.signature(cls).parameters] == [*inspect.signature(cls.__init__).parameters][1:]


def test_a_repository_gets_both_files(monkeypatch):
    """What is pushed is what a folder holds, to the repository that was named."""
    asked, held = [], {}

    def upload_folder(*, repo_id, folder_path, token):
        held.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        asked.append(("upload", repo_id, token))

    hub = SimpleNamespace(
        create_repo=lambda name, **named: asked.append(("create", name, named)), upload_folder=upload_folder
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = swin()
    model.push_to_hub("owner/name", private=True, token="t")
    assert asked == [
        ("create", "owner/name", {"private": True, "token": "t", "exist_ok": True}), ("upload", "owner/name", "t"),
    ]  # fmt: skip
    assert json.loads(held["config.json"])["model"] == "Swin"
    kept = load(held["model.safetensors"])
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert set(held) == {"config.json", "model.safetensors"}
