"""The small transformer: what a scheme can and cannot tell is a law of the model, before any training."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from locant.compare import looks
from locant.compare.candidate import Candidate
from locant.compare.looks import look
from locant.compare.model import Classifier, patches
from locant.compare.placement import Placement, grid_of
from locant.compare.schemes import SCHEMES, LayerSpec, find
from locant.grid import Grid
from locant.tasks.kinds import CLIPS, IMAGES, KINDS

ITEMS = {"images": ((1, 8, 8), (2, 2)), "clips": ((3, 1, 8, 8), (1, 4, 4)), "sequences": ((8, 4), (1,))}


def model_of(kind: str, name: str, seed: int = 0, start: float | None = None) -> Candidate:
    item, patch = ITEMS[kind]
    torch.manual_seed(seed)
    placement = Placement(KINDS[kind], find(kind, (name,))[0], item, patch, 5, start=start)
    model = Candidate.of(lambda position: Classifier(position, dim=24, depth=2, heads=4), placement)
    model.net.eval()
    return model


def loud(model: Candidate) -> Candidate:
    """Positions large enough that a difference cannot hide in rounding."""
    torch.manual_seed(1)
    with torch.no_grad():
        for position in model.positions():
            for p in position.parameters():
                p.copy_(torch.randn_like(p))
    return model


def every() -> list[tuple[str, str]]:
    return [(kind.name, s.name) for s in SCHEMES for kind in KINDS.values() if s.fits(kind)]


def test_patches_are_row_major_and_keep_their_pixels() -> None:
    x = torch.arange(2 * 3 * 1 * 4 * 6).float().reshape(2, 3, 1, 4, 6)
    cut = patches(CLIPS, x, (1, 2, 3))
    assert cut.shape == (2, 3 * 2 * 2, 6)
    for t in range(3):
        for row in range(2):
            for column in range(2):
                expected = x[1, t, 0, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten()
                assert torch.equal(cut[1, t * 4 + row * 2 + column], expected)
    assert torch.equal(patches(IMAGES, x[:, 0], (2, 3)), cut[:, :4])


@pytest.mark.parametrize("kind", ITEMS)
def test_every_scheme_starts_from_the_same_weights(kind) -> None:
    starts = []
    for name in KINDS[kind].schemes:
        model = model_of(kind, name)
        inside = {id(p) for position in model.positions() for p in position.parameters()}
        starts.append(torch.cat([p.flatten() for p in model.net.parameters() if id(p) not in inside]))
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert not torch.equal(starts[0], torch.cat([p.flatten() for p in model_of(kind, "none", 1).net.parameters()]))


@pytest.mark.parametrize(("kind", "name"), every())
def test_what_a_scheme_says_it_can_tell_is_what_it_can(kind, name) -> None:
    """Reversing the order of patches (not the patches) must change the answer exactly if direction is told."""
    scheme = find(kind, (name,))[0]
    model, (item, patch) = loud(model_of(kind, name)), ITEMS[kind]
    torch.manual_seed(2)
    x = torch.rand(4, *item)
    turned = _reorder(kind, x, patch, lambda n: np.arange(n)[::-1].copy())
    changed = (model(x) - model(turned)).abs().max().item()
    assert (changed > 1e-3) == scheme.direction, changed
    if kind == "clips":
        frames = x.flip(1)
        changed = (model(x) - model(frames)).abs().max().item()
        assert (changed > 1e-3) == (scheme.time and scheme.direction), changed


@pytest.mark.parametrize("kind", ITEMS)
def test_without_position_the_model_sees_a_bag_of_patches(kind) -> None:
    model, (item, patch) = loud(model_of(kind, "none")), ITEMS[kind]
    x = torch.rand(4, *item)
    shuffled = _reorder(kind, x, patch, lambda n: np.random.default_rng(0).permutation(n))
    assert (model(x) - model(shuffled)).abs().max() < 1e-5
    assert (model(x) - model(torch.rand(4, *item))).abs().max() > 1e-3


def test_space_only_cannot_tell_the_order_of_frames_however_they_are_mixed() -> None:
    model = loud(model_of("clips", "space"))
    x = torch.rand(4, 3, 1, 8, 8)
    assert (model(x) - model(x[:, [2, 0, 1]])).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "name"), every())
def test_a_moved_model_takes_larger_examples_and_keeps_its_weights(kind, name) -> None:
    model, (item, _) = loud(model_of(kind, name)), ITEMS[kind]
    larger = {"images": (1, 12, 12), "clips": (5, 1, 12, 12), "sequences": (12, 4)}[kind]
    moved, how = model.moved_to(larger)
    assert moved(torch.rand(2, *larger)).isfinite().all()
    assert ("resized" in how) == (name not in ("none", "sinusoid", "masked-sine", "alibi", "rotary", "gated", "swin"))
    same, how = model.moved_to(item)
    x = torch.rand(2, *item)
    assert torch.equal(same(x), model(x))
    assert how == "the same grid"
    assert torch.equal(moved.net.head.weight, model.net.head.weight)


def test_flops_of_a_hand_counted_model() -> None:
    """16 tokens, dim 24, MLP 48, 5 classes, patches of 4 numbers, 2 layers: 2 FLOPs per multiply-add."""
    model = model_of("images", "none")
    layer = 16 * (24 * 72 + 24 * 24 + 2 * 24 * 48) + 2 * 16 * 16 * 24
    assert model.flops() == 2 * (16 * 4 * 24 + 2 * layer + 24 * 5)


@pytest.mark.parametrize(("kind", "item"), [("images", (1, 8, 8)), ("clips", (3, 1, 24, 24)), ("sequences", (16, 4))])
def test_default_patches_divide_the_built_in_examples(kind, item) -> None:
    patch = KINDS[kind].patch(item, KINDS[kind].recipe.patch)
    assert grid_of(KINDS[kind], item, patch).tokens <= 64


def test_patches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patches of \(3, 3\) must divide examples of \(8, 8\)"):
        grid_of(IMAGES, (1, 8, 8), (3, 3))


PICTURES = {
    "none": "none", "relative": "bias", "alibi": "bias", "rotary": "rotation", "gated": "gate", "convit": "gate",
    **dict.fromkeys(("shared", "swin", "aim", "temporal"), "bias"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), every())
def test_every_scheme_has_a_picture_of_its_numbers(kind, name) -> None:
    model = loud(model_of(kind, name))
    picture = look(model)
    assert picture["kind"] == PICTURES.get(name, "embedding")
    tokens = model.grid.tokens
    for layer in picture["layers"]:
        for head in layer["heads"]:
            assert np.array(head).shape == (tokens, tokens)
            assert np.isfinite(head).all()
            if picture["kind"] == "gate":
                assert np.allclose(np.sum(head, 1), 1, atol=1e-3)
            if picture["kind"] in ("rotation", "embedding") and name != "masked-sine":
                assert np.allclose(np.diag(head), 1, atol=1e-3)
    assert bool(picture["layers"]) == (name != "none")


def test_the_picture_of_shared_weights_joins_what_each_pass_may_see() -> None:
    """Same frame: the spatial table. Same place, another frame: the temporal one. Else nothing."""
    model = loud(model_of("clips", "shared"))
    time, space = (position.table.detach() for position in model.blocks()[1])
    heads = look(model)["layers"][1]["heads"]
    places = model.grid.coordinates().tolist()
    for q, (t, y, x) in enumerate(places):
        for k, (kt, ky, kx) in enumerate(places):
            expected = 0.0
            if t == kt:
                expected += float(space[2, 0, y - ky + 1, x - kx + 1])
            if (y, x) == (ky, kx):
                expected += float(time[2, t - kt + 2, 0, 0])
            assert heads[2][q][k] == pytest.approx(expected, abs=1e-4)


def test_unknown_schemes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="positions for images must be among none, learned.*got shared, tables"):
        find("images", ("none", "shared", "tables"))


def _reorder(kind: str, x: torch.Tensor, patch: tuple[int, ...], order) -> torch.Tensor:
    """The same patches in another order, as an example of the same shape."""
    cut = patches(KINDS[kind], x, patch)
    index = torch.from_numpy(order(cut.shape[1]))
    item = x.shape[1:]
    numbers = torch.arange(x[0].numel()).reshape(1, *item).float()
    places = patches(KINDS[kind], numbers, patch)[0].long()
    mixed = torch.empty(len(x), x[0].numel())
    mixed[:, places.flatten()] = cut[:, index].flatten(1)
    return mixed.reshape(len(x), *item)


def test_what_is_learned_starts_as_published_or_as_wide_as_asked() -> None:
    """A normal of s cut at ±2 has the variance s² (1 - 2 a φ(a) / (2 Φ(a) - 1)), a = 2 / s."""
    scheme = find("images", ("relative",))[0]
    for start, s in ((None, 0.02), (0.02, 0.02), (1.5, 1.5)):
        a = 2 / s
        inside = math.erf(a / math.sqrt(2))
        spread = s * math.sqrt(1 - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / inside)
        torch.manual_seed(0)
        (_, table), *_ = scheme.passes(LayerSpec(Grid(64, 64), 32, 8, start=start))
        drawn = torch.cat([p.flatten() for p in table.parameters()])
        # the sample standard deviation of n bounded numbers is off by less than spread / sqrt(2 n) per sigma
        assert abs(drawn.std().item() - spread) < 5 * spread / math.sqrt(2 * drawn.numel())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_every_start_is_the_published_one_and_the_docs_name_it(scheme) -> None:
    kind = {1: "sequences", 2: "images", 3: "clips"}[scheme.axes[-1]]
    usual, told = (
        model_of(kind, scheme.name, start=start).net for start in (None, scheme.starts[0] if scheme.starts else None)
    )
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), told.parameters(), strict=True))
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    row = re.search(rf"^\| [^|]*`{scheme.name}`[^|]* \| ([\d.]+) \| ([\d., ]+) \|$", page, re.MULTILINE)
    assert (row is not None) == bool(scheme.starts)
    if row:
        assert (float(row[1]), *(float(wide) for wide in row[2].split(", "))) == scheme.starts


def test_the_picture_holds_what_changed_since_the_start_and_how_alike_both_are() -> None:
    start, trained = model_of("images", "relative"), model_of("images", "relative")
    table = trained.blocks()[0][0].table
    with torch.no_grad():
        table[1, 3, 4] += 0.5  # the key one column to the left
    picture = look(trained, start)
    changed = np.array(picture["layers"][0]["changed"])
    places = trained.grid.coordinates().tolist()
    expected = [[0.5 if (y - ky, x - kx) == (0, 1) else 0.0 for ky, kx in places] for y, x in places]
    assert changed[1] == pytest.approx(np.array(expected), abs=1e-4)
    assert not changed[0].any()
    pair = [np.concatenate([np.ravel(layer["heads"]) for layer in look(m)["layers"]]) for m in (start, trained)]
    assert picture["alike"] == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-3)
    same = look(start, model_of("images", "relative"))
    assert [layer["changed"] for layer in same["layers"]] == [None, None]
    assert same["alike"] is None


def test_what_is_fixed_says_so() -> None:
    picture = look(model_of("images", "alibi"), model_of("images", "alibi"))
    assert picture["what"].endswith("It is fixed: training changes nothing of it.")


def test_of_many_tokens_the_query_in_the_middle_is_drawn_and_of_many_layers_some(monkeypatch) -> None:
    model = model_of("images", "relative")
    whole = look(model)
    monkeypatch.setattr(looks, "MOST_NUMBERS", 100)
    monkeypatch.setattr(looks, "MOST_MAPS", 4)
    picture = look(model)
    (layer,) = picture["layers"]
    assert layer["layer"] == 2
    assert "Of 2 layers 1 are drawn." in picture["what"]
    middle = 2 * 4 + 2
    assert layer["heads"] == [[head[middle]] for head in whole["layers"][1]["heads"]]


def test_class_tokens_are_left_out_of_the_picture() -> None:
    class Bare(torch.nn.Module):
        def __init__(self, position: Placement) -> None:
            super().__init__()
            self.layer = position.layer(0, 24, 4, grid=Grid(4, 4, prefix=1))

    item, patch = ITEMS["images"]
    model = Candidate.of(Bare, Placement(IMAGES, find("images", ("relative",))[0], item, patch, 5))
    (layer,) = look(model)["layers"]
    whole = model.blocks()[0][0](Grid(4, 4, prefix=1), mask=None)
    assert np.array(layer["heads"]) == pytest.approx(whole[:, 1:, 1:].detach().numpy(), abs=1e-4)
