"""Published designs in `compare`: every scheme in its place, weights from a file and what is said of them, freezing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import plain_folder
from near import close
from redrawing import redraw
from torch import nn

from locant import Grid, RelativeTable, checkpoints, compare
from locant.compare import Placement, Refusal, measure, published
from locant.compare.builders import check, find_builder
from locant.compare.candidate import Candidate
from locant.compare.looks import look
from locant.compare.schemes import find
from locant.compare.sizes import DESIGNS
from locant.masks import Windows
from locant.models import convit_tiny, swin_tiny, vit_tiny
from locant.positions.gate import GatedPosition
from locant.registry import BUILDERS
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS

RECIPE = replace(KINDS["images"].recipe, model="vit_tiny")
SCHEMES = KINDS["images"].schemes
FAMILY = ("vit_tiny", "deit3_small", "swin_tiny", "swinv2_tiny", "convit_tiny")


def candidate(
    scheme: str = "learned", side: int = 32, classes: int = 4, trained: Any = None, **given: Any
) -> Candidate:
    recipe = replace(RECIPE, **given)
    torch.manual_seed(0)
    patch = (published.patch_of(recipe.model),) * 2
    placement = Placement(KINDS["images"], find("images", (scheme,))[0], (3, side, side), patch, classes, trained)
    made = Candidate.of(find_builder(recipe), placement)
    made.net.eval()
    return made


def saved(model: nn.Module, path: Path, layout: str = "timm") -> str:
    checkpoints.write(path, checkpoints.export(model, layout))
    return str(path)


def test_the_names_are_those_of_the_registry() -> None:
    assert set(DESIGNS) <= set(BUILDERS)
    assert {"vit_tiny", "vit_small", "vit_base", "deit_small", "swin_tiny", "convit_tiny"} <= set(DESIGNS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILY)
def test_every_scheme_has_its_place_in_every_design(name: str, scheme: str) -> None:
    """The check of a builder of one's own: it is asked for, kept, called, and it matters. Larger pictures run."""
    made = candidate(scheme, model=name)
    check(made)
    x = torch.rand(2, 3, 32, 32)
    assert made(x).shape == (2, 4)
    look(made)
    assert made.flops() > 0
    larger, _ = made.moved_to((3, 64, 64))
    assert larger(torch.rand(1, 3, 64, 64)).shape == (1, 4)


def test_schemes_differ_in_position_alone() -> None:
    """One seed: the weights beside position are the same bits for all schemes."""
    states = [candidate(scheme).net.state_dict() for scheme in ("none", "relative")]
    shared = states[0].keys() & states[1].keys()
    assert {"blocks.11.attention.attention.qkv.weight", "head.weight"} <= shared
    assert all(torch.equal(states[0][name], states[1][name]) for name in shared)


def test_windows_stay_where_they_are() -> None:
    """Swin at 32 pixels: maps of 8, 4, 2 and 1, windows of 7, 4, 2 and 1, moved where there is room."""
    layers = candidate("relative", model="swin_tiny").blocks()
    assert [layer.reaches for layer in layers[:4]] == [
        (Windows((7, 7), (0, 0)),), (Windows((7, 7), (3, 3)),), (Windows((4, 4), (0, 0)),), (Windows((4, 4), (0, 0)),)
    ]  # fmt: skip
    assert [layer.grid for layer in layers[::2]] == [
        Grid(8, 8),
        Grid(4, 4),
        Grid(2, 2),
        Grid(2, 2),
        Grid(2, 2),
        Grid(1, 1),
    ]
    tables = [position for layer in layers for position in layer]
    assert all(isinstance(table, RelativeTable) for table in tables)
    assert [table.grid.shape for table in tables[:3]] == [(7, 7), (7, 7), (4, 4)]


@pytest.mark.parametrize("side", [56, 32])
def test_swin_with_its_own_table_is_swin(side: int, tmp_path: Path) -> None:
    model = redraw(swin_tiny(img_size=side, num_classes=4)).eval()
    made = candidate("relative", side, model="swin_tiny", weights=saved(model, tmp_path / "swin.safetensors"))
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        close(made(x), model(x))
    assert made.net.carried.fair
    assert made.net.carried.position == sum(p.numel() for n, p in model.named_parameters() if ".position." in n)


