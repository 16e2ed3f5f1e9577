"""DETR behind its backbone: a feature map and its padding to a set of boxes with classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Padding
from locant.models.detr_layers import Transformer
from locant.nn.arguments import add_embedding, check_tokens
from locant.nn.linears import bare_weight
from locant.positions.learned_axes import LearnedAxial
from locant.positions.masked_sine import MaskedSine
from locant.positions.position import Embedding

POSITIONS: dict[str, Callable[[int], Embedding]] = {
    "sine": lambda dim: MaskedSine(dim),
    "learned": lambda dim: LearnedAxial(Grid(50, 50), dim),
}


class Boxes(nn.Module):
    """box = sigmoid(three linear layers, ReLU between): centre x, centre y, width, height as shares of the picture."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 4"]:
        """A box per vector."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).sigmoid()


class DETR(nn.Module):
    """logits = class_embed(h),  boxes = bbox_embed(h),  h = transformer(input_proj(features) + positions, queries).

    features [batch, channels, height, width] of any backbone (timm's with `features_only=True`, torchvision's); their
    cells are tokens on `Grid(height, width)`. The vectors of `position` are made once per call and added to queries
    and keys in every layer, in the decoder to the keys of its look at the picture; `query_embed` is the position of
    the object queries. Values never carry either.

    Where it differs: the backbone is not part of the model, so a published checkpoint's `backbone.0` has no
    counterpart here. A mask is `Padding`, named by its sense. A picture that is padding alone gives finite numbers.
    Source: DETR (arXiv 2005.12872); facebookresearch/detr `models/detr.py`.

    Args:
        transformer: encoder and decoder.
        position: where cells are: `MaskedSine`, `LearnedAxial`, or another embedding of the transformer's dim.
        channels: of the feature map; 2048 from a ResNet-50.
        num_classes: real ones; one more logit means "no object".
        num_queries: how many boxes are proposed.
        aux_loss: whether the boxes after every earlier decoder layer are given too, as published for training.

    Raises:
        ValueError: for a size below 1.
    """

    @check_types
    def __init__(
        self,
        transformer: Transformer,
        position: Embedding,
        *,
        channels: int = 2048,
        num_classes: int = 91,
        num_queries: int = 100,
        aux_loss: bool = True,
    ) -> None:
        super().__init__()
        if min(channels, num_classes, num_queries) < 1:
            raise ValueError(
                "DETR needs `channels`, `num_classes` and `num_queries` of at least 1; got "
                f"channels={channels}, num_classes={num_classes}, num_queries={num_queries}. "
                "For COCO they are 2048, 91 and 100."
            )
        self.channels, self.num_queries, self.aux_loss = channels, num_queries, aux_loss
        self.input_proj = nn.Conv2d(channels, transformer.dim, 1)
        self.position = position
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, transformer.dim)
        self.class_embed = nn.Linear(transformer.dim, num_classes + 1)
        self.bbox_embed = Boxes(transformer.dim)

    def forward(
        self, features: Float[Tensor, "batch channels height width"], mask: Padding | None = None
    ) -> dict[str, Any]:
        """Boxes with classes.

        Args:
            features: what the backbone gives.
            mask: which cells of the feature map, or which pixels of the picture, are real. None is all of them.

        Returns:
            `pred_logits` [batch, queries, num_classes + 1] and `pred_boxes` [batch, queries, 4]; with `aux_loss` also
            `aux_outputs`, a list with the same two of each earlier decoder layer.

        Raises:
            ValueError: if the features do not fit the weights, the mask does not fit the features, or `position` has
                no vector for a cell.
        """
        states, _ = self.states(features, mask)
        logits, boxes = self.class_embed(states), self.bbox_embed(states)
        found = [{"pred_logits": one, "pred_boxes": where} for one, where in zip(logits, boxes, strict=True)]
        return {**found[-1], "aux_outputs": found[:-1]} if self.aux_loss else found[-1]

    def states(
        self, features: Float[Tensor, "batch channels height width"], mask: Padding | None = None
    ) -> tuple[Float[Tensor, "layers batch queries dim"], Float[Tensor, "batch tokens dim"]]:
        """The decoder's states that the heads read, one per layer, and the encoder's memory."""
        grid = self._grid(features)
        tokens = self.input_proj(features).flatten(2).transpose(1, 2)
        mask = None if mask is None else on_cells(mask, features)
        # added to zeros for the checks and the dtype that come with it
        rows = add_embedding(torch.zeros_like(tokens), self.position, grid, mask)
        queries = self.query_embed(torch.arange(self.num_queries, device=features.device))
        return self.transformer(tokens, queries, rows, mask)

    def _grid(self, features: Tensor) -> Grid:
        channels = self.channels
        if features.ndim != 4 or features.shape[1] != channels:
            raise ValueError(
                f"DETR needs `features` [batch, {channels}, height, width]; got {list(features.shape)}. "
                "Give the backbone's last feature map, and build the model with its channels=."
            )
        cells = features.detach().flatten(2).transpose(1, 2)
        check_tokens(cells, channels, bare_weight(self.input_proj), "features")
        return Grid(*features.shape[2:])


def on_cells(mask: Padding, features: Float[Tensor, "batch channels height width"]) -> Padding:
    """Which cells of a feature map are real, `[batch, tokens]`, by the nearest pixel up and left of each.

        valid[r, c] = pixel[⌊r · pixel rows / height⌋, ⌊c · pixel columns / width⌋]

    Args:
        mask: over the pixels `[batch, pixel rows, pixel columns]`, or over the cells already.
        features: the map.

    Raises:
        ValueError: if it is no Padding, or does not fit the features.
    """
    if not isinstance(mask, Padding):
        raise ValueError(
            f"DETR needs a `mask` that says its sense, a Padding; got {type(mask).__name__}. "
            "Write Padding.from_key_padding_mask(mask) where True = padding (DETR's own), "
            "or Padding.from_attention_mask(mask) where 1 = real (transformers' pixel_mask)."
        )
    batch, cells, valid = features.shape[0], Grid(*features.shape[2:]), mask.valid
    pixels = tuple(valid.shape[1:])
    small = len(pixels) == 2 and any(have < need for have, need in zip(pixels, cells.shape, strict=True))
    if small or valid.shape[0] not in (1, batch) or valid.device != features.device:
        raise ValueError(
            f"DETR on features of {batch} × {cells.shape[0]} × {cells.shape[1]} on {features.device} needs a `mask` "
            f"[batch, rows, columns] of those cells or of more pixels; got {list(valid.shape)} on {valid.device}. "
            "Give the mask of the pictures that the features are of."
        )
    if len(pixels) == 2 and pixels != cells.shape:
        valid = F.interpolate(valid[:, None].float(), size=cells.shape)[:, 0].bool()
    return Padding(valid).bound(cells, cells)


@check_types
def detr(
    *,
    channels: int = 2048,
    num_classes: int = 91,
    dim: int = 256,
    heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    hidden: int = 2048,
    num_queries: int = 100,
    dropout: float = 0.1,
    pre_norm: bool = False,
    position: str = "sine",
    aux_loss: bool = True,
) -> DETR:
    """DETR behind a ResNet-50 (or ResNet-101): `detr_resnet50` without its backbone.

    Args:
        position: "sine" or "learned" (50 × 50 cells; `model.position.resized(grid)` for more).
        channels, num_classes, num_queries, aux_loss: as `DETR` takes them.
        dim, heads, encoder_layers, decoder_layers, hidden, dropout, pre_norm: as `Transformer` takes them.

    Raises:
        ValueError: for an unknown position, and what the parts refuse.
    """
    if position not in POSITIONS:
        raise ValueError(
            f"detr needs a `position` out of {', '.join(map(repr, POSITIONS))}; got {position!r}. "
            "For another embedding build DETR(Transformer(...), embedding)."
        )
    transformer = Transformer(
        dim, heads, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
        hidden=hidden, dropout=dropout, pre_norm=pre_norm,
    )  # fmt: skip
    return DETR(
        transformer, POSITIONS[position](dim), channels=channels, num_classes=num_classes, num_queries=num_queries,
        aux_loss=aux_loss,
    )  # fmt: skip
