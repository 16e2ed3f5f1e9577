"""AIM against regrouped axes and torch's attention, and at its start against the image models of timm and transformers.

The compositions below are what the papers' code does, written anew: frames are folded into the batch for space, places
into the batch for time, windows are gathered from a rolled map and masked with -100.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from itertools import product

import pytest
import torch
from redrawing import redraw
from torch import Tensor, nn
from torch.nn import functional as F

from locant import Grid, RelativeTable
from locant.checkpoints.loading import load
from locant.models.aim import AIM
from locant.models.aim_swin import AIMSwin
from locant.models.aim_vit import AIMViT
from locant.nn.relative import RelativeAttention
from locant.nn.space_time import SpaceTimeAttention, SpaceTimeBlock

EXACT = 1e-10  # float64, engineering's policy
Attend = Callable[[Tensor], Tensor]


def close(parity: Callable, rows: tuple[int, ...], reference: str, found: Tensor, wanted: Tensor, most: float) -> None:
    assert found.shape == wanted.shape
    for row in rows:
        parity(row, reference, float((found - wanted).detach().abs().max()), most)


def attended(attention: SpaceTimeAttention, x: Tensor, bias: Tensor | None) -> Tensor:
    """Groups [groups, tokens, dim] each by themselves: qkv, torch's attention with an additive bias, proj."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


def temporal_bias(attention: SpaceTimeAttention, frames: int) -> Tensor | None:
    """The flat table [2T-1, heads], read at query - key + T - 1."""
    if attention.temporal is None:
        return None
    flat, built = attention.temporal.table.flatten(1).T, attention.frames
    index = torch.tensor([[i - j + built - 1 for j in range(frames)] for i in range(frames)])
    return flat[index].permute(2, 0, 1)[None]


