"""Transformer-XL's relative attention: the query meets a sinusoid of the distance, and so do two learned vectors."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.caching import remember
from locant.checks import check_number, check_types, check_whole
from locant.dispatch import is_transformed, is_unwatched
from locant.forms import AxialValues, AxialVectors
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Content

KEPT = 2**22  # numbers of R; one that is larger costs little beside its attention, and is made anew


@final
class TransformerXL(Content):
    """logit[h, i, j] = s · [(q_i + u_h) · k_j + (q_i + v_h) · W_r R(i - j)_h],  s the attention's scale.

    u, v [heads, head_dim]; W_r (`r_net`) [heads · head_dim, dim]; R(δ) [dim] = sin(δ f_0) .. sin(δ f_n-1),
    cos(δ f_0) .. cos(δ f_n-1), f_m = 10000^(-2m / dim), n = dim / 2. The scale multiplies the position's term, too.
    δ is query - key: positive back in time, as published. Under `Causal` with memory, give the keys a grid that holds
    the memory, and the queries its last part: `whole = Grid(memory + tokens)`, `grid=whole[memory:]`,
    `key_grid=whole`. Prefix tokens have no distance: of all this they get u alone.

    Where it differs: the published code reads distances by shifting rows of a padded matrix, which leaves numbers of
    other rows where a key comes after its query. Here each pair reads its own distance, negative ones included, so it
    holds without a causal mask as well. In training, R's dropout is drawn per layer, not once for all of them. R is
    computed in float64 and rounded once, and is the same for all layers: the last ones are remembered, outside of
    modules (there is no `inv_freq` in the state dict).

    Libraries that lay R out as sin, cos, sin, cos (wav2vec 2.0's Conformer) have the columns of W_r in that order:
    `w.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)` is ours.
    Source: arXiv 1901.02860, section 3.3; kimiyoung/transformer-xl `mem_transformer.py`.

    Args:
        dim: channels of R, even; in the paper those of a token.
        heads: how many heads; each has a part of W_r, of u and of v.
        head_dim: channels of a head; None is dim / heads. In the paper heads · head_dim may differ from dim.
        clamp: distances beyond are taken for this one (`clamp_len`); None is no limit.
        shared: another scheme whose u and v this one uses, too. The published models share them between all layers.
        dropout: on R, in training only.
        init_std: of the normal that u, v and W_r start from.

    Raises:
        ValueError: for an odd dim, sizes that do not divide, a clamp below 0, or u and v of other sizes.
    """

    u: nn.Parameter | None
    v: nn.Parameter | None

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        *,
        clamp: int | None = None,
        shared: TransformerXL | None = None,
        dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2 or heads < 1 or (head_dim is None and dim % heads):
            raise ValueError(
                "TransformerXL needs an even `dim` (sines and cosines), and `heads` that divide it unless head_dim is "
                f"given; got dim={dim}, heads={heads}. Change one of them, or give head_dim."
            )
        if clamp is not None and clamp < 0:
            raise ValueError(
                f"TransformerXL needs a `clamp` of at least 0, or None for no limit; got {clamp}. "
                "Published scripts write -1 for None."
            )
        if head_dim is not None:
            check_whole("TransformerXL", "head_dim", head_dim)
        check_number("TransformerXL", "dropout", dropout, least=0.0, below=1.0)
        check_number("TransformerXL", "init_std", init_std, least=0.0)
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads if head_dim is None else head_dim
        self.clamp, self.dropout = clamp, dropout
        if shared is not None and (shared.heads, shared.head_dim) != (self.heads, self.head_dim):
            raise ValueError(
                f"u and v can be shared between schemes of equal heads and head_dim; got {self.heads} × "
                f"{self.head_dim} here and {shared.heads} × {shared.head_dim} in `shared`. Make them equal."
            )
        self._shared = () if shared is None else (shared,)  # in a tuple: it is registered where it belongs
        for name in ("u", "v"):
            own = nn.Parameter(torch.empty(heads, self.head_dim)) if shared is None else None
            self.register_parameter(name, own)
        self.r_net = nn.Linear(dim, heads * self.head_dim, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std)

    def biases(self) -> tuple[Float[Tensor, "heads head_dim"], Float[Tensor, "heads head_dim"]]:
        """u and v, its own or those of the scheme that shares them."""
        u, v = self._shared[0].biases() if self._shared else (self.u, self.v)
        assert u is not None, "a scheme has u and v, or shares them"
        assert v is not None
        return u, v

    def distances(self, furthest: int, lowest: int | None = None) -> Float[Tensor, "offsets dim"]:
        """R(lowest) .. R(furthest), in the dtype of u; from -furthest, unless told otherwise."""
        u, _ = self.biases()
        return _sinusoids(-furthest if lowest is None else lowest, furthest, self.dim, u.dtype, u.device)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        if grid.axes != 1:
            raise ValueError(
                f"TransformerXL knows distances in a sequence, a grid of one axis; got {grid}. "
                "On images and clips use Decomposed or RelativeTable."
            )

    def ranges(self, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """All, or those that the clamp leaves."""
        near = reach[0] if self.clamp is None else min(reach[0], self.clamp)
        return ((-near, near),)

    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        ((low, high),) = form.ranges
        u = self.biases()[0]
        kept = (high - low + 1) * self.dim <= KEPT and is_unwatched((u,)) and not is_transformed()
        rows = (_recall_sinusoids if kept else _sinusoids)(low, high, self.dim, u.dtype, u.device)
        rows = F.dropout(rows, self.dropout, self.training)
        told = self.r_net(rows).unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)
        return AxialValues(q + self.biases()[1][:, None].to(q.dtype), (told,), form.ranges, factor=scale)

    def queries(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """q + u."""
        return q + self.biases()[0][:, None].to(q.dtype)

    def extra_repr(self) -> str:
        said = {"clamp": self.clamp, "dropout": self.dropout or None}
        parts = [f"{name}={value}" for name, value in said.items() if value is not None]
        return ", ".join([f"{self.dim}, {self.heads}, {self.head_dim}", *parts, *["shared"] * len(self._shared)])


def _sinusoids(low: int, high: int, dim: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "offsets dim"]:
    steps = torch.arange(low, high + 1, dtype=torch.float64, device=device)
    halves = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
    angles = steps[:, None] * 10000.0 ** (-halves / dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


@remember(4)
def _recall_sinusoids(
    low: int, high: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "offsets dim"]:
    """R of plain tensors, for readers that leave it as it is. Made so that calls with gradients can use it, too."""
    with torch.inference_mode(False):
        return _sinusoids(low, high, dim, dtype, device)
