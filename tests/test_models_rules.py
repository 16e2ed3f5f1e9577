"""Rules of libraries: what `like` and `follow` set, windows that stay, norms per stage, vectors per place."""

from __future__ import annotations

import pytest
import torch
from near import apart, close
from torch import Tensor, nn
from torch.nn import functional as F

from locant import Grid, models
from locant.models.pyramid import Pyramid
from locant.models.rules import SWIN, Rules
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.nn import WindowAttention
from locant.nn.window import fitted

SIZES = {"dim": 8, "depths": (2, 2), "heads": (2, 4), "num_classes": 5}
KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])
Kind = type[Swin] | type[SwinV2]


def test_a_pyramid_alone_is_no_model() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Pyramid()
    assert not issubclass(SwinV2, Swin)


def by_hand(module: WindowAttention, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """The detector's rule said of single cells: filled to whole windows, rolled, parted where the roll wraps."""
    (h, w), (sh, sw) = module.window, module.shift
    rows, columns = (-(-side // size) * size for side, size in zip(shape, (h, w), strict=True))
    cells = F.pad(x.unflatten(1, shape), (0, 0, 0, columns - shape[1], 0, rows - shape[0])).flatten(1, 2)
    q, k, v = module.qkv(cells).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    places = [(i // columns, i % columns) for i in range(rows * columns)]

    def group(r: int, c: int) -> tuple[int, ...]:
        r, c = (r - sh) % rows, (c - sw) % columns  # where the roll puts it
        return r // h, c // w, r >= rows - sh, c >= columns - sw

    groups = [group(*place) for place in places]
    logits = (q @ k.mT) * q.shape[-1] ** -0.5
    for i, (a, b) in enumerate(places):
        for j, (c, d) in enumerate(places):
            if groups[i] != groups[j]:
                logits[:, :, i, j] = -torch.inf
            else:  # offsets of the rolled map, within one window
                y, z = ((n - m) % side for n, m, side in ((a, sh, rows), (b, sw, columns)))
                t, u = ((n - m) % side for n, m, side in ((c, sh, rows), (d, sw, columns)))
                logits[:, :, i, j] += module.position.table[:, y - t + h - 1, z - u + w - 1]
    out = module.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return out.unflatten(1, (rows, columns))[:, : shape[0], : shape[1]].flatten(1, 2)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4), (2, 3), (5, 9), (8, 4)])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_that_stay_are_those_of_the_detector(shape: tuple[int, int], shift: int) -> None:
    """A map as small as its window is shifted all the same: it is parted at the line where the roll wraps."""
    module = WindowAttention(8, 2, (4, 4), shift=shift, border="pad-roll", small="keep").double()
    nn.init.normal_(module.position.table)
    x = torch.randn(2, shape[0] * shape[1], 8).double()
    with torch.no_grad():
        close(module(x, grid=Grid(*shape)), by_hand(module, x, shape))
        other = WindowAttention(8, 2, (4, 4), shift=shift, border="pad-roll", small="pad").double()
        other.load_state_dict(module.state_dict())
        differs = apart(module(x, grid=Grid(*shape)), other(x, grid=Grid(*shape))) > 1e-3
    assert differs == (shift > 0 and min(shape) <= 4)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((9, 3), ((7, 7), (3, 3))), ((5, 9), ((5, 5), (0, 0))), ((7, 20), ((7, 7), (0, 0)))]
)
def test_rows_decide_for_both_axes(shape: tuple[int, int], wanted: tuple[tuple[int, ...], ...]) -> None:
    assert fitted((7, 7), (3, 3), shape, "rows") == wanted


@KINDS
@pytest.mark.parametrize("library", SWIN)
def test_what_is_named_goes_before_the_library(kind: Kind, library: str) -> None:
    if library not in kind.LIBRARIES:
        with pytest.raises(ValueError, match=f"needs `like` out of .*; got '{library}'. Leave it out"):
            kind(**SIZES, like=library)
        return
    model = kind(**SIZES, window=4, img_size=32, like=library)
    record = kind.LIBRARIES[library]
    assert model.rules.differences(record) == ({} if record.drop_path else {"drop_path": (0.1, None)})
    own = kind(**SIZES, window=4, img_size=32, like=library, border="cells", drop_path_rate=0.4)
    assert (own.rules.border, own.rules.drop_path, own.rules.small) == ("cells", 0.4, record.small)
    assert {block.attention.border for stage in own.layers for block in stage.blocks} == {"cells"}
    assert kind(**SIZES).rules == Rules(drop_path=0.1)


