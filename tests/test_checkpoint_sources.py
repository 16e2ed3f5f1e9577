"""What stands around the weights in real files: prefixes, parts, averages, and objects that are no tensors."""

from __future__ import annotations

import argparse
import collections
import enum
import fractions
import json
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
from redrawing import refill
from safetensors.torch import save_file
from small import MODELS, same, swin
from torch import Tensor, nn

from locant.checkpoints import load, read
from locant.checkpoints.shards import sources

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def headless(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


OTHERS = {"decode_head.conv.weight": torch.ones(2), "criterion.weight": torch.ones(3), "step": torch.ones(())}


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "encoder.", "module.", "_orig_mod.", "module.model.net.", "0."]
)
@pytest.mark.parametrize(
    "make", [published.swin, published.swin_timm, published.swin_torchvision], ids=lambda f: f.__name__
)
def test_a_common_prefix_is_found_and_what_lacks_it_is_left_alone(prefix, make):
    state, model, plain = make(), swin(), swin()
    report, wanted = load(model, behind(prefix, state) | OTHERS), load(plain, state)
    assert same(model.state_dict(), plain.state_dict())
    assert (report.prefix, report.layout, report.exact) == (prefix, wanted.layout, True)
    assert report.left == list(OTHERS)
    assert (report.kept, report.renamed, report.dropped) == (wanted.kept, wanted.renamed, wanted.dropped)
    assert str(report).startswith(f"Swin from the layout {wanted.layout!r} behind {prefix!r}: ")


def test_our_own_names_have_a_prefix_too_and_models_of_nobody():
    model = refill(swin())
    assert same(read_back := dict(model.state_dict()), read_back)
    again = swin()
    assert load(again, behind("net.", dict(model.state_dict()))).layout == "locant"
    assert same(again.state_dict(), model.state_dict())
    linear = nn.Linear(3, 2)
    assert load(linear, {"probe.weight": torch.ones(2, 3), "probe.bias": torch.ones(2), "other": torch.ones(1)}).exact
    assert linear.weight.eq(1).all()


def test_a_prefix_can_be_said():
    state = published.swin_timm()
    twice = behind("student.", state) | behind("teacher.", {n: t + 1 for n, t in state.items()})
    with pytest.raises(
        ValueError,
        match=r"of one Swin was needed; got a file with several, whose names begin with 'student\.' and 'teacher\.'\. "
        "Say which with prefix=",
    ):
        load(swin(), twice)
    for prefix, more in (("student.", 0), ("teacher.", 1)):
        model = swin()
        assert load(model, twice, prefix=prefix).prefix == prefix
        assert torch.equal(model.head.weight, state["head.fc.weight"] + more)
    with pytest.raises(
        ValueError, match=r"begin with prefix='net\.' were needed; got student\..* and no such name\. Correct"
    ):
        load(swin(), twice, prefix="net.")
    with pytest.raises(ValueError, match="needs names of one of its layouts"):
        load(swin(), twice, prefix="student.layers.")
    plain = state | behind("teacher.", state)
    with pytest.raises(ValueError, match=r"begin with '' and 'teacher\.'|begin with 'teacher\.' and ''"):
        load(swin(), plain)
    assert load(swin(), plain, prefix="teacher.").exact


def test_not_strict_takes_what_fits_behind_a_prefix():
    """A head of one's own, a missing norm and a strange name: listed, the rest is loaded."""
    state = headless(published.swin_timm())
    gone = state.pop("norm.bias")
    whole = behind("model.", state | {"my_head.weight": torch.ones(9, 16)}) | OTHERS
    with pytest.raises(ValueError, match=r"most like 'timm' behind 'model\.'.* none for my_head\.weight"):
        load(swin(), whole)
    model = refill(swin())
    report = load(model, whole, strict=False)
    assert (report.prefix, report.layout) == ("model.", "timm")
    assert report.unexpected == ["my_head.weight"]
    assert report.missing == ["norm.bias", "head.weight", "head.bias"]
    assert report.left == list(OTHERS)
    assert torch.equal(model.norm.weight, state["norm.weight"])
    assert not torch.equal(model.norm.bias, gone)
    with pytest.raises(ValueError, match="needs names of one of its layouts"):
        load(swin(), published.convit(), strict=False)


def test_an_encoder_alone_says_how_to_go_on():
    state = behind("net.", headless(published.swin()))
    with pytest.raises(
        ValueError,
        match=r"2 missing: head\.weight, head\.bias\. Start the head anew with fresh=\('head\.\*',\), or build the "
        r"model without one: num_classes=0\.",
    ):
        load(swin(), state)
    assert load(swin(), state, fresh=("head.*",)).exact
    assert load(swin(num_classes=0), state).exact


