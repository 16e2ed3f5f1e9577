"""How far heads look: closed forms, a double loop, and what the layers of a model really see."""

from __future__ import annotations

import math

import pytest
import torch
from convits import DIM, HEADS, built, pictures
from near import close
from redrawing import redraw

from locant import GatedPosition, Grid, Sinusoid
from locant.models.nonlocality import attention_map, non_locality
from locant.nn import Attention, GatedAttention


@pytest.mark.row(23)
def test_uniform_maps_have_a_closed_mean_and_identity_none() -> None:
    """Over n × n cells: Σ (n - |dx|)(n - |dy|) √(dx² + dy²) / n⁴, which is (2 + √2)/4 for n = 2."""
    wanted = {1: 0.0, 2: (2 + 2**0.5) / 4, 3: (48 + 24 * 2**0.5 + 16 * 5**0.5) / 81}
    offsets = range(-6, 7)
    wanted[7] = sum((7 - abs(y)) * (7 - abs(x)) * math.hypot(x, y) for y in offsets for x in offsets) / 7**4
    for n, mean in wanted.items():
        uniform = torch.full((2, 3, n * n, n * n), 1 / (n * n), dtype=torch.float64)
        close(non_locality(uniform, Grid(n, n)), torch.full((3,), mean, dtype=torch.float64))
        assert non_locality(torch.eye(n * n).expand(2, 3, -1, -1), Grid(n, n)).tolist() == [0, 0, 0]


@pytest.mark.row(23)
def test_maps_of_a_rectangle_with_a_class_token() -> None:
    """Against a double loop: the class token's row and column are left out, the rest of each row made to sum to 1."""
    grid = Grid(2, 3, prefix=1)
    maps = torch.rand(2, HEADS, 7, 7, dtype=torch.float64).softmax(-1)
    total = torch.zeros(HEADS, dtype=torch.float64)
    for b in range(2):
        for i in range(6):
            row = maps[b, :, 1 + i, 1:] / maps[b, :, 1 + i, 1:].sum(-1, keepdim=True)
            for j in range(6):
                total += row[:, j] * math.hypot(i % 3 - j % 3, i // 3 - j // 3)
    close(non_locality(maps, grid), total / 12)
    maps[..., 1:, 0], maps[..., 1:, 1:] = 1.0, 0.0  # nothing but the class token is seen
    assert non_locality(maps, grid).tolist() == [0] * HEADS


@pytest.mark.row(23)
def test_heads_of_a_model_at_what_they_really_see() -> None:
    """The hidden states in front of each block's attention, by hooks; gates shut and open have known distances."""
    model, images, inputs = built(3, 4), pictures(3, 4), []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    found = model.non_locality(images)
    assert (found.shape, found.requires_grad) == ((4, HEADS), False)
    inputs.clear()
    model(images)
    for index, (block, x) in enumerate(zip(model.blocks, inputs, strict=True)):
        grid = Grid(3, 4, prefix=0 if index < 2 else 1)
        close(found[index], non_locality(attention_map(block.attention, x, grid), grid))
    with torch.no_grad():  # head 0 sees itself, head 1 everything alike, by position; heads 2 and 3 by content
        for block in model.blocks[:2]:
            block.attention.position.gate.copy_(torch.tensor([900.0, 900, -900, -900]))
            block.attention.position.direction.zero_()
            block.attention.position.spread.copy_(torch.tensor([-900.0, 0, -900, -900]))
            block.attention.qk.weight.zero_()
    uniform = non_locality(torch.full((1, 1, 12, 12), 1 / 12, dtype=torch.float64), Grid(3, 4))
    close(model.non_locality(images)[:2], torch.stack([0 * uniform, uniform, uniform, uniform], dim=1).expand(2, -1))


@pytest.mark.row(23)
def test_the_map_of_a_module_is_what_it_attends_with() -> None:
    """Times the values it is the output before the projection: plain and gated, with biases, scale and embedding."""
    grid, x = Grid(2, 3), torch.randn(2, 6, DIM, dtype=torch.float64)
    gated = redraw(GatedAttention(DIM, HEADS, position=(GatedPosition(HEADS), Sinusoid(DIM)), qkv_bias=True).double())
    plain = redraw(Attention(DIM, HEADS, position=Sinusoid(DIM), scale=0.3).double())
    for module in (gated, plain):
        values = module.v(x) if module is gated else module.qkv(x)[..., 2 * DIM :]
        mixed = attention_map(module, x, grid) @ values.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        close(module.proj(mixed.transpose(1, 2).flatten(2)), module(x, grid=grid))
