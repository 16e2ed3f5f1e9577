"""A small DETR with everything drawn anew, and a padded batch of pictures for it."""

from __future__ import annotations

import torch
from redrawing import redraw
from torch import Tensor

from locant.models.detr import DETR, detr

SMALL = {"channels": 5, "num_classes": 3, "dim": 8, "heads": 2, "encoder_layers": 2, "decoder_layers": 3}
SMALL |= {"hidden": 12, "num_queries": 4, "dropout": 0.0}
SIZES = ((4, 5), (3, 5), (2, 3))  # of three pictures, padded to the first


def small(**options) -> DETR:
    return redraw(detr(**{**SMALL, **options})).double()


def padded(garbage: float = 0.0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Pictures, the same padded with `garbage` to one size, and which cells are real."""
    pictures = [torch.randn(5, *size, dtype=torch.float64) for size in SIZES]
    whole = torch.full((3, 5, *SIZES[0]), garbage, dtype=torch.float64)
    valid = torch.zeros(3, *SIZES[0], dtype=torch.bool)
    for i, picture in enumerate(pictures):
        rows, columns = picture.shape[1:]
        whole[i, :, :rows, :columns] = picture
        valid[i, :rows, :columns] = True
    return pictures, whole, valid
