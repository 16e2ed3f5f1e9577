"""A ViT with a class token whose blocks carry a relative table, trained small and run on larger images.

The table's rows for the class token are learned too (BEiT); `resized` carries all of it to another grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locant import Grid, RelativeTable
from locant.nn import Block


class TinyViT(nn.Module):
    """Patches of 4 × 4, a class token, two blocks, a head. Every block has a table of its own."""

    def __init__(self, grid: Grid, dim: int = 48, heads: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.grid = grid
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, position=RelativeTable(grid, heads)) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, grid=self.grid)
        return self.head(self.norm(x[:, 0]))

    def resize(self, grid: Grid) -> None:
        """Take images of another size from now on."""
        self.grid = grid
        for block in self.blocks:
            block.attention.position = block.attention.position.resized(grid)


def main() -> None:
    torch.manual_seed(0)
    model = TinyViT(Grid(8, 8, prefix=1))
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    nn.functional.cross_entropy(model(images), labels).backward()
    for name, parameter in model.blocks[0].attention.position.named_parameters():
        print(f"{name:13} {tuple(parameter.shape)!s:12} gradient {float(parameter.grad.norm()):.1e}")
        assert float(parameter.grad.abs().max()) > 0

    table = model.blocks[0].attention.position.table
    model.resize(Grid(12, 16, prefix=1))  # any rectangle
    larger = model.blocks[0].attention.position.table
    print("on 48 × 64 pixels:", tuple(model(torch.randn(1, 3, 48, 64)).shape), "table", tuple(larger.shape))
    assert torch.equal(larger[:, 11, 15], table[:, 7, 7])  # the zero offset stays at the centre, its value too


if __name__ == "__main__":
    main()
