"""Patches to tokens and four tokens to one, against loops; sizes that do not divide; what is refused."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from near import close
from torch import Tensor
from torch.nn import functional as F

from locant import Grid
from locant.nn.patches import PatchEmbedding, PatchMerging

square, merge = functools.partial(PatchEmbedding, 8, (4, 4)), functools.partial(PatchMerging, 8)


def embedded(module: PatchEmbedding, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Patch by patch; what lies beyond the input is zero."""
    weight, patch = module.proj.weight, module.patch
    counts = tuple(-(-n // p) for n, p in zip(x.shape[2:], patch, strict=True))
    out = torch.zeros(len(x), math.prod(counts), len(weight), dtype=x.dtype)
    for b, (n, place) in itertools.product(range(len(x)), enumerate(itertools.product(*map(range, counts)))):
        token = torch.zeros(len(weight), dtype=x.dtype) if module.proj.bias is None else module.proj.bias.clone()
        for offset in itertools.product(*map(range, patch)):
            at = tuple(c * p + o for c, p, o in zip(place, patch, offset, strict=True))
            if all(a < n for a, n in zip(at, x.shape[2:], strict=True)):
                for channel in range(x.shape[1]):
                    token = token + weight[(slice(None), channel, *offset)] * x[(b, channel, *at)]
        out[b, n] = token if module.norm is None else module.norm(token)
    return out, counts


@pytest.mark.parametrize(
    ("patch", "size", "norm", "bias"),
    [
        (3, (7,), False, True),
        ((2, 3), (4, 6), True, True),
        ((2, 3), (5, 7), True, False),
        ((2, 2, 3), (3, 4, 5), False, True),
        ((1, 2, 2), (2, 3, 4), False, False),
    ],
)
def test_a_token_is_a_linear_map_of_its_patch(
    patch: int | tuple[int, ...], size: tuple[int, ...], norm: bool, bias: bool
) -> None:
    module = PatchEmbedding(5, patch, channels=2, norm=norm, bias=bias, border="pad").double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    tokens, grid = module(x)
    golden, counts = embedded(module, x)
    assert grid == Grid(*counts)
    close(tokens, golden)


def test_what_a_patch_does_not_divide_is_filled_or_cut() -> None:
    x = torch.randn(1, 3, 9, 13, dtype=torch.float64)
    filled, cut = (PatchEmbedding(8, (4, 4), border=border).double() for border in ("pad", "cut"))
    cut.load_state_dict(filled.state_dict())
    close(filled(x)[0], filled(F.pad(x, (0, 3, 0, 3)))[0])
    close(cut(x)[0], filled(x[:, :, :8, :12])[0])
    assert (filled(x)[1], cut(x)[1]) == (Grid(3, 4), Grid(2, 3))


def merged(module: PatchMerging, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Down the columns of each square of four: (0, 0), (1, 0), (0, 1), (1, 1); zero beyond the map."""
    times, (rows, columns) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
    found = []
    for t, r, c in itertools.product(range(times), range(-(-rows // 2)), range(-(-columns // 2))):
        parts = []
        for row, column in ((2 * r, 2 * c), (2 * r + 1, 2 * c), (2 * r, 2 * c + 1), (2 * r + 1, 2 * c + 1)):
            inside = row < rows and column < columns
            parts.append(x[:, (t * rows + row) * columns + column] if inside else torch.zeros_like(x[:, 0]))
        joined = torch.cat(parts, dim=-1)
        if module.norm_first:
            found.append(module.norm(joined) @ module.reduction.weight.T)
        else:
            found.append(module.norm(joined @ module.reduction.weight.T))
    return torch.stack(found, dim=1)


@pytest.mark.row(13)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (1, 4), (2, 3, 4)])
def test_four_tokens_become_one(shape: tuple[int, ...], norm_first: bool) -> None:
    grid = Grid(*shape)
    module = PatchMerging(3, norm_first=norm_first, out_dim=5).double()
    torch.nn.init.normal_(module.norm.weight)
    x = torch.randn(2, grid.tokens, 3, dtype=torch.float64)
    found, smaller = module(x, grid)
    assert smaller == Grid(*shape[:-2], *(-(-n // 2) for n in shape[-2:]))
    close(found, merged(module, x, shape))


@pytest.mark.row(13)
def test_the_order_of_the_quadrants_by_hand() -> None:
    """Tokens 1 2 / 3 4 of one channel: [1 3 2 4], which the norm brings to -3 1 -1 3 over √5."""
    module = PatchMerging(1, out_dim=4).double()
    with torch.no_grad():
        module.reduction.weight.copy_(torch.eye(4))
    found, _ = module(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], dtype=torch.float64), Grid(2, 2))
    golden = torch.tensor([[[-3.0, 1.0, -1.0, 3.0]]], dtype=torch.float64) / 5**0.5
    close(found, golden, 1e-5)  # the norm's own eps


def test_odd_sides_by_the_rule_that_is_named() -> None:
    x = torch.randn(1, 15, 4, dtype=torch.float64)
    fills, cuts = (PatchMerging(4, border=border).double() for border in ("pad", "cut"))
    cuts.load_state_dict(fills.state_dict())
    found, grid = cuts(x, Grid(3, 5))
    assert grid == Grid(1, 2)
    whole = x.unflatten(1, (3, 5))[:, :2, :4].flatten(1, 2)
    close(found, fills(whole, Grid(2, 4))[0])
    close(found, fills(x, Grid(3, 5))[0].unflatten(1, (2, 3))[:, :1, :2].flatten(1, 2))


@pytest.mark.row(53)
def test_gradients() -> None:
    x = torch.randn(1, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    embed, merge = PatchEmbedding(2, (1, 1), channels=1, norm=True).double(), PatchMerging(2).double()
    leaves = [*embed.parameters(), *merge.parameters()]

    def both(x: Tensor, *_: Tensor) -> Tensor:
        return merge(*embed(x))[0]

    assert torch.autograd.gradcheck(both, (x, *leaves))


@pytest.mark.plain
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: PatchEmbedding(8, (4, 0)), r"sizes, and these.*at least 1; got patch=\(4, 0\).*Write PatchEmbedding"),
        (lambda: PatchEmbedding(8, (2, 2, 2, 2)), r"one to three sizes"),
        (lambda: square(border="crop"), r"`border` out of 'refuse'.*got 'crop'.*name one"),
        (lambda: merge(border="reflect"), r"PatchMerging needs a `border`.*got 'reflect'"),
        (
            lambda: square()(torch.zeros(1, 3, 10, 12)),
            r"sides that \(4, 4\) divides; got \(10, 12\).*Resize to \(12, 12\).*border=\"pad\"",
        ),
        (lambda: square(border="cut")(torch.zeros(1, 3, 3, 12)), r"got \(3, 12\), under border='cut'"),
        (lambda: square()(torch.zeros(1, 1, 8, 8)), r"\[batch, 3, height, width\]; got \[1, 1, 8, 8\]"),
        (lambda: square()(torch.zeros(3, 8, 8)), r"got \[3, 8, 8\].*a batch first"),
        (lambda: square()(torch.zeros(1, 3, 0, 8)), r"got \[1, 3, 0, 8\]"),
        (lambda: square()(torch.zeros(1, 3, 8, 8).double()), r"must be torch.float32.*got torch.float64"),
        (lambda: merge(border="refuse")(torch.zeros(1, 15, 8), Grid(3, 5)), r"\(2, 2\) divides; got \(3, 5\)"),
        (lambda: merge()(torch.zeros(1, 17, 8), Grid(4, 4, prefix=1)), r"without a prefix; got Grid\(4, 4, pre"),
        (lambda: merge()(torch.zeros(1, 16, 8), Grid(16)), r"rows and columns.*got Grid\(16\)"),
        (lambda: merge()(torch.zeros(1, 16, 8), Grid(4, 5)), r"must have 20 tokens.*got 16"),
    ],
)
def test_what_is_refused(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
