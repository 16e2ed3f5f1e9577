"""The layers of Transformer-XL: attention that has a memory in front of its keys, and a perceptron."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention
from locant.call import Positions
from locant.masks import Mask
from locant.nn.arguments import check_probabilities, check_tokens, position_module, split_embedding, token_grid
from locant.nn.heads import merge_heads, split_heads, split_parts
from locant.nn.linears import bare_weight, project_rows
from locant.nn.perceptron import Perceptron


class MemoryAttention(nn.Module):
    """y = proj(softmax(s · q kᵀ + position) v),  q = W_q x,  [k | v] = W_kv [memory; x],  s = head_dim ** -0.5.

    x [batch, tokens, dim]; memory [batch, earlier, dim], which lies in front and asks nothing; qkv.weight
    [3 · heads · head_dim, dim], its rows laid out [q | k | v]; no biases. Keys lie on `Grid(earlier + tokens)`, queries
    on the end of it.

    Source: arXiv 1901.02860, section 3.2.

    Args:
        dim: channels of a token.
        heads: how many attend side by side.
        head_dim: channels of a head; heads · head_dim may differ from dim.
        position: a scheme for sequences, several, or None.
        dropout: on the weights, in training only.
        proj_dropout: on the output, in training only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        position: Positions = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_probabilities("MemoryAttention", dropout=dropout, proj_dropout=proj_dropout)
        self.dim, self.heads, self.head_dim = dim, heads, head_dim
        self.dropout, self.proj_dropout = dropout, proj_dropout
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.position = position_module("MemoryAttention", position)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        memory: Float[Tensor, "batch earlier dim"] | None = None,
        *,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to the memory and to each other, as far as `mask` allows."""
        whole = x if memory is None else torch.cat([memory, x], dim=1)
        check_tokens(whole, self.dim, bare_weight(self.qkv))
        keys = token_grid(whole, None)
        width = self.heads * self.head_dim
        q = split_heads(project_rows(self.qkv, x, slice(width)), self.heads)
        k, v = split_parts(project_rows(self.qkv, whole, slice(width, None)), 2, self.heads)
        _, rest = split_embedding(None, self.position)
        out = attention(
            q, k, v,
            grid=keys[keys.tokens - x.shape[1] :], key_grid=keys, position=rest, mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return F.dropout(self.proj(merge_heads(out)), self.proj_dropout, self.training)


class DecoderLayer(nn.Module):
    """y = norm1(x + attention(x, memory)),  z = norm2(y + mlp(y)),  mlp = fc2 ∘ ReLU ∘ fc1; or norms in front.

    With `pre_norm`, y = x + attention(norm1(x), norm1(memory)), z = y + mlp(norm2(y)).

    Where it differs: the published attention for absolute positions, with norms in front, normalises keys and values
    and forgets the queries; here all three are.
    """

    def __init__(
        self, attention: MemoryAttention, hidden: int, *, pre_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_probabilities("DecoderLayer", dropout=dropout)
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(attention.dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(attention.dim)
        self.mlp = Perceptron(attention.dim, hidden, activation=nn.ReLU(), dropout=dropout, out_dropout=dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        memory: Float[Tensor, "batch earlier dim"] | None = None,
        *,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Both branches."""
        if not self.pre_norm:
            x = self.norm1(x + self.attention(x, memory, mask=mask))
            return self.norm2(x + self.mlp(x))
        memory = None if memory is None else self.norm1(memory)
        x = x + self.attention(self.norm1(x), memory, mask=mask)
        return x + self.mlp(self.norm2(x))