def test_a_head_for_other_classes_says_how_many():
    state = published.detr()  # 3 classes, and no object
    model = MODELS["models.detr.DETR"]()
    assert load(model, state).exact
    state |= {"class_embed.weight": torch.ones(3, 8), "class_embed.bias": torch.ones(3)}
    with pytest.raises(
        ValueError,
        match=r"Build the model for the 2 classes of its head: num_classes=2, or start the head anew with fresh=",
    ):
        load(model, state)
    state = published.swin() | {"head.weight": torch.ones(7, 16), "head.bias": torch.ones(7)}
    with pytest.raises(ValueError, match="Build the model for the 7 classes of its head"):
        load(swin(), state)


def parted(state: State, folder: Path, ending: str = "safetensors", parts: int = 3) -> Path:
    """As `save_pretrained(max_shard_size=)` leaves it."""
    folder.mkdir()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    where, names = {}, list(state)
    for i in range(parts):
        file = f"{stem}-{i + 1:05}-of-{parts:05}.{ending}"
        part = {name: state[name].contiguous() for name in names[i::parts]}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    (folder / "config.json").write_text("{}")
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_parts_are_one_checkpoint(ending):
    state = published.swin_timm()
    index = parted(state, Path("saved"), ending)
    assert len(sources("saved")) == 4
    for path in ("saved", str(index)):
        assert same(read(path), state)
        model = swin()
        assert load(model, path).layout == "timm"
        assert torch.equal(model.head.weight, state["head.fc.weight"])
    first = next(Path("saved").glob("*-00001-of-00003*"))
    with pytest.raises(
        ValueError, match=r"missing: .* It is part 1 of 3: name the folder, or the index \(.*index\.json\)"
    ):
        load(swin(), first)
    assert load(swin(), first, strict=False).layout


def test_a_folder_with_one_file_is_that_file():
    state = published.swin_timm()
    Path("a").mkdir()
    save_file(state, "a/model.safetensors")
    Path("a/config.json").write_text("{}")
    torch.save({n: t + 1 for n, t in state.items()}, "a/pytorch_model.bin")  # transformers takes the other one, too
    assert same(read("a"), state)
    Path("b").mkdir()
    torch.save(state, "b/best.pth")
    assert same(read("b"), state)
    torch.save(state, "b/last.pth")
    with pytest.raises(
        ValueError,
        match=r"'b' was refused: it is a folder, in which .* it has several, best\.pth, last\.pth\. Name the file",
    ):
        read("b")


def indexed(weights: Any, *, raw: bytes | None = None) -> None:
    Path("saved").mkdir()
    save_file({"a.weight": torch.ones(2)}, "saved/one.safetensors")
    save_file({"a.weight": torch.ones(2), "b": torch.ones(1)}, "saved/two.safetensors")
    save_file({"a.weight": torch.ones(2)}, "secret.safetensors")
    Path("saved/model.safetensors.index.json").write_bytes(raw or json.dumps({"weight_map": weights}).encode())


