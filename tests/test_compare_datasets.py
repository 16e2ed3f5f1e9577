"""Data from Python: data sets, loaders and arrays, one to three of them, drawn anew or not, refused with a sentence."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from locant import compare
from locant.compare import Refusal
from locant.compare.datasets import open_task


class Spots(Dataset):
    """Pictures [1, 8, 8] of noise, and which quarter is bright."""

    def __init__(self, count: int, seed: int = 0, noise: float = 0.0) -> None:
        draw = np.random.default_rng(seed)
        self.y, self.noise = np.arange(count) % 4, noise
        self.x = (0.3 * draw.random((count, 1, 8, 8))).astype(np.float32)
        for x, y in zip(self.x, self.y, strict=True):
            x[0, 4 * (y // 2) : 4 * (y // 2) + 4, 4 * (y % 2) : 4 * (y % 2) + 4] += 0.7

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        x = torch.from_numpy(self.x[place])
        return x + self.noise * torch.randn_like(x) + self.noise * float(np.random.rand()), int(self.y[place])


def whole(examples) -> np.ndarray:
    return examples.read(np.arange(len(examples)))


def test_one_data_set_is_divided_and_keeps_its_examples() -> None:
    data = Spots(100)
    task = open_task(data, None, 0)
    parts = (task.train, task.validation, task.test)
    assert [len(part) for part in parts] == [60, 20, 20]
    found = np.concatenate([whole(part) for part in parts])
    assert np.array_equal(np.sort(found.reshape(100, -1), 0), np.sort(data.x.reshape(100, -1), 0))
    for part in parts:  # x and y stay together
        assert np.array_equal(whole(part)[:, 0, ::4, ::4].reshape(len(part), 4).argmax(1), part.labels)
        assert np.bincount(part.labels).tolist() == [len(part) // 4] * 4
    assert (task.kind, task.source, task.classes, task.augments) == ("images", "Spots", ("0", "1", "2", "3"), ())


def test_two_and_three_stay_as_they_are_and_arrays_are_one() -> None:
    one, two, three = Spots(60), Spots(20, 1), Spots(24, 2)
    task = open_task((one, two), None, 0)
    assert [len(p) for p in (task.train, task.validation, task.test)] == [48, 12, 20]
    assert np.array_equal(whole(task.test), two.x)
    task = open_task([DataLoader(one, 7, shuffle=True), three, two], None, 0)
    assert np.array_equal(whole(task.train), one.x)
    assert np.array_equal(whole(task.validation), three.x)
    assert np.array_equal(whole(task.test), two.x)
    arrays = open_task((one.x, one.y), None, 0)
    assert [len(p) for p in (arrays.train, arrays.validation, arrays.test)] == [36, 12, 12]
    assert open_task((torch.from_numpy(one.x), torch.from_numpy(one.y)), None, 0).fingerprint == arrays.fingerprint
    other = one.x.copy()
    other[3, 0, 0, 0] += 0.1
    assert open_task((other, one.y), None, 0).fingerprint != arrays.fingerprint


def test_kinds_follow_from_the_axes_or_are_asked_for() -> None:
    clips = open_task((np.random.rand(40, 3, 1, 8, 8).astype(np.float32), np.arange(40) % 2), None, 0)
    assert (clips.kind, clips.train.shape) == ("clips", (3, 1, 8, 8))
    lines = open_task((np.random.rand(40, 12, 3).astype(np.float32), np.arange(40) % 2), "sequences", 0)
    assert (lines.kind, lines.train.shape) == ("sequences", (12, 3))
    pictures = open_task((np.random.rand(40, 8, 8, 3).astype(np.float32), np.arange(40) % 2), None, 0)
    assert pictures.train.shape == (3, 8, 8)


def test_what_is_drawn_anew_is_read_as_it_goes_from_torchs_seed() -> None:
    task = open_task((Spots(40, noise=0.1), Spots(20)), None, 0)
    assert "train is drawn anew at each reading" in task.notes
    reads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        reads.append(task.train.read(np.arange(4)))
    assert np.array_equal(reads[0], reads[1])
    assert not np.array_equal(reads[0], reads[2])
    assert open_task((Spots(40, noise=0.1), Spots(20)), None, 0).fingerprint == task.fingerprint


class Flow(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 8, 8), 0


class Broken(Spots):
    def __getitem__(self, place: int):
        return self.x[place] / self.nothing, 0


class Uneven(Spots):
    def __getitem__(self, place: int):
        return torch.zeros(1, 8, 8 + (place == 7)), 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Flow(), r"need a torch Dataset with a length and \[index\]"),
        (DataLoader(Flow()), r"need a torch Dataset with a length and \[index\]"),
        (Broken(20), r"test_compare_datasets\.py, line \d+, in __getitem__: AttributeError"),
        (Uneven(20), r"need one shape of example; data\[7\] is \[1, 8, 9\], the first \[1, 8, 8\]"),
        ((Spots(8),) * 4, r"one data set, \(train, test\) or .*; got 4"),
        (
            (np.zeros((9, 1, 8, 8), np.float32), np.linspace(0, 1, 9)),
            r"whole number from 0 as y; that of data\[0\]",
        ),
        ((np.full((9, 1, 8, 8), np.nan, np.float32), np.zeros(9, int)), "finite numbers per index; data gives NaN"),
        ([(object(), 1)] * 8, "can't be collated|need one example"),
        ([torch.zeros(1, 8, 8)] * 8, r"need pairs \(x, y\)"),
        ((Spots(8), []), "need examples; test has none"),
    ],
    ids=range(10),
)
def test_what_cannot_be_used_is_refused(data, said) -> None:
    with pytest.raises(Refusal, match=said):
        open_task(data, None, 0)


def test_a_run_on_a_loader_learns_and_can_be_gone_on_with(tmp_path) -> None:
    given = {"positions": ("none", "sinusoid"), "steps": 60, "seeds": 1, "lr": 0.01, "starts": 1, "patch": 2,
             "batch": 32, "quiet": True}  # fmt: skip
    data = (DataLoader(Spots(160, noise=0.05), 5), Spots(80, 1))
    result = compare.run(data, out=tmp_path / "run", **given)
    accuracy = {s["name"]: s["accuracy"]["mean"] for s in result.data["tasks"][0]["schemes"]}
    assert accuracy["none"] < 0.5 < accuracy["sinusoid"]
    again = compare.run(data, out=tmp_path / "again", **given)
    trials = [[t["weights"] for s in r.data["tasks"][0]["schemes"] for t in s["trials"]] for r in (result, again)]
    assert trials[0] == trials[1]
    with pytest.raises(Refusal, match="they have changed|the data"):
        compare.run((data[0], Spots(80, 3)), resume=tmp_path / "run", quiet=True)
