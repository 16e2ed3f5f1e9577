"""`locant.nn` on the weights of timm, transformers and torchvision: at most 1e-5 apart."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from locant import Grid
from locant.nn import GatedAttention, WindowAttention

DIM, HEADS = 24, 3
MOST = 1e-5


@pytest.fixture(scope="module")
def torchvision(timm: ModuleType) -> ModuleType:
    """torchvision's two Swins; timm's fixture has mended what a CPU build of torch cannot load of it."""
    return pytest.importorskip("torchvision.models")


def randomised(module: nn.Module) -> nn.Module:
    """Tables and biases large enough to show."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "table" in name or name.endswith("bias") or "pos_proj" in name or "gating" in name:
                nn.init.normal_(parameter)
    return module.eval()


def ours(window: tuple[int, ...], shift: tuple[int, ...], theirs: dict[str, Tensor], **rules: str) -> WindowAttention:
    """A WindowAttention that holds published weights: the flat table is [offsets, heads], row-major."""
    module = WindowAttention(DIM, HEADS, window, shift=shift, **rules)
    table = theirs["table"].T.reshape(module.position.table.shape)
    names = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    module.load_state_dict({"position.table": table, **{name: theirs[name] for name in names}})
    return module.eval()


def worst(module: nn.Module, image: Tensor, expected: Tensor) -> float:
    grid = Grid(*image.shape[1:-1])
    return float((module(image.flatten(1, -2), grid=grid) - expected.flatten(1, -2)).detach().abs().max())


def agree(what: str, error: float) -> None:
    print(f"{what}: {error:.2e}")  # shown by `pytest -rP`
    assert error <= MOST


@pytest.mark.parametrize(
    ("shape", "shift", "border"),
    [
        ((14, 14), 0, "cells"),
        ((14, 14), 3, "cells"),
        ((14, 21), 3, "pad-roll"),
        ((14, 21), 3, "roll-pad"),
        ((10, 10), 0, "roll-pad"),
        ((10, 10), 3, "roll-pad"),
        ((9, 16), 3, "roll-pad"),
        ((7, 14), 3, "cells"),
        ((7, 14), 3, "roll-pad"),
        ((5, 14), 3, "roll-pad"),
        ((5, 10), 3, "roll-pad"),
    ],
)
def test_timm_swin(timm: ModuleType, shape: tuple[int, int], shift: int, border: str) -> None:
    swin = import_module("timm.models.swin_transformer")
    block = randomised(swin.SwinTransformerBlock(DIM, shape, HEADS, window_size=7, shift_size=shift))
    state = {**block.attn.state_dict(), "table": block.attn.relative_position_bias_table}
    window = tuple(block.window_size)  # timm shrinks it, and builds the smaller table
    module = ours(window, (shift, shift), state, border=border, small="per-axis")
    image = torch.randn(2, *shape, DIM)
    agree(f"timm {shape} shift {shift} {border}", worst(module, image, block._attn(image)))


def test_timm_window_attention_alone(timm: ModuleType) -> None:
    swin = import_module("timm.models.swin_transformer")
    attn = randomised(swin.WindowAttention(DIM, HEADS, window_size=(3, 5)))
    module = ours((3, 5), (0, 0), {**attn.state_dict(), "table": attn.relative_position_bias_table})
    x = torch.randn(4, 15, DIM)
    agree("timm WindowAttention 3 × 5", float((module(x, grid=Grid(3, 5)) - attn(x)).detach().abs().max()))


@pytest.mark.parametrize(
    ("shape", "shift", "border"),
    [
        ((14, 14), 3, "cells"),
        ((14, 14), 0, "cells"),
        ((10, 10), 3, "pad-roll"),
        ((9, 16), 3, "pad-roll"),
        ((7, 14), 3, "pad-roll"),
        ((7, 14), 3, "cells"),
        ((7, 10), 3, "pad-roll"),
    ],
)
def test_transformers_swin(transformers: ModuleType, shape: tuple[int, int], shift: int, border: str) -> None:
    swin = import_module("transformers.models.swin.modeling_swin")
    config = transformers.SwinConfig(embed_dim=DIM, num_heads=[HEADS], depths=[1], window_size=7)
    config._attn_implementation = "eager"
    layer = randomised(swin.SwinLayer(config, DIM, shape, HEADS, shift_size=shift))
    layer.layernorm_before = nn.Identity()  # the attention alone: no norm before, nothing added after
    for parameter in layer.mlp.parameters():
        nn.init.zeros_(parameter)
    state, parts = layer.attention.state_dict(), ("q_proj", "k_proj", "v_proj")
    theirs = {f"qkv.{kind}": torch.cat([state[f"{part}.{kind}"] for part in parts]) for kind in ("weight", "bias")}
    theirs |= {f"proj.{kind}": state[f"o_proj.{kind}"] for kind in ("weight", "bias")}
    theirs["table"] = state["relative_position_bias.relative_position_bias_table"]
    module = ours((7, 7), (shift, shift), theirs, border=border, small="joint")
    image = torch.randn(2, *shape, DIM)
    added = layer(image.flatten(1, 2), shape)[0] - image.flatten(1, 2)
    agree(f"transformers {shape} shift {shift} {border}", worst(module, image, added.unflatten(1, shape)))


