"""A small perceptron beside frozen weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_tensor, check_types, description
from locant.nn.arguments import check_channels


class Adapter(nn.Module):
    """y = [x +] D_fc2(GELU(D_fc1(x))),  D_fc1 [hidden, dim], D_fc2 [dim, hidden], hidden = ⌊ratio · dim⌋.

    D_fc2 starts at zero: with the skip an adapter begins as the identity, without it as nothing, and a network that
    adapters were put into begins as the network that it was.

    Where it differs: the published class leaves the zeros to whoever builds the network.
    Source: AIM (arXiv 2302.03024, section 3.2, figure 2); taoyang1122/adapt-image-models `vit_clip.py`, `Adapter`.

    Args:
        dim: channels of a token.
        skip: whether x is added.
        ratio: hidden channels over dim, rounded down.

    Raises:
        ValueError: for a ratio that leaves no hidden channel.
    """

    @check_types
    def __init__(self, dim: int, *, skip: bool = False, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if hidden < 1:
            raise ValueError(
                f"Adapter needs a `ratio` that leaves a hidden channel; got {ratio} of dim={dim}. "
                f"Use {1 / max(dim, 1):.3g} or more; 0.25 is usual."
            )
        self.dim, self.skip = dim, skip
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        nn.init.zeros_(self.D_fc2.weight)
        nn.init.zeros_(self.D_fc2.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """What is added, or with the skip the sum."""
        check_tensor("Adapter", "x", x, "a tensor [..., dim]")
        if not x.is_floating_point():
            raise ValueError(
                f"Adapter needs `x` as floating numbers [..., dim]; got {description(x)}. Convert it first."
            )
        check_channels(x, self.dim)
        y = self.D_fc2(F.gelu(self.D_fc1(x)))
        return x + y if self.skip else y

    def extra_repr(self) -> str:
        return f"skip={self.skip}"
