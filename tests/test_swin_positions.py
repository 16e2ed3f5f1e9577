"""Swin and Swin v2 with another position, for all stages or one for each."""

from __future__ import annotations

import copy

import pytest
import torch
from near import close
from redrawing import redraw
from torch import Tensor, nn

from locant import ALiBi, Decomposed, Grid, Learned, RelativeTable, Rotary, checkpoints
from locant.models.pyramid import Pyramid
from locant.models.swin import Swin, swin_tiny
from locant.models.swin_v2 import SwinV2
from locant.resizing import resize_embedding, resize_table

SIZES = {"dim": 16, "depths": (2, 2), "heads": (2, 4), "window": 4, "img_size": 32, "num_classes": 5}
KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])
Kind = type[Swin] | type[SwinV2]


def pictures(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=torch.float64)


def made(kind: Kind, **given: object) -> Pyramid:
    return redraw(kind(**SIZES | given).double().eval())


def decomposed(grid: Grid, dim: int, heads: int) -> Decomposed:
    return Decomposed(Grid(*grid.shape), heads, dim // heads)


@KINDS
def test_each_stage_has_its_own(kind: Kind) -> None:
    model = made(kind, position=("published", lambda grid, dim, heads: ALiBi(heads, distance="euclidean")))
    first, second = ([block.attention.position for block in stage.blocks] for stage in model.layers)
    assert [type(position) for position in second] == [ALiBi, ALiBi]
    assert all(position is not None and not isinstance(position, ALiBi) for position in first)
    assert model.published == (True, False)
    assert model(pictures()).shape == (2, 5)


@KINDS
def test_a_table_by_name_is_the_published_swin(kind: Kind) -> None:
    """Word and function build what stands there anyway: same names, same numbers. In Swin v2 it takes the place of the
    perceptron."""
    by_word = kind(**SIZES, position="relative").double().eval()
    by_function = kind(**SIZES, position=lambda grid, dim, heads: RelativeTable(grid, heads)).double().eval()
    own = kind(**SIZES).double().eval()
    assert by_word.state_dict().keys() == by_function.state_dict().keys()
    assert (by_word.state_dict().keys() == own.state_dict().keys()) == (kind is Swin)
    redraw(by_word)
    by_function.load_state_dict(by_word.state_dict())
    x = pictures()
    assert torch.equal(by_word(x), by_function(x))
    if kind is Swin:
        own.load_state_dict(by_word.state_dict())
        assert torch.equal(by_word(x), own(x))


@KINDS
def test_none_is_blind_inside_a_window(kind: Kind) -> None:
    """One window as wide as the map, no position: the mean of all cells does not see their order."""
    model = made(kind, depths=(2,), heads=(2,), window=8, position=None)
    assert all(block.attention.position is None for block in model.layers[0].blocks)
    x = pictures()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, torch.randperm(64)].unflatten(2, (8, 8))
    mixed = patches.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    close(model(mixed), model(x))
    told = made(kind, depths=(2,), heads=(2,), window=8)
    assert float((told(mixed) - told(x)).detach().abs().max()) > 1e-6


@KINDS
def test_what_embeds_stands_on_the_tokens_of_its_stage(kind: Kind) -> None:
    """On the stage's map, not on its windows; by hand: the stage sees its tokens plus the rows."""
    model = made(kind, position=(None, lambda grid, dim, heads: Learned(grid, dim)))
    assert model.layers[0].pos_embed is None
    embedding = model.layers[1].pos_embed
    assert (embedding.grid, embedding.dim) == (Grid(4, 4), 32)
    x = pictures()
    bare = copy.deepcopy(model)
    bare.layers[1].pos_embed = None
    bare.layers[1].blocks[0].register_forward_pre_hook(lambda module, args: (args[0] + embedding.table,))
    assert torch.equal(model(x), bare(x))
    with pytest.raises(ValueError, match=r"positions for 4 × 4 tokens; got pictures of 8 × 8.*resized"):
        model(pictures(64))
    larger = model.resized(img_size=64)
    close(larger.layers[1].pos_embed.table, resize_embedding(embedding.table, (4, 4), (8, 8), _rows(kind)))
    assert larger(pictures(64)).shape == (2, 5)
    names = {name for name in model.no_weight_decay() if "logit_scale" not in name}
    assert names == {"layers.1.pos_embed.table"}
    assert model.group_matcher()("layers.1.pos_embed.table") == (1.0, 1.0, 0.0)


def _rows(kind: Kind) -> str:
    return "linear" if kind is Swin else "bicubic"


@KINDS
def test_other_windows(kind: Kind) -> None:
    """Tables of any scheme are interpolated with the window; what needs no size serves any."""
    model = made(kind, position=(decomposed, lambda grid, dim, heads: Rotary(dim // heads, axes=2)))
    old = model.layers[0].blocks[1].attention.position.tables[0]
    larger = model.resized(window=8, img_size=64)
    new = larger.layers[0].blocks[1].attention.position
    assert new.grid == Grid(8, 8)
    close(new.tables[0].T, resize_table(old.T, (15,), "linear"))
    assert larger(pictures(64)).shape == (2, 5)


def test_another_librarys_rules_cut_tables_of_any_scheme() -> None:
    """A map of 5 × 3: by rules of its own the window shrinks to 3 × 3, and tables keep the offsets that stay."""
    sizes = {**SIZES, "img_size": (20, 12), "depths": (2,), "heads": (2,)}
    model = redraw(Swin(**sizes, position=decomposed, like="timm").double())
    before = [table.clone() for table in model.layers[0].blocks[0].attention.position.tables]
    assert [len(table) for table in before] == [7, 5]
    model.follow("official")
    after = model.layers[0].blocks[0].attention.position.tables
    assert [len(table) for table in after] == [5, 5]
    close(after[0], before[0][1:-1])
    close(after[1], before[1])


def test_export_says_no_to_what_a_library_has_no_name_for() -> None:
    bare = made(Swin, position=None)
    state = checkpoints.export(bare, "official", buffers=True)
    assert not any("relative_position" in name for name in state)
    with pytest.raises(ValueError, match=r"needs a counterpart for every tensor; got '.*position.tables.0'"):
        checkpoints.export(made(Swin, position=decomposed), "timm")


def test_a_published_size_by_word() -> None:
    with torch.device("meta"):
        model = swin_tiny(position=("relative", "rotary", "alibi", None), num_classes=3)
    kinds = [type(stage.blocks[0].attention.position) for stage in model.layers]
    assert kinds == [RelativeTable, Rotary, ALiBi, type(None)]


@pytest.mark.plain
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"position": (None,)}, r"Swin needs one `position` for all stages or one for each of 2; got 1"),
        ({"position": "polar"}, r"Swin needs a `position` out of 'published'.*got 'polar'"),
        ({"position": nn.Identity()}, r"a function of \(grid, dim, heads\).*got Identity"),
        ({"position": "learned", "img_size": None}, r"`img_size` for vectors per place; got a position that embeds"),
    ],
)
def test_wrong_positions_are_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Swin(**SIZES | given)
