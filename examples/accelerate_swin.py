"""What `locant.accelerate` does, by hand: a block of someone else's Swin keeps its weights and gets another forward."""

from types import MethodType

import torch
from torch import nn

from locant import Windows, attention_packed
from locant.positions.position import Bias


class PastedAttention(nn.Module):
    """Shifted windows as they are pasted from model to model: roll, cut, gather a bias, mask, attend, and all back."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        cells = torch.cartesian_prod(torch.arange(window), torch.arange(window)).T
        row, column = cells[:, :, None] - cells[:, None, :] + window - 1
        self.register_buffer("relative_position_index", row * (2 * window - 1) + column, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [batch, rows, columns, dim]
        (b, h, w, c), n, s = x.shape, self.window, self.shift
        label = torch.zeros(1, h, w, 1)
        for i, rows in enumerate((slice(0, -n), slice(-n, -s), slice(-s, None))):
            for j, columns in enumerate((slice(0, -n), slice(-n, -s), slice(-s, None))):
                label[:, rows, columns] = 3 * i + j
        cells, label = (self.cut(y) for y in (x.roll((-s, -s), (1, 2)), label))
        q, k, v = self.qkv(cells).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        mask = torch.where(label == label.transpose(1, 2), 0.0, -100.0)[:, None].repeat(b, 1, 1, 1)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + bias + mask).softmax(-1)
        out = self.proj((weights @ v).transpose(1, 2).flatten(2))
        out = out.view(b, h // n, w // n, n, n, c).transpose(2, 3).reshape(b, h, w, c)
        return out.roll((s, s), (1, 2))

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, c, n = *x.shape, self.window
        return x.view(b, h // n, n, w // n, n, c).transpose(2, 3).reshape(-1, n * n, c)


class Borrowed(Bias):
    """The block's own table, read where it lies: what is trained, loaded or replaced there is seen here."""

    def __init__(self, owner: PastedAttention) -> None:
        super().__init__()
        self.__dict__["owner"], self.heads = owner, owner.heads  # not registered: no state dict changes

    def at(self, offset: torch.Tensor) -> torch.Tensor:  # query - key, [*pairs, 2] → [heads, *pairs]
        row, column = (offset + self.owner.window - 1).unbind(-1)
        return self.owner.relative_position_bias_table[row * (2 * self.owner.window - 1) + column].movedim(-1, 0)


def forward(self: PastedAttention, x: torch.Tensor) -> torch.Tensor:
    mask = Windows((self.window, self.window), (self.shift, self.shift))  # nothing is rolled, cut or gathered
    qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
    return self.proj(attention_packed(qkv, position=Borrowed(self), mask=mask))


def main() -> None:
    torch.manual_seed(0)
    block, x = PastedAttention(32, 4, window=4, shift=2).double(), torch.randn(2, 16, 16, 32, dtype=torch.float64)
    results = []
    for _ in range(2):
        out = block(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(block.parameters()))])
        block.forward = MethodType(forward, block)  # this instance alone; its keys, hooks and class stay
    for name, theirs, ours in zip(("output", *dict(block.named_parameters())), *results, strict=True):
        print(f"{name:32} differs by {(ours - theirs).abs().max():.0e} of {theirs.abs().max():.0e}")
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    del block.forward  # and the block is what it was
    assert torch.equal(block(x), results[0][0])


if __name__ == "__main__":
    main()
