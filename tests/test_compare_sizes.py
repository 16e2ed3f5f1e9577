"""The built-in transformer grows with the data, within the size that was asked for; what is given wins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from locant import compare
from locant.compare import Refusal, opening, settings, sizes
from locant.compare.trial import Job, build
from locant.tasks.kinds import KINDS
from locant.tasks.task import ArrayExamples, Task


def task_of(kind: str, shape: tuple[int, ...], count: int) -> Task:
    class Blank(ArrayExamples):
        def __init__(self, count: int) -> None:
            self.labels, self.shape = np.arange(count) % 4, shape

    return Task(kind, "none", "which?", tuple("abcd"), Blank(count), Blank(8), Blank(8), (), (), (), "0")


@pytest.mark.parametrize(
    ("model", "count", "side", "sizes_"),
    [
        ("small", 4_999, 4, (48, 2, 4)),
        ("small", 5_000, 8, (96, 4, 4)),
        ("base", 4_999, 14, (192, 4, 6)),
        ("base", 5_000, 14, (384, 4, 6)),
    ],
)
def test_each_row_of_the_table(model, count, side, sizes_) -> None:
    """Parameters counted by hand: qkv 3 dim², projection dim², perceptron 4 dim², their biases, norms and tables."""
    pixels = 112 if model == "base" else 32
    chosen = settings.resolve({"data": "photos", "task": "images", "model": model}, None)
    tasks = {"images": task_of("images", (3, pixels, pixels), count)}
    recipe = opening.settle(chosen, tasks).recipes["images"]
    made = build(Job("images", "relative", 0, 0.0), tasks["images"], recipe)
    dim, depth, heads = sizes_
    layer = 8 * dim**2 + (3 + 1 + 2 + 1) * dim + 2 * 2 * dim + heads * (2 * side - 1) ** 2
    whole = (3 * (pixels // side) ** 2 + 1) * dim + depth * layer + 2 * dim + 4 * (dim + 1)
    assert made.grid.shape == (side, side)
    assert sum(p.numel() for p in made.net.parameters()) == whole
    assert recipe.lr == ((0.003, 0.006) if model == "small" else (0.0005, 0.001))


def test_clips_share_their_tokens_among_frames_and_sequences_keep_theirs() -> None:
    for kind, shape, grid in (("clips", (8, 3, 112, 112), (8, 4, 4)), ("clips", (3, 1, 24, 24), (3, 8, 8)),
                              ("sequences", (300, 2), (300,))):  # fmt: skip
        chosen = settings.resolve({"data": "own", "task": kind, "model": "base"}, None)
        tasks = {kind: task_of(kind, shape, 100)}
        recipe = opening.settle(chosen, tasks).recipes[kind]
        assert build(Job(kind, "none", 0, 0.0), tasks[kind], recipe).grid.shape == grid


def test_what_is_given_wins() -> None:
    given = {"data": "own", "task": "images", "model": "base", "dim": 64, "depth": 3, "lr": 0.01, "patch": 56}
    tasks = {"images": task_of("images", (3, 112, 112), 10)}
    recipe = opening.settle(settings.resolve(given, None), tasks).recipes["images"]
    assert (recipe.dim, recipe.depth, recipe.lr, recipe.patch) == (64, 3, (0.01,), 56)
    assert recipe.heads == 4  # the most that divide 64 evenly, up to the six of the size
    with pytest.raises(Refusal, match="even multiple of heads; got dim=50, heads=4"):
        opening.settle(settings.resolve({**given, "dim": 50, "heads": 4}, None), tasks)
    with pytest.raises(Refusal, match="even multiple of heads; got dim=192, heads=5"):
        opening.settle(settings.resolve({"data": "own", "task": "images", "model": "base", "heads": 5}, None), tasks)


def test_an_accelerator_is_given_more() -> None:
    assert sizes.usual("cuda:1", own_data=True) == sizes.usual("mps", own_data=True) == "base"
    assert sizes.usual("cpu", own_data=True) == sizes.usual("cuda", own_data=False) == "small"


def test_the_digits_are_asked_of_the_same_model_as_ever() -> None:
    chosen = settings.resolve({"task": "images"}, None)
    tasks = opening.open_tasks(chosen)
    recipe = opening.settle(chosen, tasks).recipes["images"]
    assert replace(recipe, augment=None) == replace(KINDS["images"].recipe, augment=None)
    model = build(Job("images", "none", 0, 0.0), tasks["images"], recipe)
    assert (model.grid.tokens, sum(p.numel() for p in model.net.parameters())) == (16, 38_746)


def test_settings_of_a_larger_model_give_the_same_again(tmp_path) -> None:
    first = compare.run(task="images", model="base", positions="none", steps=2, share=0.05, seeds=1, lr=0.001,
                        out=tmp_path / "a", quiet=True)  # fmt: skip
    again = compare.run(config=tmp_path / "a" / "settings.toml", out=tmp_path / "b", quiet=True)
    tasks = [result.data["tasks"][0] for result in (first, again)]
    assert tasks[0]["model"]["tokens"] == 64
    assert tasks[0]["schemes"][0]["trials"] == tasks[1]["schemes"][0]["trials"]
    saved = [next((r.folder / "trials").glob("*.safetensors")) for r in (first, again)]
    assert torch.equal(*(compare.load(path)[0].head.weight for path in saved))
