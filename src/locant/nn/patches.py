"""From pictures and clips to tokens on a grid, and from a grid to one of half its sides."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_tensor, check_types
from locant.grid import AXES, Grid, check_grid
from locant.nn.arguments import check_tokens, token_grid
from locant.nn.linears import bare_weight

BORDERS = ("refuse", "pad", "cut")
CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PatchEmbedding(nn.Module):
    """token[p] = norm(Σ_{c, o} proj.weight[:, c, o] · x[c, patch · p + o] + proj.bias): one linear map of each patch.

    x [batch, channels, *size] with one to three axes (time, row, column); the tokens [batch, tokens, dim] are row-major
    and come with their `Grid`. proj.weight [dim, channels, *patch] is that of a convolution whose stride is its kernel.
    `border` says what happens where the patch does not divide the size:

        "refuse"    an error: Swin's classifier, ConViT, timm.
        "pad"       zeros fill the input at the end of each axis: Swin's detector, transformers, Video Swin.
        "cut"       what is left over is not seen: torchvision.

    Source: ViT (arXiv 2010.11929, eq. 1); Swin (arXiv 2103.14030, section 3.1).

    Args:
        dim: channels of a token.
        patch: its size, one per axis; ints are for sequences.
        channels: of the input.
        bias: of the linear map.
        norm: whether a LayerNorm follows, as in Swin.
        border: see above.
        norm_eps: of the norm.

    Raises:
        ValueError: for sizes below 1, more than three axes, an unknown border; at the call for an input of another
            number of axes or channels, or one that the patch does not divide under "refuse".
    """

    @check_types
    def __init__(
        self,
        dim: int,
        patch: int | tuple[int, ...],
        *,
        channels: int = 3,
        bias: bool = True,
        norm: bool = False,
        border: str = "refuse",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        patch = (patch,) if isinstance(patch, int) else tuple(patch)
        if len(patch) not in AXES or min(*patch, dim, channels) < 1:
            raise ValueError(
                "PatchEmbedding needs a `patch` of one to three sizes, and these, `dim` and `channels` at least 1; "
                f"got patch={patch}, dim={dim}, channels={channels}. Write PatchEmbedding(96, (4, 4))."
            )
        _check_border("PatchEmbedding", border)
        self.channels, self.patch, self.border = channels, patch, border
        self.proj = CONVOLUTIONS[len(patch) - 1](channels, dim, patch, stride=patch, bias=bias)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm else None

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        """The tokens, and where they are."""
        check_tensor("PatchEmbedding", "x", x, "a picture [batch, channels, height, width]")
        channels, axes = self.channels, ("time", "height", "width")[-len(self.patch) :]
        if x.ndim != 2 + len(self.patch) or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(
                f"PatchEmbedding needs an input [batch, {channels}, {', '.join(axes)}]; got {list(x.shape)}. "
                "Put the channels second, and a batch first."
            )
        check_tokens(x.detach().flatten(2).transpose(1, 2), channels, bare_weight(self.proj))
        x = self.proj(_bordered(x, 2, self.patch, self.border, "PatchEmbedding"))
        grid = Grid(*x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        return (x if self.norm is None else self.norm(x)), grid

    def extra_repr(self) -> str:
        return f"border={self.border!r}"


class PatchMerging(nn.Module):
    """y[r, c] = reduction(norm([x[2r, 2c] | x[2r+1, 2c] | x[2r, 2c+1] | x[2r+1, 2c+1]])): four tokens to one.

    x [batch, tokens, dim] on a grid whose last two axes are rows and columns; time stays as it is. The quadrants follow
    one another down the columns. norm is on 4 dim channels, or behind the reduction on out_dim with `norm_first=False`
    (Swin v2). reduction.weight [out_dim, 4 dim], without bias. `border` says what happens to odd sides: "pad" fills
    them with a zero at the end (transformers, timm, torchvision), "cut" drops the last one, "refuse" is an error
    (Swin's classifier).

    Source: Swin (arXiv 2103.14030, section 3.1); Swin v2 (arXiv 2111.09883, section 3.1); microsoft/Swin-Transformer
    `PatchMerging`.

    Args:
        dim: channels of a token.
        out_dim: channels of a merged token; None is 2 dim.
        norm_first: whether the norm comes before the reduction.
        border: see above.
        norm_eps: of the norm.

    Raises:
        ValueError: for an unknown border; at the call for a grid with a prefix or without rows and columns, and for
            odd sides under "refuse".
    """

    @check_types
    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        norm_first: bool = True,
        border: str = "pad",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_border("PatchMerging", border)
        out_dim = 2 * dim if out_dim is None else out_dim
        self.dim, self.norm_first, self.border = dim, norm_first, border
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim if norm_first else out_dim, eps=norm_eps)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> tuple[Float[Tensor, "batch merged out_dim"], Grid]:
        """The merged tokens and their grid."""
        x, merged = self.quadrants(x, grid)
        return (self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))), merged

    def quadrants(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> tuple[Float[Tensor, "batch merged four_dim"], Grid]:
        """Four tokens side by side, as `reduction` and its norm read them, and their grid."""
        check_grid("PatchMerging", "grid", grid)
        if grid.prefix or grid.axes < 2:
            raise ValueError(
                f"PatchMerging needs a grid with rows and columns and without a prefix; got {grid}. "
                "Take prefix tokens off before, and put them back after."
            )
        check_tokens(x, self.dim, bare_weight(self.reduction))
        token_grid(x, grid)
        cells = _bordered(x.unflatten(1, grid.shape), grid.axes - 1, (2, 2), self.border, "PatchMerging")
        parts = [cells[..., row::2, column::2, :] for column, row in itertools.product(range(2), repeat=2)]
        x = torch.cat(parts, dim=-1)
        return x.flatten(1, -2), Grid(*x.shape[1:-1])

    def extra_repr(self) -> str:
        return f"border={self.border!r}" + ("" if self.norm_first else ", norm_first=False")


def _check_border(module: str, border: str) -> None:
    if border not in BORDERS:
        raise ValueError(
            f"{module} needs a `border` out of {', '.join(map(repr, BORDERS))}; got {border!r}. "
            "It says what happens where sizes do not divide; name one."
        )


def _bordered(
    x: Float[Tensor, "batch ..."], first: int, patch: tuple[int, ...], border: str, module: str
) -> Float[Tensor, "batch ..."]:
    """x with sides that `patch` divides, from axis `first` on, by the rule `border`."""
    sides = tuple(x.shape[first : first + len(patch)])
    beyond = [side % size for side, size in zip(sides, patch, strict=True)]
    if not any(beyond):
        return x
    gone = any(side < size for side, size in zip(sides, patch, strict=True))
    if border == "refuse" or (border == "cut" and gone):
        near = tuple(-(-side // size) * size for side, size in zip(sides, patch, strict=True))
        raise ValueError(
            f"{module} needs sides that {patch} divides; got {sides}, under border={border!r}. "
            f'Resize to {near}, or let zeros fill them up: border="pad".'
        )
    if border == "cut":
        for axis, (side, left) in enumerate(zip(sides, beyond, strict=True), start=first):
            x = x.narrow(axis, 0, side - left)
        return x
    ends = [0, 0] * (x.ndim - first - len(patch))
    for side, size in zip(reversed(sides), reversed(patch), strict=True):  # F.pad names the last axis first
        ends += [0, -side % size]
    return F.pad(x, ends)