def spatial_bias(attention: SpaceTimeAttention, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Which tokens are in each window of the rolled map, and the bias of each window with -100 across the borders."""
    (side, _), (shift, _) = attention.windows.size, attention.windows.shift
    if min(rows, columns) <= side:
        assert min(rows, columns) == side, "the published model then builds another table"
        shift = 0
    cells = torch.arange(rows * columns).view(rows, columns).roll((-shift, -shift), (0, 1))
    lines = [sum(n >= length - back for back in (side, shift)) for length in (rows, columns) for n in range(length)]
    region = 3 * torch.tensor(lines[:rows])[:, None] + torch.tensor(lines[rows:])
    index, labels = (m.unfold(0, side, side).unfold(1, side, side).reshape(-1, side**2) for m in (cells, region))
    place = list(product(range(side), repeat=2))
    at = [[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1 for c, d in place] for a, b in place]
    bias = attention.position.table.flatten(1).T[torch.tensor(at)].permute(2, 0, 1)[None]
    if shift:
        bias = bias + -100.0 * (labels[:, None, :, None] != labels[:, None, None, :])
    return index, bias.expand(len(index), -1, -1, -1)


def over_time(block: SpaceTimeBlock, x: Tensor) -> Tensor:
    """x [batch, time, places, dim]: places into the batch, the norm, the attention, the adapters."""
    batch, frames, places, _ = x.shape
    y = block.norm1(x.transpose(1, 2).flatten(0, 1))
    if block.T_Adapter_in is not None:
        y = y + adapted(block.T_Adapter_in, y)
    y = adapted(block.T_Adapter, attended(block.attention, y, temporal_bias(block.attention, frames)))
    return x + y.unflatten(0, (batch, places)).transpose(1, 2)


def over_space(block: SpaceTimeBlock, x: Tensor, rows: int, columns: int) -> Tensor:
    """x [batch, time, places, dim]: frames into the batch, windows of the rolled map, the adapter inside them."""
    frames = block.norm1(x.flatten(0, 1))
    if block.attention.windows is None:
        y = attended(block.attention, frames, None)
        y = y + adapted(block.S_Adapter, y)
    else:
        index, bias = spatial_bias(block.attention, rows, columns)
        windows = attended(block.attention, frames[:, index].flatten(0, 1), bias.repeat(len(frames), 1, 1, 1))
        windows = windows + adapted(block.S_Adapter, windows)
        y = torch.empty_like(frames).index_copy(
            1, index.flatten(), windows.unflatten(0, (len(frames), -1)).flatten(1, 2)
        )
    return x + y.view_as(x)


def adapted(adapter: nn.Module, x: Tensor) -> Tensor:
    """The adapter without its skip."""
    return F.linear(
        F.gelu(F.linear(x, adapter.D_fc1.weight, adapter.D_fc1.bias)), adapter.D_fc2.weight, adapter.D_fc2.bias
    )


def composed(block: SpaceTimeBlock, x: Tensor, rows: int, columns: int, activation: Attend) -> Tensor:
    """A published block on x [batch, time, places, dim]."""
    if block.T_Adapter is not None:
        x = over_time(block, x)
    x = over_space(block, x, rows, columns)
    y = block.norm2(x)
    return x + block.mlp.fc2(activation(block.mlp.fc1(y))) + block.scale * adapted(block.MLP_Adapter, y)


def composed_swin(model: AIMSwin, x: Tensor) -> Tensor:
    """The whole published Swin on a clip: 3-D patches, stages, merging frame by frame."""
    x = F.conv3d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=(2, 4, 4))
    rows, columns = x.shape[3:]
    x = model.patch_embed.norm(x.permute(0, 2, 3, 4, 1).flatten(2, 3))
    for stage in model.layers:
        for block in stage.blocks:
            x = composed(block, x, rows, columns, F.gelu)
        if stage.downsample is not None:
            m = x.unflatten(2, (rows, columns))
            m = torch.cat([m[:, :, a::2, b::2] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=-1)
            x, rows, columns = m.flatten(2, 3), rows // 2, columns // 2
            x = F.linear(stage.downsample.norm(x), stage.downsample.reduction.weight)
    return model.norm(x).permute(0, 3, 1, 2).unflatten(3, (rows, columns))


def composed_vit(model: AIMViT, x: Tensor) -> Tensor:
    """The whole published ViT on a clip: a class token in front of every frame, positions, frames, blocks."""
    batch, _, frames = x.shape[:3]
    side = model.conv1.patch[1]
    x = (
        F.conv2d(x.transpose(1, 2).flatten(0, 1), model.conv1.proj.weight[:, :, 0], stride=side)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([model.class_embedding.expand(len(x), 1, -1), x], dim=1)
    x = x + torch.cat([model.positional_embedding.prefix, model.positional_embedding.table])
    x = x.unflatten(0, (batch, frames)) + model.temporal_embedding.table[:frames, None]
    x = model.ln_pre(x)
    for block in model.blocks:
        x = composed(block, x, 0, 0, lambda y: y * torch.sigmoid(1.702 * y))
    return model.ln_post(x)[:, :, 0].transpose(1, 2)[..., None, None]


def small_swin(**given: object) -> AIMSwin:
    return AIMSwin(frames=8, dim=8, depths=(2, 2), heads=(2, 4), window=4, num_classes=0, **given)


def small_vit(**given: object) -> AIMViT:
    return AIMViT(img_size=32, patch=8, frames=4, dim=24, depth=2, heads=3, num_classes=0, **given)


COMPOSED = {
    "Swin": (small_swin, composed_swin),
    "ViT-CLIP": (small_vit, composed_vit),
    "ViT-CLIP, two adapters in time": (lambda: small_vit(num_tadapter=2, adapter_scale=1.0), composed_vit),
}


@pytest.mark.row(1)
@pytest.mark.parametrize("frames", [1, 4, 16])
def test_the_temporal_index_is_timms_of_a_column(frames: int, timm: object, parity: Callable) -> None:
    table = RelativeTable(Grid(frames, 1, 1), 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(2.0 * frames - 1).reshape(1, -1, 1, 1))
    wanted = import_module("timm.layers.pos_embed_rel").gen_relative_position_index((frames, 1))
    close(parity, (1,), f"timm gen_relative_position_index, {frames} frames", table(Grid(frames, 1, 1))[0], wanted, 0.0)


@pytest.mark.row(4)
@pytest.mark.row(5)
@pytest.mark.row(13)
@pytest.mark.parametrize("name", COMPOSED)
def test_the_whole_model_is_the_regrouped_composition(name: str, parity: Callable) -> None:
    """Forward, and the gradient of every parameter and of the clip."""
    build, compose = COMPOSED[name]
    model = redraw(build()).double().eval()
    x = torch.randn(2, 3, model.frames, 32, 32, dtype=torch.float64, requires_grad=True)
    found, wanted = model(x), compose(model, x)
    close(parity, (4, 5, 13), f"regrouped composition with SDPA: {name}", found, wanted, EXACT)
    target = torch.randn_like(found)
    leaves = [x, *model.parameters()]
    ours, theirs = (torch.autograd.grad((y * target).sum(), leaves) for y in (found, wanted))
    names = ["x", *(n for n, _ in model.named_parameters())]
    for where, a, b in zip(names, ours, theirs, strict=True):
        assert float(b.abs().max()) > 0, where
        assert float((a - b).abs().max()) <= EXACT * max(1.0, float(b.abs().max())), where


@pytest.mark.row(4)
@pytest.mark.row(7)
@pytest.mark.parametrize("name", COMPOSED)
def test_shorter_clips_read_the_centre_of_the_table(name: str, parity: Callable) -> None:
    build, compose = COMPOSED[name]
    model = redraw(build()).double().eval()
    x = torch.randn(1, 3, model.frames // 2, 32, 32, dtype=torch.float64)
    close(parity, (4, 7), f"composition on half a clip: {name}", model(x), compose(model, x), EXACT)


@pytest.mark.row(3)
@pytest.mark.parametrize(
    ("shape", "window", "shift"), [((8, 12), 4, 2), ((8, 4), 4, 2), ((6, 9), 3, 0), ((6, 9), 3, 1)]
)
def test_spatial_half_is_the_rolled_map(shape: tuple[int, int], window: int, shift: int, parity: Callable) -> None:
    attention = SpaceTimeAttention(12, 3, frames=5, window=(window, window), shift=(shift, shift))
    attention = redraw(attention).double()
    x = torch.randn(2, 5, shape[0] * shape[1], 12, dtype=torch.float64)
    index, bias = spatial_bias(attention, *shape)
    windows = attended(attention, x.flatten(0, 1)[:, index].flatten(0, 1), bias.repeat(10, 1, 1, 1))
    wanted = torch.empty_like(x.flatten(0, 1))
    wanted[:, index.flatten()] = windows.unflatten(0, (10, -1)).flatten(1, 2)
    found = attention(x.flatten(1, 2), grid=Grid(5, *shape))
    close(parity, (3,), "rolled windows with -100 and SDPA", found, wanted.view_as(x).flatten(1, 2), EXACT)


@pytest.mark.row(6)
@pytest.mark.parametrize("with_qkv", [True, False])
@pytest.mark.parametrize("tokens", [5, 3])
def test_relative_attention_is_sdpa_with_a_bias(with_qkv: bool, tokens: int, parity: Callable) -> None:
    module = redraw(RelativeAttention(12, 5, 3, with_qkv=with_qkv)).double()
    x = torch.randn(2, tokens, 12, dtype=torch.float64)
    joined = module.qkv(x) if with_qkv else x.repeat(1, 1, 3)
    q, k, v = joined.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    flat = module.position.table.T
    bias = flat[torch.tensor([[i - j + 4 for j in range(tokens)] for i in range(tokens)])].permute(2, 0, 1)
    wanted = F.scaled_dot_product_attention(q, k, v, bias[None]).transpose(1, 2).flatten(2)
    wanted = module.proj(wanted) if with_qkv else wanted
    close(parity, (6,), f"SDPA with an additive bias, with_qkv={with_qkv}", module(x), wanted, EXACT)


def started(model: AIM) -> AIM:
    """Every weight at a size that shows but the zeros that adapters and the temporal embedding start from."""
    zeros = {n: p.detach().clone() for n, p in model.named_parameters() if "D_fc2" in n or "temporal_embedding" in n}
    assert zeros
    assert all(not bool(z.any()) for z in zeros.values())
    redraw(model)
    model.load_state_dict(zeros, strict=False)
    return model.eval()


def per_frame(image_model: Attend, clip: Tensor) -> Tensor:
    return torch.stack([image_model(frame) for frame in clip.unbind(2)], dim=2)


def single(found: Tensor, wanted: Tensor, exact: Tensor) -> float:
    """The error that float32 may have: twice that of the reference, or 1e-5 of the largest number."""
    return max(2 * float((wanted.double() - exact).detach().abs().max()), 1e-5 * float(exact.detach().abs().max()))


@pytest.mark.row(3)
@pytest.mark.row(5)
@pytest.mark.parametrize("size", [(56, 56), (112, 168)])
def test_at_its_start_swin_is_timms_on_every_frame(size: tuple[int, int], timm: object, parity: Callable) -> None:
    """Two frames share a token: the 2-D kernel over 2, twice, reads their mean. Forward and the image's gradients."""
    swin = import_module("timm.models.swin_transformer").SwinTransformer
    sizes = {"depths": (2, 2), "embed_dim": 16, "num_heads": (2, 4), "window_size": 7}
    theirs = redraw(swin(img_size=size, num_classes=0, global_pool="", **sizes)).eval()
    ours = started(AIMSwin(frames=4, dim=16, depths=(2, 2), heads=(2, 4), window=7, num_classes=0))
    assert load(ours, theirs.state_dict(), layout="timm").exact
    x = torch.randn(1, 3, 4, *size, requires_grad=True)
    frames = x.unflatten(2, (2, 2)).mean(3)

    def compared(module: nn.Module, clip: Tensor) -> Tensor:
        return per_frame(lambda frame: module.forward_features(frame).permute(0, 3, 1, 2), clip)

    found, wanted = ours(x), compared(theirs, frames)
    exact = compared(copy.deepcopy(theirs).double(), frames.double())
    close(parity, (3, 5), "timm SwinTransformer, frame by frame", found, wanted, single(found, wanted, exact))
    target = torch.randn_like(wanted)
    a, b = (torch.autograd.grad((y * target).sum(), x, retain_graph=True)[0] for y in (found, wanted))
    (c,) = torch.autograd.grad((exact * target).sum(), x)
    assert float((a - b).abs().max()) <= 3 * single(a, b, c.double())


@pytest.mark.row(5)
def test_at_its_start_the_vit_is_clip_on_every_frame(transformers: object, parity: Callable) -> None:
    clip = import_module("transformers.models.clip")
    config = clip.CLIPVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
    )
    theirs = redraw(clip.CLIPVisionModel(config)).eval()
    ours = started(small_vit())
    assert load(ours, theirs.state_dict(), layout="transformers").exact
    x = torch.randn(2, 3, 4, 32, 32, requires_grad=True)

    def compared(module: nn.Module, clip: Tensor) -> Tensor:
        return per_frame(lambda frame: module(frame).pooler_output, clip)

    found, wanted = ours(x)[..., 0, 0], compared(theirs, x)
    exact = compared(copy.deepcopy(theirs).double(), x.double())
    close(parity, (5,), "transformers CLIPVisionModel, frame by frame", found, wanted, single(found, wanted, exact))
    target = torch.randn_like(wanted)
    a, b = (torch.autograd.grad((y * target).sum(), x, retain_graph=True)[0] for y in (found, wanted))
    (c,) = torch.autograd.grad((exact * target).sum(), x)
    assert float((a - b).abs().max()) <= 3 * single(a, b, c.double())