def test_vit_with_its_own_rows_is_vit_and_others_say_what_is_missing(tmp_path: Path) -> None:
    model = redraw(vit_tiny(img_size=32, num_classes=4)).eval()
    given = {"weights": saved(model, tmp_path / "vit.safetensors")}
    x = torch.rand(2, 3, 32, 32)
    made = candidate("learned", **given)
    with torch.no_grad():
        close(made(x), model(x))
    rows = 5 * 192
    assert made.net.carried == published.Carried("timm", True, rows, 0, 0)
    # the class token keeps its row where a scheme has none
    bare = candidate("none", **given)
    assert torch.equal(bare.net.cls_token, model.cls_token + model.pos_embed.prefix)
    assert bare.net.carried == published.Carried("timm", True, 0, 0, rows)
    relative = candidate("relative", **given)
    assert relative.net.carried == published.Carried("timm", True, 0, 12 * 3 * (3 * 3 + 3), rows)
    qkv = "blocks.3.attention.attention.qkv.weight"
    assert torch.equal(relative.net.state_dict()[qkv], model.blocks[3].attention.qkv.weight)
    said = published.told(
        {"learned": ("learned embedding", made.net.carried), "relative": ("relative table", relative.net.carried)},
        Recipe(**{**RECIPE.__dict__, **given}),
    )
    assert not said["fair"]
    assert said["sentences"] == [
        "Weights of vit_tiny come from vit.safetensors (names of timm); its head is kept. All of it learns.",
        "This is no fair fight: only learned embedding has all that it learned. A fair one starts from scratch.",
        "learned embedding: the file's own position, 960 numbers of it carried over.",
        "relative table: 432 fresh beside weights that were trained without them, 960 of the file's own position "
        "dropped.",
    ]


def test_convit_keeps_its_gates_in_gated_layers(tmp_path: Path) -> None:
    model = redraw(convit_tiny(img_size=32, num_classes=4))
    made = candidate("gated", model="convit_tiny", weights=saved(model, tmp_path / "convit.safetensors"))
    gates = [position for layer in made.blocks() for position in layer]
    assert all(isinstance(gate, GatedPosition) for gate in gates)
    own = model.blocks[4].attention
    assert torch.equal(gates[4].spread, own.position.spread)
    qkv = made.net.blocks[4].attention.attention.qkv.weight
    assert torch.equal(qkv, torch.cat([own.qk.weight, own.v.weight]))
    numbers = sum(p.numel() for p in own.position.parameters())
    assert made.net.carried == published.Carried("official", True, 10 * numbers, 2 * numbers, 4 * 192)
    learned = candidate("learned", model="convit_tiny", weights=str(tmp_path / "convit.safetensors"))
    assert learned.net.carried == published.Carried("official", True, 4 * 192, 0, 10 * numbers)


def test_a_head_for_other_classes_starts_fresh(tmp_path: Path) -> None:
    model = redraw(vit_tiny(img_size=32, num_classes=1000))
    given = {"weights": saved(model, tmp_path / "vit.safetensors", "transformers")}
    made = candidate("learned", **given)
    assert made.net.head.weight.shape == (4, 192)
    assert not made.net.carried.head
    assert made.net.carried.notes == (
        "by the rules of 'transformers' numbers differ a little everywhere: norm_eps=1e-12 (here 1e-06)",
    )
    said = published.told({"learned": ("learned", made.net.carried)}, Recipe(**{**RECIPE.__dict__, **given}))
    assert said["fair"]
    assert said["sentences"][0].endswith(
        "(names of transformers); the head starts fresh, for other classes. All of it learns."
    )