@pytest.mark.parametrize(
    ("shape", "window", "shift", "border", "small"),
    [
        ((14, 14), (7, 7), (3, 3), "cells", "per-axis"),
        ((10, 10), (7, 7), (3, 3), "pad-roll", "per-axis"),
        ((9, 16), (7, 7), (3, 3), "pad-roll", "pad"),
        ((8, 9), (3, 4), (1, 2), "pad-roll", "per-axis"),
        ((7, 14), (7, 7), (3, 3), "pad-roll", "per-axis"),
        ((7, 14), (7, 7), (3, 3), "pad-roll", "pad"),
        ((5, 14), (7, 7), (3, 3), "pad-roll", "pad"),
        ((5, 4), (7, 7), (3, 3), "pad-roll", "pad"),
    ],
)
def test_torchvision_swin(
    torchvision: ModuleType,
    shape: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    border: str,
    small: str,
) -> None:
    swin = import_module("torchvision.models.swin_transformer")
    attention = randomised(swin.ShiftedWindowAttention(DIM, list(window), list(shift), HEADS))
    theirs = {**attention.state_dict(), "table": attention.relative_position_bias_table}
    module = ours(window, shift, theirs, border=border, small=small)
    image = torch.randn(2, *shape, DIM)
    agree(f"torchvision {shape} {border} {small}", worst(module, image, attention(image)))


@pytest.mark.parametrize(
    ("shape", "shift"),
    [((4, 6, 6), (1, 1, 1)), ((5, 7, 8), (1, 1, 1)), ((2, 7, 8), (1, 1, 1)), ((1, 6, 7), (1, 1, 1))],
)
def test_torchvision_video_swin(
    torchvision: ModuleType, shape: tuple[int, int, int], shift: tuple[int, int, int]
) -> None:
    """Windows that shrink in time alone, or not at all."""
    swin = import_module("torchvision.models.video.swin_transformer")
    window = (2, 3, 3)
    attention = randomised(swin.ShiftedWindowAttention3d(DIM, list(window), list(shift), HEADS))
    theirs = {**attention.state_dict(), "table": attention.relative_position_bias_table}
    module = ours(window, shift, theirs, border="pad-roll", small="per-axis")
    clip = torch.randn(2, *shape, DIM)
    agree(f"torchvision video {shape}", worst(module, clip, attention(clip)))


@pytest.mark.parametrize("shape", [(2, 2, 6), (4, 6, 2), (1, 2, 2)])
def test_torchvision_video_swin_where_rows_or_columns_shrink(
    torchvision: ModuleType, shape: tuple[int, int, int]
) -> None:
    """It takes the first N rows and columns of the whole window's index: its bias is no function of the offset there.

    The same code on the window that is left, with the centre of the table, is what is here.
    """
    swin = import_module("torchvision.models.video.swin_transformer")
    window = (2, 3, 3)
    left = tuple(map(min, window, shape))
    attention = randomised(swin.ShiftedWindowAttention3d(DIM, list(window), [0, 0, 0], HEADS))
    theirs = {**attention.state_dict(), "table": attention.relative_position_bias_table}
    module = ours(window, (0, 0, 0), theirs, border="pad-roll", small="per-axis")
    clip = torch.randn(2, *shape, DIM)
    assert worst(module, clip, attention(clip)) > 0.01  # 0.1 to 1 at a table of std 1

    # the bias that they read for one offset differs from place to place
    read = attention.relative_position_index.view(18, 18)[: left[0] * left[1] * left[2], :][
        :, : left[0] * left[1] * left[2]
    ]
    places = Grid(*left).coordinates()
    offsets = (places[:, None] - places).flatten(0, 1).tolist()
    by_offset: dict[tuple[int, ...], set[int]] = {}
    for offset, entry in zip(offsets, read.flatten().tolist(), strict=True):
        by_offset.setdefault(tuple(offset), set()).add(entry)
    assert max(map(len, by_offset.values())) > 1

    fitting = swin.ShiftedWindowAttention3d(DIM, list(left), [0, 0, 0], HEADS)
    table = module.position.table
    centre = table[:, *(slice(w - n, w + n - 1) for w, n in zip(window, left, strict=True))]
    state = {**attention.state_dict(), "relative_position_bias_table": centre.flatten(1).T}
    state["relative_position_index"] = fitting.relative_position_index
    fitting.load_state_dict(state)
    agree(f"torchvision video {shape}, its own window", worst(module, clip, fitting(clip)))


@pytest.mark.parametrize(("side", "bias"), [(14, False), (14, True), (5, False)])
def test_timm_gpsa(timm: ModuleType, side: int, bias: bool) -> None:
    convit = import_module("timm.models.convit")
    gpsa = randomised(convit.GPSA(36, num_heads=9, qkv_bias=bias))
    gpsa.local_init()
    with torch.no_grad():  # off the start, so that nothing is symmetric
        for parameter in gpsa.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = GatedAttention(36, 9, grid=Grid(side, side), qkv_bias=bias)
    copied = {n: v for n, v in gpsa.state_dict().items() if n.split(".")[0] in ("qk", "v", "proj")}
    copied["position.direction"] = -gpsa.pos_proj.weight[:, (1, 0)]  # (dx, dy) of key - query to (dy, dx) of ours
    copied["position.spread"] = gpsa.pos_proj.weight[:, 2]
    copied["position.gate"] = gpsa.gating_param
    module.load_state_dict(copied)
    x = torch.randn(2, side * side, 36)
    agree(f"timm GPSA {side} × {side}, bias {bias}", float((module(x) - gpsa(x)).detach().abs().max()))


def test_timm_gpsa_starts_where_ours_starts(timm: ModuleType) -> None:
    convit = import_module("timm.models.convit")
    gpsa = convit.GPSA(36, num_heads=9)
    gpsa.local_init()
    module = GatedAttention(36, 9)
    assert torch.equal(module.v.weight, gpsa.v.weight)
    assert torch.equal(module.position.direction, -gpsa.pos_proj.weight[:, (1, 0)])
    assert torch.equal(module.position.spread, gpsa.pos_proj.weight[:, 2])