INDICES: dict[str, tuple[Callable[[], None], str]] = {
    "a path upward": (lambda: indexed({"a.weight": "../secret.safetensors"}), "'../secret.safetensors', which is no"),
    "a path downward": (lambda: indexed({"a.weight": "x/one.safetensors"}), "which is no checkpoint beside it"),
    "a rooted path": (lambda: indexed({"a.weight": "/etc/one.safetensors"}), "which is no checkpoint beside it"),
    "a path of Windows": (lambda: indexed({"a.weight": "x\\one.safetensors"}), "which is no checkpoint beside it"),
    "another ending": (lambda: indexed({"a.weight": "one.txt"}), "which is no checkpoint beside it"),
    "itself": (lambda: indexed({"a.weight": "model.safetensors.index.json"}), "which is no checkpoint beside it"),
    "no such part": (lambda: indexed({"a.weight": "three.safetensors"}), "its part three.safetensors is not there"),
    "a tensor too many": (lambda: indexed({"a.weight": "two.safetensors"}), "two.safetensors does not hold .* says: b"),
    "a tensor too few": (lambda: indexed({"a.weight": "one.safetensors", "c": "one.safetensors"}), "index says: c"),
    "a name in two parts": (lambda: indexed({"a.weight": "one.safetensors", "b": "two.safetensors"}), "says: a.weight"),
    "a name twice": (lambda: indexed({}, raw=b'{"weight_map":{"a":"one.bin","a":"two.bin"}}'), "key 'a' twice"),
    "a hostile name": (lambda: indexed({"../a": "one.safetensors"}), "which no module gives"),
    "no map": (lambda: indexed([]), "no weight_map of tensors and their files"),
    "numbers": (lambda: indexed({"a": 1}), "no weight_map of tensors and their files"),
    "no JSON": (lambda: indexed({}, raw=b"{"), "its index is no JSON"),
    "NaN": (lambda: indexed({}, raw=b'{"weight_map": NaN}'), "its index holds NaN"),
    "100,000 levels": (lambda: indexed({}, raw=b'{"a":' * 100_000), "its index is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", INDICES)
def test_an_index_is_trusted_in_nothing(case):
    make, reason = INDICES[case]
    make()
    with pytest.raises(ValueError, match=rf"needed; 'saved.*' was refused: .*{reason}.*\. (Get|Put) "):
        read("saved")


class Colour(enum.Enum):
    RED = 1


class Touching:
    """What unpickling makes of it writes a file, in every way that a pickle knows."""

    def __init__(self) -> None:
        self.held = 1

    def __new__(cls, *arguments: object) -> Touching:
        if arguments:
            Path("executed").touch()
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[str]:
        return ("now",)

    def __setstate__(self, state: object) -> None:
        Path("executed").touch()


def touch(name: str) -> dict[str, int]:
    Path(name).touch()
    return {}


class Reduced(dict):  # type: ignore[type-arg]
    def __reduce__(self) -> Any:
        return touch, ("executed",), None, None, iter([("a", 1)])


class Early(enum.Enum):
    """As Python 3.11.2 writes the members of any Enum."""

    RED = 1

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return getattr, (Early, "RED")


def beside() -> dict[str, Any]:
    """What training scripts put into their files."""
    return {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("runs"), betas=(0.9, 0.95)),
        "best": np.float64(81.2), "curve": np.arange(3.0), "colour": Colour.RED, "early": Early.RED,
        "epoch": 300, "none": None,
        "counts": collections.defaultdict(int, {"a": 1}), "touching": Touching(), "reduced": Reduced(),
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": np.float32(0.1)}]},
        "fraction": fractions.Fraction(1, 3), "kind": Colour, "module": nn.Linear(2, 2), "range": range(3),
        "complex": 1j, "frozen": frozenset({1}),
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_tensors_are_skipped_and_reported_and_nothing_runs(legacy):
    state = published.swin_timm()
    around = beside()
    if legacy:  # before torch 1.6 a module was saved with its source, by another way than objects are
        around["module"] = argparse.Namespace()
    torch.save({"model": state, **around}, "x.pth", _use_new_zipfile_serialization=not legacy)
    model = swin()
    report = load(model, "x.pth")
    assert report.exact
    assert torch.equal(model.head.weight, state["head.fc.weight"])
    assert not Path("executed").exists()
    told = "\n".join(report.skipped)
    for line in (
        r"^args \(argparse\.Namespace\)$", r"^best \(numpy\..*scalar\)$", r"^curve \(numpy\.", r"^colour \(.*Colour\)$",
        r"^early \(.*Early\)$",
        r"^counts \(collections\.defaultdict\)$", r"^touching \(.*Touching\)$", r"^reduced \(.*touch\)$",
        r"^optimizer\.param_groups\.0\.lr \(numpy", r"^fraction \(fractions\.Fraction\)$", r"^kind \(.*Colour\)$",
        r"^module \((torch\.nn\..*\.Linear|argparse.*)\)$", r"^range \(.*range\)$", r"^complex \(.*complex\)$",
    ):  # fmt: skip
        assert re.search(line, told, re.MULTILINE), line
    assert len(report.skipped) == 15
    assert "  skipped, for it is no tensor\n    args (argparse.Namespace)\n" in str(report)


def test_an_object_among_tensors_is_skipped_too():
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2), "args": argparse.Namespace(lr=1)}, "x.pt")
    linear = nn.Linear(3, 2)
    assert load(linear, "x.pt").skipped == ["args (argparse.Namespace)"]
    assert linear.weight.eq(1).all()


def test_tensors_inside_a_foreign_object_are_not_found():
    torch.save({"model": argparse.Namespace(weight=torch.ones(2))}, "x.pt")
    with pytest.raises(ValueError, match=r"it needs one dictionary of tensors, and has none under \['model'\]"):
        read("x.pt")


def test_the_average_is_named_and_can_be_taken():
    state = published.swin_timm()
    for raw, average in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        torch.save({raw: state, average: {n: t + 1 for n, t in state.items()}, "epoch": 3, "opt": {"lr": 1}}, "x.pth")
        model = swin()
        report = load(model, "x.pth")
        assert (report.key, report.others) == (raw, [average])
        assert torch.equal(model.head.weight, state["head.fc.weight"])
        line = f"  {raw!r} was read; the file holds other weights too: top={average!r}"
        assert str(report).splitlines()[1] == line
        report = load(model, "x.pth", top=average)
        assert (report.key, report.others) == (average, [raw])
        assert torch.equal(model.head.weight, state["head.fc.weight"] + 1)
    torch.save({"student": state, "teacher": state}, "x.pth")
    with pytest.raises(ValueError, match=r"has several: 'student', 'teacher'\. Say which with top="):
        load(swin(), "x.pth")
    assert load(swin(), "x.pth", top="teacher").key == "teacher"
    assert load(swin(), {"state_dict": state}).others == []
