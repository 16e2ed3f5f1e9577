"""Swin: a pyramid of windows, from a picture to classes or to one feature map per stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from locant.checks import check_types
from locant.grid import Grid
from locant.models.placement import Wanted
from locant.models.pyramid import PUBLISHED, Pyramid
from locant.models.rules import SWIN, Rules
from locant.models.vision import Size
from locant.nn.block import Block
from locant.nn.patches import PatchMerging
from locant.nn.window import WindowAttention
from locant.positions.position import Position
from locant.positions.table import RelativeTable


class Sizes(NamedTuple):
    """What tells the published models of one family apart, Swin's and Swin v2's alike."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float


SIZES = {
    "tiny": Sizes(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "small": Sizes(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "base": Sizes(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "large": Sizes(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2),
}


class Swin(Pyramid):
    """logits = head(mean(norm(x_S))),  x_s = blocks_s(merging_s(x_{s-1})),  x_0 = blocks_0(patch_embed(picture)).

    Pictures [batch, channels, height, width] of any size. Stage s = 0, ..., S works on tokens
    [batch, rows · columns, dim · 2**s] of a grid that is read off the picture: ⌈height / patch / 2**s⌉ rows.
    Its blocks are `Block(attention=WindowAttention)`, every second one shifted by window // 2; block b of all of them
    is dropped with probability drop_path_rate · b / (blocks - 1). Odd sides are filled with a zero row before merging.

    A table reaches as far as its window does on pictures of `img_size`: the window, or less in a stage whose map is
    smaller (rule `small`). The model runs on other sizes, larger and smaller, as long as no table is asked for more;
    `resized` gives a model for larger windows, or for larger pictures where a window had shrunk.

    Names in the state dict are those of the original repository, `attn` being `attention` and its table
    `attention.position.table`; a merging belongs to the stage before it.

    Where it differs: the original classifier fails on maps that windows do not divide; the published rules for them
    are there by library (`like`) and by name (`border`, `small`), and the default cuts smaller windows at the border.
    transformers has no drop path on the perceptron, starts its tables at zero, fails on maps smaller than a window, and
    keeps what one small map made of its windows and shifts for all later calls. With a norm per stage the last one
    takes the place of `norm`.
    Source: Swin (arXiv 2103.14030, sections 3.1 to 3.3); microsoft/Swin-Transformer `swin_transformer.py`.

    Args:
        dim: channels of a token in the first stage; each merging doubles them.
        depths: blocks per stage.
        heads: per stage.
        window: cells per side, or (rows, columns).
        img_size: pixels per side, or (height, width), that the tables are made for; None makes all as wide as windows.
        patch: pixels per side of a token.
        in_chans: channels of a picture.
        num_classes: of the head; 0 is no head, and `forward` gives the mean.
        mlp_ratio: as `Block` takes it.
        drop_path_rate, proj_drop_rate, attn_drop_rate: in training only; the second one behind every projection and
            perceptron layer, the third one on the weights of attention. A drop_path_rate of None is that of `like`, or
            0.1.
        position: "published" is the table; else as `placement` says it: a word, a function of (grid, dim, heads), or
            None, for all stages or in a tuple, one for each. In a stage's windows grid is the reach of its tables; what
            embeds is added to the tokens that the stage begins with, on their map for pictures of `img_size`.
        like: whose rules hold where none is named below: "timm", "torchvision", "transformers", "official",
            "detection" (the original detector), "mmdet", "simmim" (`rules.SWIN`). None is "cells", "joint", "pad".
        border, small, kernel: as `WindowAttention` takes them.
        patch_border: as `PatchEmbedding` takes it.
        fixed: whether windows and shifts are chosen once, by the maps of `img_size`, as timm does; None is that of
            `like`, or no.
        absolute: whether a learned vector per place of pictures of `img_size` is added to the tokens (`ape` in
            published code); on other pictures they are interpolated, as in the original detector.
        stage_norms: which stages have a norm of their own, as detectors have them; True is all of them.

    Raises:
        ValueError: for sizes below 1, depths and heads of different lengths, an unknown library, and what the parts
            refuse; at the call for pictures of another shape, and where a table does not reach.
    """

    LIBRARIES: ClassVar[Mapping[str, Rules]] = SWIN

    def resized(self, *, img_size: Size | None = None, window: Size | None = None, method: str = "linear") -> Swin:
        """A copy for other pictures or windows: its tables interpolated (`locant.resizing`), the rest as it is.

        Args:
            img_size: that the tables are made for; None keeps it.
            window: None keeps it.
            method: of the tables, and of vectors per place ("geometric" tables come with "antialiased" vectors).
        """
        rows = "antialiased" if method == "geometric" else method
        found: Swin = self._resized(
            img_size, window, lambda old, reach: old.resized(reach, method=method), rows, method
        )
        return found

    def _attention(self, *args: Any, **options: Any) -> WindowAttention:
        return WindowAttention(*args, **options)

    def _block(self, dim: int, heads: int, **options: Any) -> Block:
        return Block(dim, heads, **options)

    def _merging(self, dim: int) -> PatchMerging:
        return PatchMerging(dim)

    def _position(self, reach: Grid, heads: int) -> Position:
        return RelativeTable(reach, heads)

    def _cut_position(self, position: RelativeTable, reach: Grid) -> Position:
        return position.resized(reach, method="clip")


def sized(size: str, libraries: Mapping[str, Rules], given: dict[str, Any]) -> dict[str, Any]:
    """A published model's sizes beside what its builder was given, and its drop path where nobody has another."""
    sizes = SIZES[size]
    library = libraries.get(given["like"], Rules())
    rates = (given["drop_path_rate"], library.drop_path, sizes.drop_path)
    rate = next(rate for rate in rates if rate is not None)
    return {**given, "dim": sizes.dim, "depths": sizes.depths, "heads": sizes.heads, "drop_path_rate": rate}


@check_types
def swin_tiny(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> Swin:
    """Swin-T: 28 million parameters, drop path 0.2 unless `like` has another. Arguments as `Swin`."""
    return Swin(**sized("tiny", Swin.LIBRARIES, locals()))


@check_types
def swin_small(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> Swin:
    """Swin-S: 50 million parameters, drop path 0.3 unless `like` has another. Arguments as `Swin`."""
    return Swin(**sized("small", Swin.LIBRARIES, locals()))


@check_types
def swin_base(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> Swin:
    """Swin-B: 88 million parameters, drop path 0.5 unless `like` has another. Arguments as `Swin`."""
    return Swin(**sized("base", Swin.LIBRARIES, locals()))


@check_types
def swin_large(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> Swin:
    """Swin-L: 197 million parameters, drop path 0.2 unless `like` has another. Arguments as `Swin`."""
    return Swin(**sized("large", Swin.LIBRARIES, locals()))
