"""Attention along one axis, its position a bias per offset, with projections or without any."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention
from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Mask, check_mask
from locant.nn.arguments import check_heads, check_probabilities, check_tokens, token_grid
from locant.nn.heads import merge_heads, split_heads, split_parts
from locant.nn.linears import bare_weight
from locant.positions.table import RelativeTable


class RelativeAttention(nn.Module):
    """y_i = proj(Σ_j softmax_j(s · q_i·k_j + table[i - j + T - 1]) v_j),  [q | k | v] = qkv(x),  s = head_dim ** -0.5.

    x [batch, tokens, dim], T the `tokens` it is built for; position.table [heads, 2T-1]. With `with_qkv=False` there
    is no projection at all: q, k and v are x, cut into heads, y is what comes out of the softmax, and the table's
    (2T-1) · heads numbers are all that is learned.

    Where it differs: the published module fails on any other number of tokens; here fewer read the centre of the
    table, so that a clip cut short gets the weights of the whole one. It takes masks (padding, order), of which none
    are published. A forbidden pair or a row that sees nothing has weight 0. The published one multiplies by s after
    the product, which overflows in float16 where the product does.
    Source: AIM (arXiv 2302.03024), taoyang1122/adapt-image-models `swin2d_adapter.py`, `Attention`, which no published
    model uses.

    Args:
        dim: channels of a token; `heads` divides it.
        tokens: T, the most tokens that the table serves.
        heads: how many attend side by side.
        qkv_bias: whether the first projection has a bias.
        scale: s, if another one is wanted; 0.0 is a scale.
        dropout: on the weights, in training only.
        proj_dropout: on the output, in training only.
        with_qkv: whether there are projections.

    Raises:
        ValueError: for sizes that do not divide, probabilities out of range, and projections asked for and not built;
            at the call for more than T tokens.
    """

    @check_types
    def __init__(
        self,
        dim: int,
        tokens: int,
        heads: int = 8,
        *,
        qkv_bias: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        with_qkv: bool = True,
    ) -> None:
        super().__init__()
        check_heads("RelativeAttention", dim, heads)
        check_probabilities("RelativeAttention", dropout=dropout, proj_dropout=proj_dropout)
        if not with_qkv and (qkv_bias or proj_dropout):
            raise ValueError(
                "RelativeAttention with with_qkv=False has neither a qkv_bias nor a proj_dropout, for it has no "
                f"projection; got qkv_bias={qkv_bias}, proj_dropout={proj_dropout}. Leave both out."
            )
        self.dim, self.heads, self.scale, self.dropout, self.proj_dropout = dim, heads, scale, dropout, proj_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias) if with_qkv else None
        self.proj = nn.Linear(dim, dim) if with_qkv else None
        self.position = RelativeTable(Grid(tokens), heads)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Mask | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend along the sequence.

        Raises:
            ValueError: for another shape, and more tokens than the table serves.
        """
        check_mask("RelativeAttention", "mask", mask)
        check_tokens(x, self.dim, self.position.table if self.qkv is None else bare_weight(self.qkv))
        grid = token_grid(x, None)
        heads = (split_heads(x, self.heads),) * 3 if self.qkv is None else split_parts(self.qkv(x), 3, self.heads)
        out = attention(
            *heads, grid=grid, position=self.position, mask=mask, scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        out = merge_heads(out)
        return out if self.proj is None else F.dropout(self.proj(out), self.proj_dropout, self.training)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, with_qkv={self.qkv is not None}"
