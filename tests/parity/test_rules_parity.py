"""`like=`: one record per library gives that library's numbers on maps that windows do not divide or that are small.

Weights are random and equal; logits in float32 may be 1e-5 of the largest apart, as in `test_swin_models.py`.
Models are built for one size and called on others, so that rules which are chosen once show.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest
import torch
from test_swin_models import LAYOUTS, SINGLE, SIZES, logits, of_timm, redrawn, relative
from torch import nn

from locant import checkpoints, models
from locant.checkpoints.names import matched
from locant.models.rules import SWIN, SWIN_V2
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2

KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])
Kind = type[Swin] | type[SwinV2]
Parity = Callable[[int, str, float, float], None]


@pytest.fixture(scope="module")
def torchvision(timm: ModuleType) -> ModuleType:
    """Mended by timm's fixture."""
    pytest.importorskip("torchvision.models")
    return import_module("torchvision.models.swin_transformer")


def agree(
    kind: Kind, theirs: nn.Module, library: str, built: tuple[int, int], window: int, sizes: list[tuple[int, int]],
    parity: Parity, *, differs: bool = True,
) -> None:  # fmt: skip
    """On every size; and, so that the test can fail, the default rules give other numbers where they give any."""
    like = kind(**SIZES, window=window, img_size=built, like=library).eval()
    followed = kind(**SIZES, window=window, img_size=built).eval()
    followed.follow(library)
    plain = kind(**SIZES, window=window, img_size=built).eval()
    assert followed.rules.differences(like.rules) == {}
    for model in (like, followed):
        assert checkpoints.load(model, theirs.state_dict(), layout=LAYOUTS[kind][library]).exact
    same_tables = [t.shape for t in plain.state_dict().values()] == [t.shape for t in like.state_dict().values()]
    plain.load_state_dict(like.state_dict() if same_tables else plain.state_dict())
    apart = []
    for size in sizes:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = logits(theirs, x)
            parity(12, f"{library} {kind.__name__}, like=, {size}", relative(like(x), wanted), SINGLE)
            parity(12, f"{library} {kind.__name__}, follow(), {size}", relative(followed(x), wanted), SINGLE)
            with contextlib.suppress(ValueError):  # a table that does not reach
                apart.append(relative(plain(x), wanted) if same_tables else 1.0)
    assert not differs or max(apart) > 1e-3


@KINDS
@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("built", "window", "sizes"),
    [
        ((72, 72), 7, [(72, 72), (88, 60), (120, 104)]),  # 18 and 9 cells: no window divides them
        ((56, 56), 7, [(56, 56), (64, 64), (92, 120)]),  # the second stage has one window, and keeps it without a shift
        ((40, 132), 7, [(40, 132), (44, 140)]),  # 10 × 33, 5 × 17: the second stage's window is 5 × 7 from then on
        (
            (24, 24),
            7,
            [(24, 24), (28, 28), (60, 76)],
        ),  # maps smaller than the window: the first ones agree by all rules
    ],
)
def test_timm(
    timm: ModuleType, kind: Kind, built: tuple[int, int], window: int, sizes: list[tuple[int, int]], parity: Parity
) -> None:
    agree(
        kind,
        of_timm(kind, built, window, strict_img_size=False),
        "timm",
        built,
        window,
        sizes,
        parity,
        differs=built != (24, 24),
    )


@KINDS
@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("built", "window", "sizes"),
    [((72, 72), 7, [(72, 72), (61, 86), (28, 28), (57, 27)]), ((24, 24), 7, [(24, 24), (16, 40), (96, 76)])],
)
def test_torchvision(
    torchvision: ModuleType,
    kind: Kind,
    built: tuple[int, int],
    window: int,
    sizes: list[tuple[int, int]],
    parity: Parity,
) -> None:
    version = "" if kind is Swin else "V2"
    theirs = torchvision.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 3], window_size=[window] * 2, num_classes=10,
        block=getattr(torchvision, f"SwinTransformerBlock{version}"),
        downsample_layer=getattr(torchvision, f"PatchMerging{version}"),
    )  # fmt: skip
    agree(kind, redrawn(theirs), "torchvision", built, window, sizes, parity)