def test_the_drop_path_of_a_size_is_the_published_one() -> None:
    with torch.device("meta"):
        for name, rate in {"tiny": 0.2, "small": 0.3, "base": 0.5, "large": 0.2}.items():
            for family in ("swin", "swinv2"):
                build = getattr(models, f"{family}_{name}")
                assert build().rules.drop_path == build(like="official").rules.drop_path == rate
                assert build(like="timm").rules.drop_path == 0.1
                assert build(like="timm", drop_path_rate=0.0).layers[-1].blocks[-1].drop_path == 0.0


@KINDS
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_following_later_is_being_built_so(kind: Kind, library: str) -> None:
    """Windows, borders, rates and the reach of tables, with the numbers of the offsets that both have."""
    later = kind(**SIZES, window=7, img_size=40).double().eval()  # 10 × 10 and 5 × 5 cells: a table of 9 × 9
    with torch.no_grad():
        for name, parameter in later.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    own = {name: tensor.clone() for name, tensor in later.state_dict().items()}
    later.follow(library)
    built = kind(**SIZES, window=7, img_size=40, like=library).double().eval()
    built.load_state_dict(later.state_dict())
    assert later.rules == built.rules
    assert [b.drop_path for s in later.layers for b in s.blocks] == [
        b.drop_path for s in built.layers for b in s.blocks
    ]
    for x in (torch.randn(1, 3, 40, 40).double(), torch.randn(1, 3, 52, 44).double()):
        close(later(x), built(x))
    for name, tensor in later.state_dict().items():
        cut = tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(tensor.shape, own[name].shape, strict=True))
        assert torch.equal(tensor[cut], own[name])


@KINDS
def test_a_norm_per_stage_is_that_of_detectors(kind: Kind) -> None:
    model = kind(**(SIZES | {"num_classes": 0}), window=4, img_size=32, stage_norms=True).eval()
    assert {n for n in model.state_dict() if n.startswith("norm")} == {
        f"norm{s}.{part}" for s in (0, 1) for part in ("weight", "bias")
    }
    with torch.no_grad():
        for s in (0, 1):
            model.get_submodule(f"norm{s}").weight.normal_()
    x = torch.randn(2, 3, 32, 40)
    plain, normed = model.features(x), model.features(x, norm=True)
    for s, (before, after) in enumerate(zip(plain, normed, strict=True)):
        wanted = model.get_submodule(f"norm{s}")(before.movedim(1, -1)).movedim(-1, 1)
        assert torch.equal(after, wanted)
    assert torch.equal(model.forward_features(x), normed[-1])
    assert torch.equal(model.features(x, [-1], norm=True)[0], normed[-1])
    some = kind(**SIZES, window=4, img_size=32, stage_norms=(0,))
    assert {n.split(".")[0] for n in some.state_dict() if n.startswith("norm")} == {"norm0", "norm"}
    with pytest.raises(ValueError, match=r"needs a norm of its own .*; got none for \[1\]. Build the model with stage"):
        some.features(x, norm=True)
    with pytest.raises(ValueError, match=r"needs `stage_norms` .* 0 to 1; got \(2,\). Detectors"):
        kind(**SIZES, stage_norms=(2,))


@KINDS
def test_vectors_per_place_are_added_to_the_tokens(kind: Kind) -> None:
    model = kind(**SIZES, window=4, img_size=32, absolute=True).double().eval()
    x, larger = torch.randn(1, 3, 32, 32).double(), torch.randn(1, 3, 48, 40).double()
    rows = model.absolute_pos_embed.table
    assert "absolute_pos_embed.table" in model.no_weight_decay()
    with torch.no_grad():
        rows.normal_()
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for picture in (x, larger):
        model(picture)
        tokens, grid = model.patch_embed(picture)
        square = rows.T.reshape(1, 8, 8, 8)  # the detector's own line, in two dimensions at once
        wanted = F.interpolate(square, size=grid.shape, mode="bicubic").flatten(2).mT
        assert apart(seen[-1], tokens + wanted) <= 1e-6 * float(wanted.detach().abs().max())
    bigger = model.resized(img_size=48)
    assert bigger.absolute_pos_embed.grid == Grid(12, 12)
    with pytest.raises(ValueError, match="needs an `img_size` for vectors per place"):
        kind(**SIZES, absolute=True, img_size=None)
