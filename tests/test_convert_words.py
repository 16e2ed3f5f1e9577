"""What `locant convert` says: errors in the words of the command line, every model by name, and what to write next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import published
import pytest
import torch
from small import same, swin
from test_convert import CONVIT, DETR, PAGE, SWIN, learned, run
from torch import Tensor

from locant.checkpoints import export, load, read, write
from locant.models import from_file
from locant.registry import BUILDERS


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SPOKEN: dict[str, tuple[Callable[[], dict[str, Tensor]], tuple[str, ...], str]] = {
    "a layout that is not there": (
        published.swin, (*SWIN, "--layout", "keras"), "--layout needs a name .* got 'keras'. Leave it out"
    ),
    "no layout": (published.convit, SWIN, "name its --layout, and --loose to load what fits"),
    "a head that is missing": (
        lambda: {n: t for n, t in published.swin_timm().items() if "head" not in n}, SWIN,
        r"Start the head anew with --fresh 'head\.\*', or build the model without one: --classes 0\.",
    ),
    "a head for others": (
        published.detr, (*DETR[:-4], *DETR[-2:], "--set", "position=learned"),
        r"Build the model for the 3 classes of its head: --classes 3, or start .* --fresh 'class_embed\.\*'\.",
    ),
    "a tensor that is missing": (
        lambda: {n: t for n, t in published.swin_timm().items() if n != "norm.bias"}, SWIN,
        r"name what is to stay as it is \(--fresh\), or load what fits \(--loose\)",
    ),
    "two sets": (
        lambda: {f"{who}.{n}": t for who in "ab" for n, t in published.swin().items()}, SWIN, "Say which with --prefix",
    ),
    "no such prefix": (published.swin, (*SWIN, "--prefix", "net."), r"begin with --prefix net\. were needed"),
    "a window in doubt": (
        lambda: published.swin() | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(15, 2)}, SWIN,
        "Say which window the file was made for: --from-window HxW",
    ),
    "a grid in doubt": (
        lambda: published.convit() | {"pos_embed": torch.ones(1, 15, 16)}, (*CONVIT, "--image-size", "32"),
        "got --from-grid None. Give the one that it was trained on: --from-grid ROWSxCOLUMNS",
    ),
    "a grid in two ways": (published.convit, (*CONVIT, "--image-size", "16x64"), "Say which: --from-grid ROWSxCOLUMNS"),
    "no pixels": (published.swin, (*SWIN, "--image-size", "0"), "Swin needs --image-size as one number"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOKEN)
def test_the_command_line_speaks_its_own_words(case):
    make, wanted, words = SPOKEN[case]
    torch.save(make(), "in.pth")
    done = run("in.pth", "out.safetensors", *wanted)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(words, done.stderr), done.stderr
    python = r"strict=|fresh=|layout=|prefix=|top=|window=\(|grid=\(|num_classes=\d|`(layout|grid|img_size|model|top)`"
    assert re.search(python, done.stderr) is None, done.stderr


def test_two_dictionaries_are_asked_for_in_the_words_of_the_command_line():
    torch.save({"student": published.swin(), "teacher": published.swin()}, "in.pth")
    assert "Say which with --top, or save it alone" in run("in.pth", "out.pth", *SWIN).stderr
    torch.save({"model": published.swin(), "model_ema": published.swin()}, "in.pth")
    done = run("in.pth", "out.pth", *SWIN, "--window", "4", "--image-size", "32")
    assert "  'model' was read; the file holds other weights too: --top model_ema\n" in done.stdout


def test_every_model_that_there_is_is_told():
    """The names table, `--models` and what `--model` takes agree."""
    names = run("--models").stdout.split()
    assert set(names) == set(BUILDERS)
    page = PAGE.read_text()
    table = page[page.index("| models | `--model` |") : page.index("| all of them |")]
    told = set(re.findall(r"`(\w+)`", "".join(line.split("|")[2] for line in table.splitlines()[2:])))
    assert told == set(BUILDERS)
    write("in.safetensors", published.bert())
    bert = ("--model", "BertEmbeddings", "--set", "vocabulary=11", "--set", "dim=8", "--set", "tokens=6")
    done = run("in.safetensors", "out.safetensors", *bert)
    assert done.exit_code == 0, done.stderr
    assert torch.equal(
        from_file("out.safetensors").position.table,
        read("in.safetensors")["bert.embeddings.position_embeddings.weight"],
    )


NEXT = {
    ("out.safetensors", "locant"): "model = locant.models.from_file('out.safetensors')",
    ("out.pth", "locant"): (
        "model = locant.models.Swin(dim=8, depths=(2, 1), heads=(2, 4), img_size=32, window=4, num_classes=5); "
        "locant.checkpoints.load(model, 'out.pth')"
    ),
    ("out.pth", "timm"): "model.load_state_dict(torch.load('out.pth'))  # a model of timm",
    ("out.safetensors", "timm"): (
        "model.load_state_dict(safetensors.torch.load_file('out.safetensors'))  # a model of timm"
    ),
}


@pytest.mark.parametrize(("target", "to"), NEXT)
def test_the_next_step_is_told_and_runs(target, to):
    import safetensors.torch

    import locant

    write("in.pth", published.swin())
    done = run("in.pth", target, *SWIN, "--window", "4", "--image-size", "32", "--to", to)
    step = done.stdout.splitlines()[-1].removeprefix("Next, in Python: ")
    assert step == NEXT[target, to]
    model = swin()
    theirs = torch.nn.Module()
    theirs.load_state_dict = lambda state: load(model, state)  # stands for a model of that library
    scope = {"locant": locant, "torch": torch, "safetensors": safetensors, "model": theirs}
    exec(step, scope)
    model = scope["model"] if to == "locant" else model
    assert torch.equal(model.head.weight, read("in.pth")["head.weight"])


def test_a_file_builds_its_model_or_says_why_not():
    write("in.safetensors", published.swin())
    with pytest.raises(
        ValueError, match=r"that `locant convert` wrote, .* was needed; got 'in\.safetensors', which tells of 'none'"
    ):
        from_file("in.safetensors")
    state = read("in.safetensors")
    good = {"dim": 8, "depths": [2, 1], "heads": [2, 4], "window": 4, "img_size": 32, "num_classes": 5}
    for about, words in (
        ({"model": "os.system", "settings": "{}"}, "which tells of 'os.system'"),
        ({"model": "Swin", "settings": "[]"}, "which tells of 'Swin'"),
        ({"model": "Swin", "settings": "{"}, "which tells of 'Swin'"),
        ({"model": "Swin"}, "which tells of 'Swin'"),
        ({"model": "Swin", "settings": '{"evil": 1}'}, "Swin needs settings out of .*; got evil"),
        (
            {"model": "Swin", "settings": json.dumps(good | {"dim": 2**20})},
            "needs to fit the Swin|of shapes that make up",
        ),
    ):
        write("x.safetensors", state, about=about)
        with pytest.raises(ValueError, match=words):
            from_file("x.safetensors")
    write("x.safetensors", state, about={"model": "Swin", "settings": json.dumps(good)})
    model = from_file("x.safetensors")
    assert (model.window, model.img_size) == ((4, 4), (32, 32))
    assert same(export(model, "official"), learned(state))
    torch.save(state, "x.pth")
    with pytest.raises(ValueError, match="a .safetensors file that `locant convert` wrote"):
        from_file("x.pth")
