"""A ViT of one's own in `locant compare`: only two lines of it know that position is to be compared.

locant compare --task images --positions none,learned,rotary --model examples/compare_own_vit.py:build
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from locant import attention, compare
from locant.compare import Placement


class Block(nn.Module):
    """x + attention(norm x), then x + perceptron(norm x); the same weights in every pass of a scheme."""

    def __init__(self, position: Placement, layer: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.position = position.layer(layer, dim, heads)  # what this layer attends with

    def forward(self, x: Tensor) -> Tensor:
        for at in self.position():  # grid=, position= and mask= of one call; most schemes have one
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            x = x + self.proj(attention(q, k, v, **at).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class OwnViT(nn.Module):
    """Patches, blocks, the mean over tokens, classes."""

    def __init__(self, position: Placement, dim: int = 48, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(position.channels, dim, position.patch, stride=position.patch)
        self.tokens = position.tokens(dim)  # what is added to the tokens: nothing, for most schemes
        self.blocks = nn.Sequential(*(Block(position, layer, dim, heads) for layer in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, position.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.blocks(x)).mean(1))


def build(position: Placement) -> nn.Module:
    """What `--model` calls, once per scheme."""
    return OwnViT(position)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = compare.run(
            task="images", positions=["none", "learned", "rotary"], model=f"{__file__}:build", seeds=1, steps=150,
            lr=0.006, starts=1, out=Path(folder) / "run", quiet=True,
        )  # fmt: skip
        (task,) = result.data["tasks"]
        print(task["model"]["sentence"])
        for scheme in task["schemes"]:
            print(f"{scheme['label']:18} {100 * scheme['accuracy']['mean']:.1f} %")
        model, about = compare.load(result.folder / result.data["best"]["file"])
        logits = model(torch.rand(1, 1, 8, 8))
        print(f"best: {about['job']['scheme']}, a {type(model).__name__}: {logits.shape[1]} logits for a digit")
    accuracy = {scheme["name"]: scheme["accuracy"]["mean"] for scheme in task["schemes"]}
    assert accuracy["none"] < min(accuracy["learned"], accuracy["rotary"])


if __name__ == "__main__":
    main()