@KINDS
@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("built", "window", "sizes"),
    [
        ((72, 72), 7, [(72, 72), (120, 104), (90, 77)]),
        (
            (56, 56),
            7,
            [(56, 56), (56, 112)],
        ),  # one window in the second stage; 7 × 14, where no axis is shifted, by all
    ],
)
def test_transformers(
    transformers: ModuleType,
    kind: Kind,
    built: tuple[int, int],
    window: int,
    sizes: list[tuple[int, int]],
    parity: Parity,
) -> None:
    version = "" if kind is Swin else "v2"
    config = getattr(transformers, f"Swin{version}Config")(
        embed_dim=24, depths=[2, 2], num_heads=[2, 3], num_labels=10, image_size=built[0], window_size=window
    )
    theirs = redrawn(getattr(transformers, f"Swin{version}ForImageClassification")(config))
    agree(kind, theirs, "transformers", built, window, sizes, parity, differs=built != (56, 56))


@pytest.mark.row(12)
@pytest.mark.parametrize(("built", "size"), [((32, 32), (32, 32)), ((24, 48), (24, 48)), ((48, 24), (64, 56))])
def test_transformers_v2_goes_by_the_rows(
    transformers: ModuleType, built: tuple[int, int], size: tuple[int, int], parity: Parity
) -> None:
    """Maps of 8 × 8, 6 × 12 and 12 × 6 cells under windows of 7: the rows decide for both axes, once and for all."""
    config = transformers.Swinv2Config(
        embed_dim=24, depths=[2, 2], num_heads=[2, 3], num_labels=10, image_size=built, window_size=7
    )
    theirs = redrawn(transformers.Swinv2ForImageClassification(config))
    agree(SwinV2, theirs, "transformers", built, 7, [size], parity, differs=False)


@pytest.mark.row(13)
def test_drop_path_by_default_is_the_librarys(
    timm: ModuleType, torchvision: ModuleType, transformers: ModuleType
) -> None:
    """timm and transformers have one rate for every size, torchvision the published ones, which are ours."""
    for module, kind in (("swin_transformer", "SwinTransformer"), ("swin_transformer_v2", "SwinTransformerV2")):
        published = getattr(import_module(f"timm.models.{module}"), kind)
        rate = inspect.signature(published).parameters["drop_path_rate"].default
        assert rate == SWIN["timm"].drop_path == SWIN_V2["timm"].drop_path
    for config in (transformers.SwinConfig(), transformers.Swinv2Config()):
        assert config.drop_path_rate == SWIN["transformers"].drop_path == SWIN_V2["transformers"].drop_path
    for name, ours in {
        "swin_t": "swin_tiny", "swin_s": "swin_small", "swin_b": "swin_base",
        "swin_v2_t": "swinv2_tiny", "swin_v2_s": "swinv2_small", "swin_v2_b": "swinv2_base",
    }.items():  # fmt: skip
        with torch.device("meta"):
            theirs, model = getattr(torchvision, name)(), getattr(models, ours)(like="torchvision")
            other = getattr(models, ours)(like="timm")
        rates = [module.p for module in theirs.modules() if type(module).__name__ == "StochasticDepth"]
        assert [b.drop_path for s in model.layers for b in s.blocks] == pytest.approx(rates)
        assert (other.layers[-1].blocks[-1].drop_path, other.rules.drop_path) == (0.1, 0.1)


def scales(model: nn.Module) -> dict[str, float]:
    """The factor of the learning rate of every parameter, as timm gives them to its optimisers."""
    decay = import_module("timm.optim._param_groups").param_groups_layer_decay
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = decay(model, layer_decay=0.5)
    return {names[id(p)]: group["lr_scale"] for group in found for p in group["params"]}


@KINDS
def test_layer_decay_is_timms(timm: ModuleType, kind: Kind) -> None:
    """Name by name as in timm's model; and by hand for what timm does not have."""
    model, theirs = kind(**SIZES, window=4, img_size=32), of_timm(kind, (32, 32), 4)
    found, wanted = scales(model), scales(theirs)
    for _, names, own in matched(wanted, LAYOUTS[kind]["timm"], found).pairs:
        assert {found[name] for name in own} == {wanted[name] for name in names}, own
    first = found["patch_embed.proj.weight"]
    assert first == 0.5**5  # four blocks and the head come behind
    assert scales(kind(**SIZES, window=4, img_size=32, absolute=True))["absolute_pos_embed.table"] == first
    normed = scales(kind(**SIZES, window=4, img_size=32, stage_norms=True))
    assert normed["norm0.weight"] == normed["norm1.weight"] == found["norm.weight"]


def test_layer_decay_of_convit_is_timms(timm: ModuleType) -> None:
    model = models.ConViT(img_size=32, patch=8, dim=16, depth=3, heads=4, local_up_to_layer=2, num_classes=5)
    deep = {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1, "norm": 1}
    for name, scale in scales(model).items():
        assert scale == 0.5 ** next((d for prefix, d in deep.items() if name.startswith(prefix)), 0), name
