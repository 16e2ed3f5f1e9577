"""What a report says beyond names: other rules, windows per stage, sizes that look like a slip."""

from __future__ import annotations

from pathlib import Path

import published
import pytest
import torch
from small import same, vit
from test_convert import SWIN, run

from locant.checkpoints import convert, export, load, read, write
from locant.models import from_file
from locant.models.rules import SWIN as RULES
from locant.models.swin import Swin, swin_tiny
from locant.models.swin_v2 import SwinV2
from locant.models.vit import ViT

SIZES = {"dim": 8, "depths": (2, 1), "heads": (2, 4), "window": 4, "img_size": 32, "num_classes": 5}
AT = ("--window", "4", "--image-size", "32")
FILES = {
    "official": published.swin,
    "timm": published.swin_timm,
    "transformers": lambda: published.swin_transformers(old=False),
    "transformers 4": lambda: published.swin_transformers(old=True),
    "torchvision": published.swin_torchvision,
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("kind", [Swin, SwinV2])
def test_the_rules_of_the_library_are_told_where_they_differ_and_only_there(layout, kind):
    name = layout.split()[0]
    if kind is SwinV2 and layout == "transformers 4":
        pytest.skip("Swin v2 has one generation of names there")
    state = export(kind(**SIZES), layout)
    (note,) = load(kind(**SIZES), state, layout=layout).notes
    rules = kind.LIBRARIES[name]
    assert note.startswith(f"by the rules of {name!r} numbers differ on maps that windows do not divide or that are no")
    for key, (there, here) in rules.differences(kind(**SIZES).rules).items():
        assert there is None or f"{key}={there!r} (here {here!r})" in note
    assert note.endswith(f"For them build the model with like={name!r}.")
    assert load(kind(**SIZES, like=name), state, layout=layout).notes == []
    assert load(kind(**SIZES), kind(**SIZES).state_dict()).notes == [], "our own names are of no library"


def test_a_published_size_tells_what_timm_drops_in_training():
    state = export(swin_tiny(), "timm")
    (note,) = load(swin_tiny(), state).notes
    assert "; and in training: drop_path=0.1 (here 0.2). For them" in note
    model = swin_tiny()
    model.follow("timm")
    report = load(model, state)
    assert report.notes == []
    assert "Note" not in str(report)
    (note,) = load(swin_tiny(like="timm", drop_path_rate=0.3), state).notes
    assert note.startswith("by the rules of 'timm' numbers differ in training: drop_path=0.1 (here 0.3). For them")


def test_the_command_line_says_it_and_takes_it():
    write("in.pth", published.swin_timm())
    done = run("in.pth", "out.safetensors", *SWIN, *AT)
    assert "\nNote: by the rules of 'timm' numbers differ on maps" in done.stdout
    assert "For them build the model with --set like=timm.\n" in done.stdout
    done = run("in.pth", "out.safetensors", *SWIN, *AT, "--set", "like=timm")
    assert "Note" not in done.stdout
    assert from_file("out.safetensors").rules == Swin(**SIZES, like="timm").rules
    report = convert("in.pth", "out.pth", model="Swin", settings=SIZES)
    assert report.notes[0].endswith("build the model with settings={'like': 'timm'}.")


def test_what_is_written_for_a_library_has_its_tables():
    """On 16 pixels torchvision's windows of 4 stay, and its tables with them; ours shrink with the map."""
    write("in.pth", published.swin_torchvision())
    done = run("in.pth", "out.safetensors", *SWIN, "--window", "4", "--image-size", "8", "--to", "torchvision")
    assert done.exit_code == 0, done.stderr
    assert "resized" not in done.stdout
    assert "Note" not in done.stdout
    state = read("out.safetensors")
    assert same({n: t for n, t in state.items() if "index" not in n}, {
        n: t for n, t in read("in.pth").items() if "index" not in n
    })  # fmt: skip
    assert from_file("out.safetensors").rules.small == RULES["torchvision"].small


def tables(*windows: int) -> dict[str, torch.Tensor]:
    """A timm file whose stages have windows of these sizes."""
    depths = (1,) * len(windows)
    model = Swin(**{**SIZES, "img_size": 256, "depths": depths, "heads": (2, 4, 4, 8)[: len(windows)]})
    state = export(model, "timm")
    for stage, window in enumerate(windows):
        name = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        state[name] = torch.randn((2 * window - 1) ** 2, state[name].shape[1])
    return state


@pytest.mark.parametrize("windows", [(7, 7, 14, 7), (7, 14), (14, 14, 7, 7), (12, 7, 7)])
def test_windows_per_stage_do_not_become_one_in_silence(windows):
    depths = (1,) * len(windows)
    options = {**SIZES, "img_size": 256, "window": 7, "depths": depths, "heads": (2, 4, 4, 8)[: len(windows)]}
    words = (
        r"a Swin needs tables for one window, .* got (\d+) × \1 and then (\d+) × \2 in layers\.[123]\..*as Swin S3 has"
    )
    with pytest.raises(ValueError, match=rf"{words}.* on purpose with strict=False"):
        load(Swin(**options), tables(*windows))
    report = load(Swin(**options), tables(*windows), strict=False)
    assert "stages with windows of their own, as Swin S3 has" in report.notes[0]
    assert report.resized


@pytest.mark.parametrize("windows", [(7, 7, 7, 7), (12, 12, 12, 7), (14, 14, 7, 4), (8, 4, 2, 1), (7,)])
def test_windows_that_shrink_with_the_map_are_one(windows):
    depths = (1,) * len(windows)
    options = {**SIZES, "img_size": 256, "window": 7, "depths": depths, "heads": (2, 4, 4, 8)[: len(windows)]}
    assert load(Swin(**options), tables(*windows)).exact


def test_sizes_that_are_seldom_meant_are_told():
    write("in.pth", published.swin())
    done = run("in.pth", "out.safetensors", *SWIN, "--window", "100", "--image-size", "32")
    assert "\nNote: windows of 100 × 100 are wider than the first map, where they are 8 × 8.\n" in done.stdout
    done = run("in.pth", "out.safetensors", *SWIN, "--window", "4", "--image-size", "30")
    assert "\nNote: patches of 4 × 4 do not divide 30 × 30 pixels: zeros fill them up to 32 × 32.\n" in done.stdout
    for set_ in ("patch_border=cut", "like=torchvision"):
        done = run("in.pth", "out.safetensors", *SWIN, "--window", "4", "--image-size", "30", "--set", set_)
        assert "\nNote: patches of 4 × 4 do not divide 30 × 30 pixels: the rest is cut off.\n" in done.stdout
    done = run("in.pth", "out.safetensors", *SWIN, *AT)
    assert done.stdout.count("\nNote:") == 1
    model = from_file("out.safetensors")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_a_vit_is_told_of_another_epsilon_and_of_no_size_that_it_refuses() -> None:
    note = load(vit(), published.vit_transformers(old=False)).notes
    assert note == [
        "by the rules of 'transformers' numbers differ a little everywhere: norm_eps=1e-12 (here 1e-06). "
        "For them build the model with like='transformers'."
    ]
    assert load(vit(), published.vit()).notes == []
    filled = ViT(img_size=32, patch=8, dim=16, depth=2, heads=4, num_classes=5, patch_border="pad")
    assert load(filled, published.vit()).notes == [
        "by the rules of 'timm' numbers differ on pictures that patches do not divide: patch_border='cut' "
        "(here 'pad'). For them build the model with like='timm'."
    ]
