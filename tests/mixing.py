"""A block of some library: attention by a bias per pair of 16 tokens, and a perceptron."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 96


class Mixing(nn.Module):
    """Attention of some library: a bias per pair of 16 tokens, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(16, 16))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.relative_position_bias_table.softmax(-1) @ x)


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = Mixing()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 384), nn.GELU(), nn.Linear(384, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixing(x)
        return x + self.fc2(self.act(self.fc1(x)))
