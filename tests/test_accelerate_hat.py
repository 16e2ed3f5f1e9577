"""Blocks of HAT that Locant was not told of: windows beside a convolution, and windows of keys that overlap."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locant
from locant.integrations.model import accelerate
from locant.nn.window import _merged, _partitioned, window_mask

DIM, HEADS, SIDE = 16, 2, 4


def index(side: int) -> torch.Tensor:
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places + side - 1
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]


def overlapping_index(side: int, wide: int) -> torch.Tensor:
    """As published: from a negative number, read from the end of the table."""
    places = [torch.cartesian_prod(torch.arange(n), torch.arange(n)) for n in (side, wide)]
    apart = places[1][None] - places[0][:, None] + side - wide + 1
    return apart[..., 0] * (side + wide - 1) + apart[..., 1]


def mask(sides: tuple[int, int], shift: int) -> torch.Tensor:
    seen = window_mask(sides, (SIDE, SIDE), (shift, shift), torch.device("cpu"))
    return torch.where(seen, 0.0, -100.0).double()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.num_heads, self.scale = (SIDE, SIDE), HEADS, (DIM // HEADS) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * SIDE - 1) ** 2, HEADS))
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: torch.Tensor, rpi: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * self.scale + self.relative_position_bias_table[rpi].permute(2, 0, 1)
        if mask is not None:
            logits = logits + mask.repeat(len(x) // len(mask), 1, 1)[:, None]
        return self.proj_drop(self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Hybrid(nn.Module):
    """Windows beside a convolution."""

    share = 1.0

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.window_size, self.shift_size, self.conv_scale = SIDE, shift, 0.3
        self.norm1, self.norm2, self.drop_path = nn.LayerNorm(DIM), nn.LayerNorm(DIM), nn.Identity()
        self.attn, self.mlp, self.conv_block = Attention(), Perceptron(), nn.Conv2d(DIM, DIM, 3, padding=1)

    def forward(self, x, x_size, rpi_sa, attn_mask):
        inner, shift = self.norm1(x).unflatten(1, x_size), self.shift_size
        beside = self.conv_block(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        rolled = inner.roll((-shift, -shift), (1, 2))
        out = self.attn(_partitioned(rolled, (SIDE, SIDE)), rpi_sa, attn_mask if shift else None)
        out = _merged(out, len(x), (SIDE, SIDE), x_size).roll((shift, shift), (1, 2)).flatten(1, 2)
        x = x + self.drop_path(out) * self.share + beside * self.conv_scale
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Overlapping(nn.Module):
    """Keys of windows of 6, queries of windows of 4."""

    added = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.overlap_win_size, self.num_heads, self.scale = SIDE, 6, HEADS, (DIM // HEADS) ** -0.5
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(DIM), nn.LayerNorm(DIM), Perceptron()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.unfold = nn.Unfold(6, stride=SIDE, padding=1)
        self.relative_position_bias_table = nn.Parameter(torch.randn((SIDE + 5) ** 2, HEADS))

    def forward(self, x, x_size, rpi):
        rows, columns = (side // SIDE for side in x_size)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        q = _partitioned(q.unflatten(1, x_size), (SIDE, SIDE)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        padded = (F.pad(y.unflatten(1, x_size).permute(0, 3, 1, 2), (1, 1, 1, 1)) for y in (k, v))
        k, v = (y.unfold(2, 6, SIDE).unfold(3, 6, SIDE).permute(0, 2, 3, 4, 5, 1).flatten(3, 4) for y in padded)
        k, v = (y.flatten(0, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (k, v))
        logits = q @ k.transpose(-2, -1) * self.scale + self.relative_position_bias_table[rpi].permute(2, 0, 1)
        out = (logits + self.added * (rpi > 0)).softmax(-1) @ v
        assert len(out) == len(x) * rows * columns
        x = self.proj(_merged(out.transpose(1, 2).flatten(2), len(x), (SIDE, SIDE), x_size).flatten(1, 2)) + x
        return x + self.mlp(self.norm2(x))


def _drawn(kind: str, sides: tuple[int, int] = (8, 12)) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    x = torch.randn(3, sides[0] * sides[1], DIM, dtype=torch.float64, requires_grad=True)
    if kind == "overlapping":
        return Overlapping().double().eval(), (x, sides, overlapping_index(SIDE, 6))
    shift = 2 if kind == "shifted" else 0
    return Hybrid(shift).double().eval(), (x, sides, index(SIDE), mask(sides, shift))


KINDS = pytest.mark.parametrize("kind", ["plain", "shifted", "overlapping"])


def _all(block: nn.Module, arguments: tuple) -> list[torch.Tensor]:
    torch.manual_seed(1)
    out = block(*arguments)
    learned = [arguments[0], *block.parameters()]
    return [out.detach(), *torch.autograd.grad((out * torch.randn_like(out)).sum(), learned)]


@KINDS
@pytest.mark.parametrize("sides", [(8, 12), (4, 4), (4, 16)])
def test_outputs_and_gradients_in_float64(kind: str, sides: tuple[int, int]) -> None:
    block, arguments = _drawn(kind, sides)
    wanted = _all(block, arguments)
    report = accelerate(block, strict=True)
    assert "by its shape" in report.rows[0].what
    for one, other in zip(_all(block, arguments), wanted, strict=True):
        assert (one - other).abs().max() <= 1e-10 * max(1.0, float(other.abs().max()))


@KINDS
def test_the_class_s_own_forward_does_not_run(kind: str, monkeypatch) -> None:
    block, arguments = _drawn(kind)
    locant.accelerate(block, strict=True)
    monkeypatch.setattr(type(block), "forward", None)
    block(*arguments)


def test_other_masks_and_indices_run_the_class_s_own_forward() -> None:
    """A second mask in the place of the first, or one that was written into, is compared anew."""
    block, (x, sides, own, given) = _drawn("shifted")
    plain = copy.deepcopy(block)
    locant.accelerate(block, strict=True)
    other = given.flip(0).contiguous()
    for rpi, seen in ((own, given), (own, other), (own.T, given), (own, given)):
        assert (block(x, sides, rpi, seen) - plain(x, sides, rpi, seen)).abs().max() <= 1e-10
    given[0, 0, 1] = -100.0
    assert (block(x, sides, own, given) - plain(x, sides, own, given)).abs().max() <= 1e-10
    block, (x, sides, own) = _drawn("overlapping")
    plain = copy.deepcopy(block)
    locant.accelerate(block, strict=True)
    assert (block(x, sides, own.flip(0)) - plain(x, sides, own.flip(0))).abs().max() <= 1e-10


@pytest.mark.parametrize("kind", ["plain", "overlapping"])
def test_a_block_that_differs_says_so(kind: str, monkeypatch) -> None:
    block, _ = _drawn(kind)
    monkeypatch.setattr(type(block), "share" if kind == "plain" else "added", 0.9)
    row = locant.accelerate(block).rows[0]
    assert row.kernel is None
    assert "differs from its class's own forward" in row.why
