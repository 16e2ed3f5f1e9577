"""`locant convert`: a file in, a file out, and what is printed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import published
import pytest
import torch
from small import same, swin
from torch import Tensor
from typer.testing import CliRunner, Result

from locant.checkpoints import export, load, read, write
from locant.cli import app
from locant.models import from_file
from locant.resizing import resize_table

PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
SWIN = ("--model", "Swin", "--set", "dim=8", "--set", "depths=(2, 1)", "--set", "heads=(2, 4)", "--classes", "5")
CONVIT = ("--model", "ConViT", "--set", "patch=8", "--set", "dim=16", "--set", "depth=3", "--set", "heads=4")
CONVIT += ("--set", "local_up_to_layer=2", "--classes", "5")
VIT = ("--model", "ViT", "--set", "patch=8", "--set", "dim=16", "--set", "depth=2", "--set", "heads=4")
VIT += ("--classes", "5")
DEIT = ("--model", "DeiT", *VIT[2:], "--set", "distilled=True")
DEIT3 = ("--model", "DeiT", *VIT[2:], "--set", "layer_scale=1e-6", "--set", "prefix_position=False")
DETR = ("--model", "detr", "--set", "dim=8", "--set", "heads=2", "--set", "hidden=16", "--set", "encoder_layers=1")
DETR += ("--set", "decoder_layers=1", "--set", "channels=6", "--classes", "3", "--set", "num_queries=5")
AIM_SWIN = ("--model", "AIMSwin", *SWIN[2:-1], "3", "--window", "4")
AIM_VIT = ("--model", "AIMViT", "--set", "patch=8", "--set", "dim=8", "--set", "depth=1", "--set", "heads=2")
FIERY = ("--model", "TemporalModel", "--set", "in_channels=10", "--set", "receptive_field=3")
FIERY += ("--set", "input_shape=(4, 4)", "--set", "start_out_channels=8")
XL = ("--model", "MemTransformerLM", "--set", "vocabulary=11", "--set", "dim=8", "--set", "layers=2")
XL += ("--set", "heads=2", "--set", "hidden=12", "--set", "tie_weight=False")

# source: (its tensors, the key that holds them, the model that is wanted, what the first line says)
SOURCES = {
    "Swin, official": (
        published.swin, "model", (*SWIN, "--window", "6", "--image-size", "48"),
        "Swin from the layout 'official': 35 kept, 15 renamed, 3 resized, 4 dropped, 0 missing, 0 unexpected",
    ),
    "Swin, timm": (
        published.swin_timm, "state_dict", (*SWIN, "--window", "4", "--image-size", "32"),
        "Swin from the layout 'timm': 30 kept, 20 renamed, 0 missing, 0 unexpected",
    ),
    "Swin, transformers": (
        lambda: published.swin_transformers(old=False), "", (*SWIN, "--window", "4", "--image-size", "32"),
        "Swin from the layout 'transformers': 50 renamed, 0 missing, 0 unexpected",
    ),
    "Swin, transformers 4": (
        lambda: published.swin_transformers(old=True), "", (*SWIN, "--window", "4", "--image-size", "32"),
        "Swin from the layout 'transformers 4': 50 renamed, 3 dropped, 0 missing, 0 unexpected",
    ),
    "Swin, torchvision": (
        published.swin_torchvision, "", (*SWIN, "--window", "4", "--image-size", "32"),
        "Swin from the layout 'torchvision': 4 kept, 46 renamed, 3 dropped, 0 missing, 0 unexpected",
    ),
    "ConViT, official": (
        published.convit, "model", (*CONVIT, "--image-size", "48x32"),
        "ConViT from the layout 'official': 31 kept, 18 renamed, 1 resized, 2 dropped, 0 missing, 0 unexpected",
    ),
    "ViT, timm": (
        published.vit, "", (*VIT, "--image-size", "48x32"),
        "ViT from the layout 'timm': 23 kept, 10 renamed, 1 resized, 0 missing, 0 unexpected",
    ),
    "ViT, transformers": (
        lambda: published.vit_transformers(old=False), "", (*VIT, "--image-size", "32"),
        "ViT from the layout 'transformers': 33 renamed, 0 missing, 0 unexpected",
    ),
    "ViT, transformers 4": (
        lambda: published.vit_transformers(old=True), "", (*VIT, "--image-size", "32"),
        "ViT from the layout 'transformers 4': 33 renamed, 0 missing, 0 unexpected",
    ),
    "ViT, torchvision": (
        published.vit_torchvision, "", (*VIT, "--image-size", "32"),
        "ViT from the layout 'torchvision': 33 renamed, 0 missing, 0 unexpected",
    ),
    "DeiT, distilled": (
        published.deit, "model", (*DEIT, "--image-size", "64"),
        "DeiT from the layout 'timm': 26 kept, 10 renamed, 1 resized, 0 missing, 0 unexpected",
    ),
    "DeiT III, official": (
        lambda: published.vit(front=(), gamma="gamma_{}") | {"cls_token": torch.randn(1, 1, 16)}, "model",
        (*DEIT3, "--image-size", "32"),
        "DeiT from the layout 'official': 23 kept, 13 renamed, 0 missing, 0 unexpected",
    ),
    "DETR, official": (
        published.detr, "model", (*DETR, "--set", "position=learned"),
        "DETR from the layout 'official': 23 kept, 34 renamed, 2 left alone, 0 missing, 0 unexpected",
    ),
    "AIM Swin, mmaction": (
        published.aim_swin, "state_dict", (*AIM_SWIN, "--frames", "8"),
        "AIMSwin from the layout 'mmaction': 2 kept, 82 renamed, 2 resized, 6 dropped, 0 missing, 0 unexpected",
    ),
    "AIM ViT, mmaction": (
        published.aim_vit, "state_dict", (*AIM_VIT, "--frames", "6", "--image-size", "24", "--classes", "3"),
        "AIMViT from the layout 'mmaction': 2 kept, 33 renamed, 2 resized, 0 missing, 0 unexpected",
    ),
    "FIERY, official": (
        published.fiery, "state_dict", FIERY,
        "TemporalModel from the layout 'official': 90 renamed, 3 left alone, 0 missing, 0 unexpected",
    ),
    "Transformer-XL, official": (
        published.transformer_xl, "model", XL,
        "MemTransformerLM from the layout 'official': 27 renamed, 1 dropped, 0 missing, 0 unexpected",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["convert", *arguments])


def learned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if not n.endswith(("index", "coords", "mask", "pos_proj.bias"))}


@pytest.mark.row(16)
@pytest.mark.row(35)
@pytest.mark.parametrize("source", SOURCES)
def test_a_file_of_each_source(source):
    make, top, wanted, line = SOURCES[source]
    state = make()
    torch.save({top: state, "epoch": 300} if top else state, "in.pth")
    done = run("in.pth", "out.safetensors", *wanted)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == line
    assert f"| {source} | {line} |" in PAGE.read_text(), "docs/checkpoints.py writes it there"
    assert done.stdout.splitlines()[-2:] == [
        "Written: out.safetensors", "Next, in Python: model = locant.models.from_file('out.safetensors')"
    ]  # fmt: skip
    model = from_file("out.safetensors")
    assert same(dict(model.state_dict()), read("out.safetensors"))
    assert all(tensor.isfinite().all() for tensor in read("out.safetensors").values())


@pytest.mark.row(16)
def test_values_arrive_and_go_back():
    state = published.swin()
    write("in.pth", state, top="model")
    run("in.pth", "out.safetensors", *SWIN, "--window", "6", "--image-size", "48", "--method", "linear")
    model = swin(window=6, img_size=48)
    assert load(model, "out.safetensors").layout == "locant"
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    wanted = resize_table(state[name].T.reshape(2, 7, 7), (11, 11))
    assert torch.equal(model.layers[0].blocks[1].attention.position.table, wanted)
    for to, file in (("timm", "timm.safetensors"), ("official", "official.pth"), ("transformers", "hf.safetensors")):
        assert run("in.pth", file, *SWIN, "--window", "4", "--image-size", "32", "--to", to).exit_code == 0
        again = swin()
        assert load(again, file).layout == to
        assert same(export(again, "official"), learned(state))
    assert next(iter(torch.load("official.pth", weights_only=True))) == "patch_embed.proj.weight", "as it loads there"


def test_a_file_says_what_it_is():
    from safetensors import safe_open

    write("in.safetensors", published.convit())
    run("in.safetensors", "out.safetensors", *CONVIT, "--image-size", "32")
    with safe_open("out.safetensors", "pt") as file:
        about = file.metadata()
    assert about["model"] == "ConViT"
    assert about["layout"] == "locant"
    assert json.loads(about["settings"]) | {"patch": 8, "img_size": 32} == json.loads(about["settings"])


def test_another_number_of_classes_starts_the_head_anew():
    state = published.convit()
    write("in.safetensors", state)
    wanted = (*CONVIT[:-1], "7", "--image-size", "32")
    done = run("in.safetensors", "out.safetensors", *wanted)
    assert "2 left alone, 0 missing, 0 unexpected" in done.stdout
    assert "  left alone\n    head.*  (2)\n" in done.stdout
    out = read("out.safetensors")
    assert out["head.weight"].shape == (7, 16)
    run("in.safetensors", "again.safetensors", *wanted)
    assert same(read("again.safetensors"), out), "drawn with a seed"
    run("in.safetensors", "same.safetensors", *CONVIT, "--image-size", "32")
    assert torch.equal(read("same.safetensors")["head.weight"], state["head.weight"]), "as many classes keep their head"
    done = run("in.safetensors", "none.safetensors", *CONVIT[:-1], "0", "--image-size", "32")
    assert "head.weight" not in read("none.safetensors")
    assert "2 left alone" in done.stdout


def test_quiet_and_loose():
    state = published.convit() | {"extra": torch.ones(2)}
    del state["norm.bias"]
    write("in.safetensors", state)
    wanted = (*CONVIT, "--image-size", "32", "--layout", "official")
    done = run("in.safetensors", "out.safetensors", *wanted)
    assert done.exit_code == 2
    assert "1 missing: norm.bias; 1 unexpected: extra" in done.stderr
    assert not Path("out.safetensors").exists()
    assert "1 missing, 1 unexpected" in run("in.safetensors", "out.safetensors", *wanted, "--loose").stdout
    assert run("in.safetensors", "out.safetensors", *wanted, "--loose", "--quiet").stdout == ""


@pytest.mark.row(16)
def test_an_image_model_becomes_one_for_clips():
    """AIM starts from Swin: what only clips need is named, and starts as nothing."""
    state = published.swin()
    write("in.safetensors", state)
    fresh = ("--fresh", "*Adapter*", "--fresh", "*temporal*", "--fresh", "cls_head.*", "--fresh", "head.*")
    done = run("in.safetensors", "out.safetensors", *AIM_SWIN, "--frames", "4", *fresh)
    assert done.exit_code == 0, done.stderr
    out = read("out.safetensors")
    assert torch.equal(out["layers.1.blocks.0.attention.qkv.weight"], state["layers.1.blocks.0.attn.qkv.weight"])
    assert torch.equal(out["patch_embed.proj.weight"].sum(2), state["patch_embed.proj.weight"])
    assert not out["layers.0.blocks.0.T_Adapter.D_fc2.weight"].any()


REFUSED = {
    "unknown model": (("--model", "swin_huge"), "--model needs a name out of AIMSwin, .*; got 'swin_huge'. Load other"),
    "unknown layout": (
        (*SWIN, "--to", "keras"),
        "--to needs a name out of 'locant', 'official'.* got 'keras'. Name one of them, or leave it out for Locant's",
    ),
    "unknown setting": ((*SWIN, "--set", "width=3"), "Swin needs settings out of .*dim.*; got width. Correct the name"),
    "no such size": ((*FIERY, "--window", "7"), "TemporalModel has no window to set; got 7. Leave it out"),
    "a setting too few": (FIERY[:-2][:4], "TemporalModel needs other settings: .*receptive_field.*; got .* Set them"),
    "what the builder refuses": ((*SWIN, "--set", "border=mirror"), "needs a `border` out of"),
    "unknown method": ((*SWIN, "--window", "6", "--method", "cubic"), "needs a method out of 'linear'.*; got 'cubic'"),
    "another file": ((*CONVIT, "--image-size", "32"), "a checkpoint of a ConViT needs names of one of its layouts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case):
    wanted, words = REFUSED[case]
    write("in.safetensors", published.swin())
    done = run("in.safetensors", "out.safetensors", *wanted)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("locant: ")
    assert done.stderr.count("\n") == 1
    assert re.search(words, done.stderr), done.stderr
    assert not Path("out.safetensors").exists()


def test_files_that_are_not_there_or_end_otherwise():
    done = run("none.pth", "out.safetensors", *SWIN)
    assert (done.exit_code, done.stderr) == (
        2,
        "locant: No such file or directory: none.pth. Name one that is there.\n",
    )
    write("in.safetensors", published.swin())
    done = run("in.safetensors", "out.onnx", *SWIN, "--window", "4", "--image-size", "32")
    assert done.exit_code == 2
    assert "is written to .safetensors, .pt or .pth; got 'out.onnx'" in done.stderr
    done = run("in.safetensors", "out.pth", *SWIN, "--set", "border")
    assert done.exit_code == 2
    assert "needs NAME=VALUE" in done.stderr


def test_the_source_is_never_written_over():
    """By its own name, a hard link or a symbolic one, its bytes stay; another file may be replaced."""
    write("in.pth", published.swin_timm())
    os.link("in.pth", "hard.pth")
    Path("soft.pth").symlink_to("in.pth")
    Path("link.pth").symlink_to("soft.pth")
    before, wanted = Path("in.pth").read_bytes(), (*SWIN, "--window", "4", "--image-size", "32")
    pairs = (("in.pth", "in.pth"), ("in.pth", "./in.pth"), ("in.pth", "hard.pth"), ("in.pth", "soft.pth"))
    for source, target in (*pairs, ("link.pth", "hard.pth")):
        done = run(source, target, *wanted)
        assert (done.exit_code, done.stdout) == (2, ""), (source, target)
        assert re.search(r"needs to be another one than .* which is read and would be lost\. Name another", done.stderr)
        assert Path("in.pth").read_bytes() == before
    write("old.pth", {"a": torch.ones(1)})
    assert run("in.pth", "old.pth", *wanted).exit_code == 0
    assert len(read("old.pth")) == 50


def test_the_target_is_looked_at_before_any_work():
    """A source that nothing could read: the sentence is about the target."""
    Path("in.pth").write_text("no checkpoint")
    Path("folder.pth").mkdir()
    for target, words in {
        "out.onnx": "is written to .safetensors, .pt or .pth; got 'out.onnx'",
        "no/folder/out.pth": "No such file or directory: no/folder/out.pth",
        "folder.pth": "Is a directory: folder.pth",
    }.items():
        done = run("in.pth", target, *SWIN)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_no_error_names_a_temporary_file(monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write("in.pth", published.swin_timm())
    monkeypatch.setattr(os, "fsync", full)
    done = run("in.pth", "out.pth", *SWIN, "--window", "4", "--image-size", "32")
    assert (done.exit_code, done.stderr) == (
        2,
        "locant: No space left on device: out.pth. Make room there, or name another place.\n",
    )
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError) as raised:
        write("no/folder/out.pth", {"a": torch.ones(1)})
    assert raised.value.filename == "no/folder/out.pth"


def test_the_daily_job_at_full_size():
    """Swin-T from pictures of 224 to 384, windows from 7 to 12: 28 million numbers."""
    state = published.swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7)
    state |= {"head.weight": torch.randn(1000, 768), "head.bias": torch.randn(1000)}
    assert sum(tensor.numel() for name, tensor in learned(state).items()) == 28_288_354
    torch.save({"model": state}, "swin_tiny_patch4_window7_224.pth")
    done = run(
        "swin_tiny_patch4_window7_224.pth", "out.safetensors", *"--model swin_tiny --image-size 384 --window 12".split()
    )
    assert done.stdout.splitlines()[0].endswith("12 resized, 17 dropped, 0 missing, 0 unexpected")
    assert "position.table  13 × 13 → 23 × 23, bicubic  (12)" in done.stdout
    assert read("out.safetensors")["layers.3.blocks.1.attention.position.table"].shape == (24, 23, 23)


def test_every_flag_is_told():
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    said = CliRunner().invoke(app, ["convert", "--help"], env=plain).output
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said)) - {"--help", "-h"}
    assert {"--model", "--image-size", "--loose", "-q"} <= flags
    assert {flag for flag in flags if f"`{flag}`" not in PAGE.read_text()} == set()
    assert "Example: locant convert" in said
