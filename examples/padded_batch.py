"""Two images of different sizes in one padded batch, with DETR's sine: each is encoded as if it were alone.

The same `Padding` says which keys are real and what the encoding counts.
"""

from __future__ import annotations

import torch

from locant import Grid, MaskedSine, Padding
from locant.nn import Attention

DIM, HEADS = 32, 4
SIZES = ((5, 7), (6, 4))


def main() -> None:
    torch.manual_seed(0)
    attend = Attention(DIM, HEADS, position=MaskedSine(DIM))  # added to queries and keys, never to values
    images = [torch.randn(1, rows, columns, DIM) for rows, columns in SIZES]
    rows, columns = (max(size) for size in zip(*SIZES, strict=True))

    batch = torch.zeros(len(SIZES), rows, columns, DIM)
    ignore = torch.ones(len(SIZES), rows, columns, dtype=torch.bool)  # DETR's sense: True = padding
    for one, image, (height, width) in zip(range(len(SIZES)), images, SIZES, strict=True):
        batch[one, :height, :width] = image[0]
        ignore[one, :height, :width] = False

    padding = Padding.from_key_padding_mask(ignore)
    together = attend(batch.flatten(1, 2), grid=Grid(rows, columns), mask=padding).unflatten(1, (rows, columns))
    for one, image, (height, width) in zip(range(len(SIZES)), images, SIZES, strict=True):
        alone = attend(image.flatten(1, 2), grid=Grid(height, width)).unflatten(1, (height, width))
        apart = float((together[one, :height, :width] - alone[0]).abs().max().detach())
        print(f"{height} × {width} in a batch of {rows} × {columns}: differs from the image alone by {apart:.1e}")
        assert apart < 1e-5

    unmasked = attend(batch.flatten(1, 2), grid=Grid(rows, columns)).unflatten(1, (rows, columns))
    assert float((unmasked - together)[1].abs().max().detach()) > 1e-3  # without the mask, padding takes part


if __name__ == "__main__":
    main()
