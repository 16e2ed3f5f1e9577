"""Files that are damaged, hostile or something else: one clear error each, nothing run, made or written."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from locant import checkpoints
from locant.checkpoints import read, write
from locant.cli import app

HUGE = 2**40
STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}
ADVICE = r"(Get it again|Name |Save |Unpack|Where you trust|Say which)"


def header(entries: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def whole() -> bytes:
    return save(STATE)


def saved(thing: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zipped(data_pkl: bytes | None, how: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """torch.save's container of STATE with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(buffer, "w", how) as new:
        for item in old.infolist():
            pickled = item.filename.endswith("data.pkl")
            if not (pickled and data_pkl is None):
                new.writestr(item.filename, data_pkl if pickled else old.read(item))
        for name, content in more.items():
            new.writestr(name, content)
    return buffer.getvalue()


def inner(data: bytes | None = None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data or saved(STATE))) as archive:
        return archive.read("archive/data.pkl")


def called(name: str, argument: bytes = b"\x8a\x06" + HUGE.to_bytes(6, "little")) -> bytes:
    """A pickle of {"w": name(2**40)}; the names are on torch's own list of what weights_only may call."""
    module, _, function = name.rpartition(".")
    return b"\x80\x02}X\x01\x00\x00\x00wc" + f"{module}\n{function}\n".encode() + argument + b"\x85Rs."


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def larger_view() -> bytes:
    """A tensor of 2**40 elements over a storage of 12: its sizes in the pickle, K\\x03 K\\x04, become one number."""
    old = inner()
    return zipped(old.replace(b"K\x03K\x04\x86", b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"K\x04\x86"))


def expanded() -> bytes:
    """The same by strides of zero, which fits the storage and would fill the memory once it is copied."""
    old = inner()
    old = old.replace(b"K\x03K\x04\x86", b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"K\x04\x86")
    return zipped(old.replace(b"K\x04K\x01\x86", b"K\x00K\x00\x86"))


def longer_storage(*, legacy: bool) -> bytes:
    """A storage of 2**40 elements in a file of a few hundred bytes; before torch 1.6 it would be made first."""
    data = saved(STATE, legacy=legacy)
    number = b"\x8a\x06" + HUGE.to_bytes(6, "little")
    if legacy:
        return data.replace(b"K\x0cNtq", number + b"Ntq")
    return zipped(inner(data).replace(b"K\x0ctq", number + b"tq"))


def grown() -> bytes:
    """A tensor of 12 numbers, told by BUILD to have 2**40 of its storage, which would grow to hold them."""
    text = lambda word: b"X" + struct.pack("<I", len(word)) + word  # noqa: E731
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x0ctQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00K\x0c\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    build = b"(" + storage + b"K\x00\x8a\x06" + HUGE.to_bytes(6, "little") + b"\x85K\x01\x85tb"
    return b"\x80\x02}" + text(b"w") + tensor + build + b"s."