def test_freezing_leaves_position_the_last_norm_and_the_head(tmp_path: Path) -> None:
    path = saved(vit_tiny(img_size=32, num_classes=4), tmp_path / "vit.safetensors")
    net = candidate("relative", weights=path, freeze=True).net
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    rows = ("table", "query_prefix", "key_prefix", "both")
    tables = {f"blocks.{b}.attention.layer.0.{row}" for b in range(12) for row in rows}
    assert learns == tables | {f"{end}.{part}" for end in ("norm", "head") for part in ("weight", "bias")}


def test_a_trained_model_needs_its_file_no_more(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    made = candidate("learned", weights=saved(redraw(vit_tiny(img_size=32, num_classes=4)), path))
    path.unlink()
    larger, _ = made.moved_to((3, 64, 64))
    assert larger.grid == Grid(4, 4, prefix=1)
    assert torch.equal(larger.net.blocks[0].mlp.fc1.weight, made.net.blocks[0].mlp.fc1.weight)


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file, frozen: results say what was carried, the page says so, and the best model is loaded without it."""
    monkeypatch.setattr(measure, "GROWTH", (1,))
    monkeypatch.setattr(measure, "ROUNDS", 1)
    photos = plain_folder(tmp_path / "photos", each=10)
    weights = tmp_path / "vit.safetensors"
    start = redraw(vit_tiny(num_classes=7))
    saved(start, weights)
    compare.run(
        photos, model="vit_tiny", weights=weights, freeze=True, size=32, positions=["learned", "alibi"], seeds=1,
        steps=2, lr=0.001, starts=1, threads=1, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    (task,) = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert task["model"]["name"] == "vit_tiny"
    assert task["patch"] == [16, 16]
    assert task["weights"]["schemes"]["learned"] == {
        "layout": "timm", "head": False, "position": 5 * 192, "fresh": 0, "dropped": 0, "notes": [], "fair": True
    }  # fmt: skip
    assert task["weights"]["frozen"]
    assert not task["weights"]["fair"]
    assert "This is no fair fight" in (tmp_path / "run" / "report.html").read_text()
    weights.unlink()
    net, about = compare.load(tmp_path / "run" / "trials" / "images-alibi-seed0-lr0.001.safetensors")
    assert about["recipe"]["weights"] == str(weights.resolve())
    assert torch.equal(net.state_dict()["blocks.0.mlp.fc1.weight"], start.blocks[0].mlp.fc1.weight)
    assert not torch.equal(net.state_dict()["norm.weight"], start.norm.weight)
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"scheme": "convit"}, r"vit_tiny needs schemes that differ in position alone; 'convit' is a whole design"),
        ({"scheme": "swin", "model": "swin_tiny"}, r"swin_tiny needs schemes that .*'swin' is a whole design"),
        ({"side": 40}, r"patches of \(16, 16\) must divide examples of \(40, 40\)|img_size"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        candidate(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "vit_tiny", "dim": 64}, r"--model vit_tiny has sizes of its own; --dim came as well"),
        ({"model": "vit_tiny", "weights": "gone.pth"}, r"--weights needs a file.*none at 'gone.pth'"),
        ({"model": "small", "weights": __file__}, r"--weights needs a published design.*small"),
        ({"model": "vit_tiny", "freeze": True}, r"--freeze needs --weights"),
        ({"model": "vit_tinny"}, r"--model needs small, base, vit_tiny.*got 'vit_tinny'"),
        ({"model": "vit_tiny", "weights": __file__}, r"--weights needs a checkpoint of vit_tiny"),
    ],
)
def test_what_a_run_refuses(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    photos = plain_folder(tmp_path / "photos", each=10)
    with pytest.raises(Refusal, match=sentence):
        compare.run(photos, size=32, positions=["none"], seeds=1, steps=1, out=tmp_path / "run", quiet=True, **given)


def test_clips_have_no_published_design() -> None:
    placement = Placement(KINDS["clips"], find("clips", ("none",))[0], (2, 1, 32, 32), (1, 16, 16), 4)
    with pytest.raises(Refusal, match="vit_tiny needs pictures; the task is clips"):
        find_builder(RECIPE)(placement)
