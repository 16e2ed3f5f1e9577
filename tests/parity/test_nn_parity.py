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
    """Windows that shrink in time alone: torchvision reads the wrong rows of its table if they shrink in space."""
    swin = import_module("torchvision.models.video.swin_transformer")
    window = (2, 3, 3)
    attention = randomised(swin.ShiftedWindowAttention3d(DIM, list(window), list(shift), HEADS))
    theirs = {**attention.state_dict(), "table": attention.relative_position_bias_table}
    module = ours(window, shift, theirs, border="pad-roll", small="per-axis")
    clip = torch.randn(2, *shape, DIM)
    agree(f"torchvision video {shape}", worst(module, clip, attention(clip)))


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