def renamed(name: str) -> bytes:
    return header({name: entry()}, bytes(8))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # safetensors: a length of 8 bytes, JSON, and the tensors' bytes
    "empty": (lambda: b"", "neither safetensors nor torch.save's"),
    "text": (lambda: b"<html>404 Not Found</html>", "neither safetensors nor torch.save's"),
    "header longer than the file": (lambda: header({}, length=1000), "its header claims 1,000 bytes of a file of 10"),
    "header of 2⁶³": (lambda: header({}, length=2**63), "claims 9,223,372,036,854,775,808 bytes"),
    "header cut": (lambda: whole()[:60], "its header claims"),
    "no JSON": (lambda: header(b"{'a': 1}"), "its header is no JSON"),
    "no UTF-8": (lambda: header(b'{"\xff": 1}'), "its header is no JSON"),
    "JSON of 100,000 levels": (lambda: header(b'{"a":' * 100_000), "its header is no JSON"),
    "number of 100,000 digits": (lambda: header(b'{"a":' + b"9" * 100_000 + b"}"), "its header is no JSON"),
    "NaN in the header": (lambda: header(b'{"a": NaN}'), "its header holds NaN"),
    "a tensor twice": (
        lambda: header(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)), "the key 'a' twice"
    ),
    "a shape twice": (
        lambda: header(b'{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        "the key 'shape' twice",
    ),
    "an entry without dtype": (lambda: header({"a": {"shape": [2]}}), "'a' needs dtype, shape and data_offsets"),
    "shape [0, 2⁶²]": (lambda: header({"a": entry([0, 2**62], [0, 0])}), "shape of 2 axes that no model has"),
    "100,000 axes": (lambda: header({"a": entry([1] * 100_000, [0, 4])}, bytes(4)), "shape of 100000 axes that no"),
    "a negative size": (lambda: header({"a": entry([-2], [0, 8])}, bytes(8)), "whole numbers of at least 0"),
    "half a size": (lambda: header({"a": entry([0.5], [0, 8])}, bytes(8)), "whole numbers of at least 0"),
    "true for a size": (lambda: header({"a": entry([True], [0, 4])}, bytes(4)), "whole numbers of at least 0"),
    "sizes of 2⁴⁰": (lambda: header({"a": entry([HUGE], [0, 4 * HUGE])}), "its tensors have 4,398,046,511,104 bytes"),
    "offsets for another size": (lambda: header({"a": entry([3])}, bytes(8)), "needs 12 bytes, and has data_offsets"),
    "backward offsets": (lambda: header({"a": entry([2], [8, 0])}, bytes(8)), "needs 8 bytes, and has data_offsets"),
    "overlapping tensors": (
        lambda: header({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "tensors overlap or leave a gap"
    ),
    "a gap": (lambda: header({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "overlap or leave a gap"),
    "data cut": (lambda: whole()[:-1], "it was cut or padded"),
    "data padded": (lambda: whole() + b"\0", "it was cut or padded"),
    "an unknown dtype": (lambda: header({"a": entry(dtype="F7")}, bytes(8)), "has the dtype 'F7'"),
    "a path for a name": (lambda: renamed("../../x"), "the name '../../x', which no module gives"),
    "a control character": (lambda: renamed("a\x1b[2J"), "which no module gives"),
    "an empty name": (lambda: renamed(""), "the name '', which no module gives"),
    "a name of 10,000 letters": (lambda: renamed("a" * 10_000), "which no module gives"),
    "metadata of lists": (lambda: header({"__metadata__": {"a": []}}), "its metadata is more than text"),
    "20,001 tensors": (
        lambda: header({f"a{i}": entry([0], [0, 0]) for i in range(20_001)}), "it has 20,001 tensors; at most 20,000"
    ),
    # torch.save: a zip file with a pickle and storages
    "a pickle that runs a command": (lambda: zipped(pickle.dumps({"w": Evil()}, 2)), "it holds posix.system"),
    "a bare pickle that runs one": (lambda: pickle.dumps(Evil(), 2), "neither safetensors nor torch.save's"),
    "an older file that runs one": (lambda: saved({"w": Evil()}, legacy=True), "it holds posix.system"),
    "a bytearray of 2⁴⁰": (lambda: zipped(called("builtins.bytearray")), "it holds builtins.bytearray"),
    "a FloatTensor of 2⁴⁰": (lambda: zipped(called("torch.FloatTensor")), "it holds torch.FloatTensor"),
    "a storage of 2⁴⁰": (lambda: longer_storage(legacy=False), "storage '0' does not have the 4,398,046,511,104 bytes"),
    "an older storage of 2⁴⁰": (lambda: longer_storage(legacy=True), "tensors need 4,398,046,5.* it was cut or padded"),
    "a tensor beyond its storage": (larger_view, r"a tensor of shape \[1099511627776, 4\] is larger than its storage"),
    "one number 2⁴² times": (expanded, r"a tensor of shape \[1099511627776, 4\] is larger than its storage"),
    "a tensor changed after it was made": (lambda: zipped(grown()), "a tensor is changed after it was made"),
    "a storage that is called": (lambda: zipped(called("torch.FloatStorage")), "it holds torch.FloatStorage"),
    "objects of 1,001 kinds": (
        lambda: zipped(b"\x80\x02]" + b"".join(b"ca%d\nb\na" % i for i in range(1001)) + b"."), "more than 1,000 kinds"
    ),
    "an older whole module": (lambda: saved({"w": nn.Linear(2, 2)}, legacy=True), "it holds a whole module with its"),
    "a whole module": (lambda: saved(nn.Linear(2, 2)), "it holds a torch.nn.modules.linear.Linear, not a dictionary"),
    "a zip bomb": (
        lambda: zipped(None, zipfile.ZIP_DEFLATED, **{"archive/data.pkl": bytes(10**7)}), "unpack to more than the file"
    ),
    "packed entries": (lambda: zipped(inner(), zipfile.ZIP_DEFLATED), "its entries are packed|unpack to more"),
    "a zip of something else": (lambda: zipped(None), "it is a zip file, but no checkpoint"),
    "two pickles": (lambda: zipped(inner(), **{"other/data.pkl": b"."}), "it is a zip file, but no checkpoint"),
    "TorchScript": (scripted, "it is a TorchScript program"),
    "a zip cut": (lambda: saved(STATE)[:-200], "its zip container is damaged or cut"),
    "a pickle cut": (lambda: zipped(inner()[:-20]), "its pickle is damaged"),
    "a pickle of noise": (lambda: zipped(b"\x80\x02\xff\xfe."), "its pickle is damaged"),
    "a pickle that pops too much": (lambda: zipped(b"\x80\x02\x85."), "its pickle is damaged"),
    "an older file cut": (lambda: saved(STATE, legacy=True)[:-4], "it was cut or padded"),
    "a list": (lambda: saved([STATE["a.bias"]]), "it holds a list, not a dictionary of tensors"),
    "no tensors": (lambda: saved({"epoch": 3}), r"needs one dictionary of tensors, and has none under \['epoch'\]"),
    "two dictionaries": (
        lambda: saved({"student": STATE, "teacher": STATE}), "has several: 'student', 'teacher'"
    ),
    "numbers for names": (lambda: saved({3: torch.ones(2)}), "a tensor has the name 3, which is no text"),
    "a sparse tensor": (lambda: saved({"w": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
}  # fmt: skip


def peak() -> int | None:
    """The most memory that this process has held since the last call, in bytes; Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    text = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", HOSTILE)
def test_one_error_and_nothing_made(kind: str, tmp: Path) -> None:
    make, reason = HOSTILE[kind]
    path = tmp / "model.bin"  # what it is shows in its bytes, not in its name
    path.write_bytes(make())
    peak()
    before = resident() if sys.platform.startswith("linux") else 0
    with pytest.raises(ValueError, match=rf"needed; .*model.bin' was refused: .*{reason}.*\. {ADVICE}"):
        read(path)
    highest = peak()
    assert highest is None or highest - before < 200 * 2**20, "something was made of it"
    assert [p.name for p in tmp.iterdir()] == ["model.bin"], "something was run"


def test_the_page_tells_of_all_of_them() -> None:
    """docs/checkpoints.py writes what each printed; words of Python's own may differ from version to version."""
    assert len(HOSTILE) >= 25
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", page, re.MULTILINE))
    for kind, (_, reason) in HOSTILE.items():
        assert re.search(rf"{reason}.*\. {ADVICE}", rows[kind]), kind


@pytest.mark.parametrize(("make", "reason"), [
    (lambda path: path.mkdir(), "a folder, in which .* was looked for; it has none"),
    (lambda path: os.mkfifo(path), "a folder, a pipe or a device"),
    (lambda path: path.symlink_to("/dev/zero"), "a folder, a pipe or a device"),
], ids=["folder", "pipe", "device"])  # fmt: skip
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], None], reason: str, tmp: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes and devices are files on POSIX")
    make(tmp / "model.pt")
    with pytest.raises(ValueError, match=rf"was refused: it is .*{reason}\. Name the file itself"):
        read(tmp / "model.pt")


def test_a_file_that_is_not_there_is_an_os_error(tmp: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp / "model.pt")


def test_the_command_says_it_in_one_line_and_writes_nothing(tmp: Path) -> None:
    from typer.testing import CliRunner

    for kind in ("no JSON", "a bytearray of 2⁴⁰", "data cut"):
        (tmp / "in.pt").write_bytes(HOSTILE[kind][0]())
        done = CliRunner().invoke(app, ["convert", "in.pt", "out.safetensors", "--model", "convit_tiny"])
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr.startswith(
            "locant: a checkpoint, as safetensors or torch.save write it, was needed; 'in.pt'"
        )
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp.iterdir()] == ["in.pt"]


FORMATS = {
    "safetensors": whole,
    "torch": lambda: saved(STATE),
    "older torch": lambda: saved(STATE, legacy=True),
    "under a key": lambda: saved({"epoch": 3, "model": STATE, "optimizer": {"state": {}, "groups": [{"lr": 0.1}]}}),
    "parameters": lambda: saved({name: nn.Parameter(tensor) for name, tensor in STATE.items()}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_whole_is_read(kind: str, tmp: Path) -> None:
    (tmp / "x").write_bytes(FORMATS[kind]())
    found = read("x")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_dtypes_shapes_and_views_survive(tmp: Path) -> None:
    state = {
        **{f"d{i}": torch.arange(6).reshape(2, 3).to(kind) for i, kind in enumerate(
            (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
        )},
        "number": torch.tensor(3), "none": torch.zeros(0, 4), "view": torch.arange(12.0).reshape(3, 4).T[1:3],
    }  # fmt: skip
    state["tied"] = state["view"]
    for path in ("x.safetensors", "x.pt", "x.pth"):
        write(path, state, about={"model": "x"})
        found = read(path)
        assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
            name: (t.dtype, t.shape) for name, t in state.items()
        }
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_top_says_which_dictionary(tmp: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "model_ema": other}, "x.pt")
    assert torch.equal(read("x.pt", ("model_ema",))["a.bias"], other["a.bias"])
    assert torch.equal(read("x.pt", ("state_dict", "model"))["a.bias"], STATE["a.bias"])


@pytest.mark.parametrize("kind", ["x.safetensors", "x.pt"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(kind: str, tmp: Path) -> None:
    """Of files that we write: safetensors has no checksum of its own. The seed is fixed; every header byte is tried."""
    write(kind, STATE, about={"model": "x"})
    good = (tmp / kind).read_bytes()
    draw = random.Random(0)
    places = {*range(0, len(good), 11), *(draw.randrange(len(good)) for _ in range(40))}
    errors = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        (tmp / kind).write_bytes(bad)
        try:
            found = read(kind)
        except ValueError as error:
            errors += "was refused:" in str(error)
        else:
            assert found.keys() == STATE.keys()
            assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert errors > len(places) / 3


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_an_error(kind: str, tmp: Path) -> None:
    good = FORMATS[kind]()
    for length in range(0, len(good), 37):
        (tmp / "x").write_bytes(good[:length])
        with pytest.raises(ValueError, match="was refused:"):
            read("x")


def test_writing_is_whole_or_not_at_all(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.safetensors", STATE)
    before = (tmp / "x.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write("x.safetensors", {"b": torch.ones(1000)})
    assert [path.name for path in tmp.iterdir()] == ["x.safetensors"]
    assert (tmp / "x.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["x.onnx", "x", "x.safetensors.zip"])
def test_other_endings_are_refused(name: str, tmp: Path) -> None:
    with pytest.raises(
        ValueError, match=r"written to \.safetensors, \.pt or \.pth; got .* Give it one of these endings"
    ):
        write(name, STATE)
    assert not list(tmp.iterdir())


def test_the_walk_allows_what_torch_saves_around_tensors(tmp: Path) -> None:
    """Optimizers, schedulers and counters lie beside the tensors of published files."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    thing = {
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(),
        "epoch": 300, "accuracy": 81.2, "best": True, "none": None, "size": torch.Size([3]), "kind": torch.float16,
        "device": torch.device("cpu"), "set": {1, 2}, "bytes": b"abc", "long": 2**70, "name": "é",
    }  # fmt: skip
    for legacy in (False, True):
        torch.save(thing, "x.pt", _use_new_zipfile_serialization=not legacy)
        assert checkpoints.load(nn.Linear(3, 2), "x.pt").exact
