"""Classes that Locant was not told of: replaced where they agree with their own forward, and left where they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import locant
from locant.nn.window import _merged, _partitioned, window_mask

CPU = torch.device("cpu")


class Attention(nn.Module):
    """What copies of Swin's attention are made of."""

    blocked = -100.0

    def __init__(self, dim: int, window_size: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.window_size, self.num_heads, self.scale = window_size, num_heads, (dim // num_heads) ** -0.5
        rows, columns = window_size
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * rows - 1) * (2 * columns - 1), num_heads))
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        apart = places[:, None] - places + torch.tensor([rows - 1, columns - 1])
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * columns - 1) + apart[..., 1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def bias(self) -> torch.Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * self.scale + self.bias()
        if mask is not None:
            logits = logits + mask.repeat(len(x) // len(mask), 1, 1)[:, None]
        return self.proj_drop(self.proj(self.attn_drop(logits.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class AddedTerm(Attention):
    def bias(self) -> torch.Tensor:
        return super().bias() + 1e-3 * torch.eye(self.relative_position_index.shape[0])


class TurnedTable(Attention):
    def bias(self) -> torch.Tensor:
        return super().bias().transpose(-2, -1)


class Perceptron(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TwicePerceptron(Perceptron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Block(nn.Module):
    """Of a picture whose sides come with the call: super-resolution."""

    blocked = -100.0

    def __init__(self, shift: int, attention: Callable[..., nn.Module] = Attention) -> None:
        super().__init__()
        self.window_size, self.shift_size, self.input_resolution, self.H, self.W = 4, shift, (8, 12), 7, 12
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(32), nn.LayerNorm(32), Perceptron(32)
        self.attn, self.drop_path = attention(32, (4, 4), 2), nn.Identity()

    def run(self, x: torch.Tensor, sides: tuple[int, int], mask: torch.Tensor | None = None) -> torch.Tensor:
        window, shift = (4, 4), (self.shift_size,) * 2
        y = self.norm1(x).unflatten(1, sides)
        y = nn.functional.pad(y, (0, 0, 0, -sides[1] % 4, 0, -sides[0] % 4))
        filled = tuple(y.shape[1:3])
        if mask is None and self.shift_size:
            mask = torch.where(window_mask(filled, window, shift, CPU), 0.0, self.blocked).to(x)
        y = self.attn(_partitioned(y.roll((-shift[0], -shift[1]), (1, 2)), window), mask)
        y = _merged(y, len(x), window, filled).roll(shift, (1, 2))[:, : sides[0], : sides[1]]
        x = x + self.drop_path(y.flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def forward(self, x: torch.Tensor, x_size: tuple[int, int]) -> torch.Tensor:
        assert not any(side % 4 for side in x_size)
        return self.run(x, x_size)


class FixedBlock(Block):
    """Of a map whose sides it was built for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x, self.input_resolution)


class MaskedBlock(Block):
    """Of a map of any sides, its mask made for all blocks at once: detection."""

    def forward(self, x: torch.Tensor, mask_matrix: torch.Tensor) -> torch.Tensor:
        return self.run(x, (self.H, self.W), mask_matrix if self.shift_size else None)


class WeakerMask(Block):
    blocked = -10.0


class OtherResidual(Block):
    def forward(self, x: torch.Tensor, x_size: tuple[int, int]) -> torch.Tensor:
        return self.run(x, x_size) + 1e-3 * x


def _mask(block: MaskedBlock) -> torch.Tensor:
    return torch.where(window_mask((8, 12), (4, 4), (block.shift_size,) * 2, CPU), 0.0, -100.0)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("kind", [Block, FixedBlock, MaskedBlock])
def test_blocks(kind: type[Block], shift: int) -> None:
    torch.manual_seed(0)
    block = kind(shift).eval()
    x = torch.randn(2, 84 if kind is MaskedBlock else 96, 32)
    example = {Block: (x, (8, 12)), FixedBlock: (x,)}.get(kind)
    example = (x, _mask(block)) if example is None else example
    report = locant.accelerate(block, example=example, strict=True, training=True)
    assert [row.path for row in report.rows if row.kind == "attention"] == [""]
    assert report.rows[0].what == f"table, windows of 4 × 4, by its shape{', shifted' * bool(shift)}"
    assert {row.kernel for row in report.rows if row.kind == "perceptron"} == {"packed"}


def test_a_mask_of_another_pattern_runs_the_class_s_own_forward() -> None:
    torch.manual_seed(0)
    block = MaskedBlock(2).eval()
    x, masks = torch.randn(2, 84, 32), [_mask(block).flip(0), 0.5 * _mask(block), _mask(block).double()]
    with torch.no_grad():
        wanted = [block(x, mask.float()) for mask in masks[:2]]
        locant.accelerate(block, pack=False)  # packed products sum in another order
        assert all(torch.equal(block(x, mask), y) for mask, y in zip(masks, wanted, strict=False))


def test_a_map_that_windows_do_not_divide_runs_the_class_s_own_forward() -> None:
    block = Block(0).eval()
    locant.accelerate(block, strict=True)
    with pytest.raises(AssertionError):
        block(torch.randn(1, 63, 32), (7, 9))


@pytest.mark.parametrize("mask", [False, True])
def test_attention_alone(mask: bool) -> None:
    """Under a mask that is handed in, its own forward: what the mask means is not known there."""
    torch.manual_seed(0)
    attention = Attention(32, (4, 4), 2).eval()
    x = torch.randn(6, 16, 32), torch.randn(3, 16, 16) if mask else None
    report = locant.accelerate(attention, example=x, strict=True, training=True)
    assert report.rows[0].kernel == "native"


@pytest.mark.parametrize("kind", [AddedTerm, TurnedTable])
def test_attention_that_differs_says_so(kind: type[Attention]) -> None:
    row = locant.accelerate(kind(32, (4, 4), 2)).rows[0]
    assert row.kernel is None
    assert "differs from its class's own forward" in row.why or "could not be tried" in row.why


@pytest.mark.parametrize("kind", [WeakerMask, OtherResidual])
def test_blocks_that_differ_say_so_and_their_attention_is_replaced(kind: type[Block]) -> None:
    rows = {row.path: row for row in locant.accelerate(kind(2)).rows}
    assert rows[""].kernel is None
    assert "differs from its class's own forward" in rows[""].why
    assert rows["attn"].kernel == "native"


def test_each_module_is_tried_for_itself() -> None:
    """One that has a flag set does other than its neighbour of the same class."""

    class Flagged(Attention):
        extra = False

        def bias(self) -> torch.Tensor:
            return super().bias() * (2 if self.extra else 1)

    model = nn.ModuleList([Flagged(32, (4, 4), 2) for _ in range(2)])
    model[1].extra = True
    assert [row.kernel for row in locant.accelerate(model).rows if row.kind == "attention"] == ["native", None]


def test_a_perceptron_that_differs_says_so() -> None:
    rows = [locant.accelerate(kind(32)).rows[0] for kind in (Perceptron, TwicePerceptron)]
    assert [row.kernel for row in rows] == ["packed", None]


@pytest.mark.compiled
@pytest.mark.parametrize("kind", [Block, MaskedBlock])
def test_graphs(kind: type[Block]) -> None:
    """One graph; where it would have to look into the mask, it holds the class's own forward."""
    torch.manual_seed(0)
    block = kind(2).eval()
    arguments = (torch.randn(2, 96, 32), (8, 12)) if kind is Block else (torch.randn(2, 84, 32), _mask(block))
    with torch.no_grad():
        wanted = block(*arguments)
        locant.accelerate(block)
        found = torch.compile(block, fullgraph=True, backend="aot_eager")(*arguments)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
