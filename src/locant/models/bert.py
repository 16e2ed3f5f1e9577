"""BERT's input: word, kind of segment and position, each a learned vector, summed and normalised."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_types
from locant.grid import Grid
from locant.models.folders import InFolders
from locant.models.tokens import check_ids
from locant.nn.arguments import check_probabilities
from locant.positions.learned import Learned


class BertEmbeddings(InFolders, nn.Module):
    """x = dropout(norm(word_embeddings[ids] + token_type_embeddings[types] + position[places])).

    ids, types and places [batch, tokens] → x [batch, tokens, dim]. Places are 0, 1, 2, ... unless they are given; of a
    batch padded on the left, valid [batch, tokens], they are `(valid.cumsum(1) - 1).clamp(min=0)`. For longer text than
    there are rows, put `position.resized(Grid(1024))` in the place of `position`.

    BERT's self-attention is `locant.nn.MultiHeadAttention(dim, heads)` with `Padding.from_attention_mask` (1 = keep).

    Where it differs: d2l-zh adds the positions as data, so that they are never trained; here they are. d2l's start at
    N(0, 1), these at 0.02. Beyond the last row BERT fails in an assertion and transformers in an index; here the error
    names `resized`.
    Source: BERT (arXiv 1810.04805, section 3.1); google-research/bert `modeling.py`, `embedding_postprocessor`.

    Args:
        vocabulary: how many words there are.
        dim: channels of a token.
        tokens: how many positions have rows.
        types: how many kinds of segment there are. The released models have 2; the published default is 16.
        norm_eps: of the norm.
        dropout: on the result, in training only.

    Raises:
        ValueError: for a size below 1, or a dropout out of range.
    """

    @check_types
    def __init__(
        self,
        vocabulary: int,
        dim: int = 768,
        *,
        tokens: int = 512,
        types: int = 2,
        norm_eps: float = 1e-12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_probabilities("BertEmbeddings", dropout=dropout)
        if min(vocabulary, dim, tokens, types) < 1:
            raise ValueError(
                "BertEmbeddings needs a vocabulary, `dim`, `tokens` and `types` of at least 1; got "
                f"{vocabulary}, {dim}, {tokens} and {types}. BERT has 30522, 768, 512 and 2."
            )
        self.word_embeddings, self.token_type_embeddings = nn.Embedding(vocabulary, dim), nn.Embedding(types, dim)
        for embedding in (self.word_embeddings, self.token_type_embeddings):
            nn.init.trunc_normal_(embedding.weight, std=0.02)
        self.position = Learned(Grid(tokens), dim)
        self.norm, self.dropout = nn.LayerNorm(dim, eps=norm_eps), dropout

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        *,
        types: Int[Tensor, "batch tokens"] | None = None,
        places: Int[Tensor, "batch tokens"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embed.

        Args:
            ids: of the words.
            types: which kind of segment a token is of; None is 0 for all.
            places: which row of the positions a token reads, where that differs by sample.
            grid: where the tokens are, if not at 0, 1, 2, ...: a slice of a line behind others.

        Raises:
            ValueError: for ids that are not whole numbers [batch, tokens], and places without a row.
        """
        check_ids("BertEmbeddings", "ids", ids)
        types = torch.zeros_like(ids) if types is None else types
        check_ids("BertEmbeddings", "types", types)
        if places is None:
            rows = self.position(Grid(ids.shape[1]) if grid is None else grid)
        else:
            self._check_places(places, grid)
            rows = F.embedding(places, self.position())
        x = self.word_embeddings(ids) + self.token_type_embeddings(types) + rows
        return F.dropout(self.norm(x), self.dropout, self.training)

    def _check_places(self, places: Tensor, grid: Grid | None) -> None:
        check_ids("BertEmbeddings", "places", places)
        rows = len(self.position.table)
        if grid is not None:
            raise ValueError("BertEmbeddings needs `places` or `grid`; got both. Leave one out.")
        if not torch.compiler.is_compiling() and not bool(((places >= 0) & (places < rows)).all()):
            raise ValueError(
                f"BertEmbeddings has rows for places 0 to {rows - 1}; got some from {int(places.min())} to "
                f"{int(places.max())}. Use `position.resized(grid)` to carry the trained rows over to more."
            )
