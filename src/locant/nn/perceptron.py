"""The perceptron of a transformer's block: two linear maps with an activation between them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Perceptron(nn.Module):
    """y = drop2(fc2(drop1(activation(fc1(x))))),  fc1 [hidden, dim], fc2 [out_dim, hidden], x [*batch, dim].

    Names in the state dict: fc1, fc2. Dropout draws in training only, and nothing where its probability is 0.

    Source: Attention Is All You Need (arXiv 1706.03762, section 3.3, with ReLU); ViT (arXiv 2010.11929, with GELU).

    Args:
        dim: channels of a token.
        hidden: channels between the two maps.
        activation: None is GELU.
        dropout: behind the activation.
        out_dropout: behind the second map.
        out_dim: channels behind it; None is dim.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
        out_dim: int | None = None,
    ) -> None:
        out_dim = dim if out_dim is None else out_dim
        if min(dim, hidden, out_dim) < 1:
            raise ValueError(
                f"a perceptron needs `dim` and `hidden` of at least 1; got dim={dim}, hidden={hidden}. "
                "Most have hidden = 4 dim."
            )
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = nn.GELU() if activation is None else activation
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, out_dim)
        self.drop2 = nn.Dropout(out_dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out_dim"]:
        return self.drop2(self.fc2(self.drop1(self.activation(self.fc1(x)))))
