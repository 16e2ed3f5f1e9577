"""What the modules of `locant.nn` say to the commonest slips at a call: what was needed, what came, what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locant import Causal, Grid, Padding, masks
from locant.nn import (
    Adapter,
    AdditiveAttention,
    Attention,
    Block,
    CosineWindowAttention,
    DotProductAttention,
    GatedAttention,
    MultiHeadAttention,
    NadarayaWatson,
    PatchEmbedding,
    PatchMerging,
    RelativeAttention,
    SpaceTimeAttention,
    SpaceTimeBlock,
    TemporalModel,
    WindowAttention,
    masked_softmax,
)

pytestmark = pytest.mark.plain

DIM, ON = 8, Grid(4, 4)
X = torch.randn(2, 16, DIM)

Call = Callable[..., Any]
MODULES: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "Attention": (lambda: Attention(DIM, 2, grid=ON), lambda m, x, **a: m(x, **a)),
    "WindowAttention": (lambda: WindowAttention(DIM, 2, (2, 2), grid=ON), lambda m, x, **a: m(x, **a)),
    "CosineWindowAttention": (lambda: CosineWindowAttention(DIM, 2, (2, 2), grid=ON), lambda m, x, **a: m(x, **a)),
    "GatedAttention": (lambda: GatedAttention(DIM, 2, grid=ON), lambda m, x, **a: m(x, **a)),
    "MultiHeadAttention": (lambda: MultiHeadAttention(DIM, 2, grid=ON), lambda m, x, **a: m(x, x, x, **a)),
    "SpaceTimeAttention": (lambda: SpaceTimeAttention(DIM, 2, frames=4, grid=ON), lambda m, x, **a: m(x, **a)),
    "SpaceTimeBlock": (
        lambda: SpaceTimeBlock(DIM, 2, frames=4, causal=True),
        lambda m, x, grid=ON, **a: m(x, grid=grid, **a),
    ),
    "Block": (lambda: Block(DIM, 2, grid=ON), lambda m, x, **a: m(x, **a)),
}
ON_LINES: dict[str, tuple[Callable[[], Any], Call]] = {
    "RelativeAttention": (lambda: RelativeAttention(DIM, 16, 2), lambda m, x, **a: m(x, **a)),
    "DotProductAttention": (DotProductAttention, lambda m, x, **a: m(x, x, x, **a)),
    "AdditiveAttention": (lambda: AdditiveAttention(DIM), lambda m, x, **a: m(x, x, x, **a)),
    "NadarayaWatson": (NadarayaWatson, lambda m, x, **a: m(x, x, x, **a)),
    "masked_softmax": (lambda: masked_softmax, lambda f, x, **a: f(x, **a)),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "Adapter": (lambda: Adapter(DIM), lambda m, x: m(x)),
    "PatchEmbedding": (lambda: PatchEmbedding(DIM, (2, 2)), lambda m, x: m(x)),
    "PatchMerging": (lambda: PatchMerging(DIM), lambda m, x: m(x, ON)),
    "TemporalModel": (lambda: TemporalModel(DIM, 2, (4, 4)), lambda m, x: m(x)),
}


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    assert text.count(". ") >= 1  # what was needed and what came, and then what to do
    return text


NO_MASKS = {
    "a tensor": (
        torch.ones(16, 16, dtype=torch.bool),
        "a torch.bool tensor of shape [16, 16]",
        "Pairs.from_kept(mask)",
    ),
    "numbers": (torch.zeros(16, 16), "a torch.float32 tensor of shape [16, 16]", "Pairs.from_additive("),
    "a list": ([Causal()], "[Causal(axis=None)]", "&"),
    "a class": (Causal, "the class Causal", "Causal()"),
    "a word": ("causal", "'causal'", "Causal"),
    "an array": (np.ones((16, 16), bool), "numpy's ndarray", ""),
    "True": (True, "True", ""),
}


@pytest.mark.parametrize("kind", NO_MASKS)
@pytest.mark.parametrize("name", [*MODULES, *ON_LINES])
def test_what_is_no_mask_is_named(name: str, kind: str) -> None:
    build, call = (MODULES | ON_LINES)[name]
    value, came, instead = NO_MASKS[kind]
    module = build()
    text = complaint(lambda: call(module, X, mask=value))
    assert "`mask` as a Mask" in text
    assert came in text
    assert instead in text


@pytest.mark.parametrize("join", [lambda a, b: a | b, lambda a, b: ~a, lambda a, b: a ^ b])
def test_masks_join_by_and_alone(join: Callable[[Any, Any], object]) -> None:
    assert "by &" in complaint(lambda: join(Causal(), masks.Windows((2, 2))))


@pytest.mark.parametrize("grid", [(4, 4), [4, 4], 16, torch.Size([4, 4]), "4x4", Grid])
@pytest.mark.parametrize("name", MODULES)
def test_what_is_no_grid_is_named(name: str, grid: object) -> None:
    build, call = MODULES[name]
    module = build()
    text = complaint(lambda: call(module, X, grid=grid))
    assert "`grid` as a Grid" in text
    assert "Grid(" in text.split("; got ")[1].split(". ", 1)[1]


def test_a_tuple_of_sizes_is_told_as_the_grid_it_means() -> None:
    assert "Write Grid(4, 4)." in complaint(lambda: Attention(DIM, 2)(X, grid=(4, 4)))
    assert "`key_grid` as a Grid" in complaint(lambda: MultiHeadAttention(DIM, 2)(X, X, X, key_grid=(4, 4)))
    assert "`grid` as a Grid" in complaint(lambda: PatchMerging(DIM)(X, (4, 4)))


@pytest.mark.parametrize("x", [np.zeros((2, 16, DIM), np.float32), [[1.0]], None, 3.0], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", [*MODULES, *ON_LINES, *OTHERS])
def test_what_is_no_tensor_is_named(name: str, x: object) -> None:
    build, call = (MODULES | ON_LINES | OTHERS)[name]
    module = build()
    text = complaint(lambda: call(module, x))
    assert any(f"`{argument}`" in text for argument in ("x", "query", "scores"))
    assert "torch.as_tensor(" in text


SHAPES = {
    "too narrow": (torch.zeros(1, 16, 7), "Give tokens of 8 channels, or build the module for the 7 that these have."),
    "a map, channels last": (torch.zeros(1, 4, 4, 8), "Lay the cells of the grid along one axis: x.flatten(1, -2)."),
    "a map, channels first": (torch.zeros(1, 8, 4, 4), "x.flatten(2).transpose(1, 2)."),
    "channels first": (torch.zeros(1, 8, 16), "The channels come last: x.transpose(1, 2)."),
    "no batch": (torch.zeros(16, 8), "Put a batch first: x[None]."),
    "a number": (torch.tensor(1.0), "Give tokens of 8 channels"),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("Block", "SpaceTimeBlock", "MultiHeadAttention")])
def test_a_wrong_shape_is_told_what_is_wrong_with_it(name: str, kind: str) -> None:
    x, advice = SHAPES[kind]
    build, call = MODULES[name]
    module = build()
    text = complaint(lambda: call(module, x))
    assert f"`x` must be [batch, tokens, 8]; got {list(x.shape)}. " in text
    assert text.endswith(advice) or advice in text


@pytest.mark.parametrize("name", ["Block", "SpaceTimeBlock"])
def test_a_block_checks_the_width_before_its_norm(name: str) -> None:
    build, call = MODULES[name]
    module = build()
    assert "`x` must be [batch, tokens, 8]; got [1, 16, 7]. Give tokens of 8" in complaint(
        lambda: call(module, SHAPES["too narrow"][0])
    )


def test_what_the_advice_makes_of_x_is_right() -> None:
    module = Attention(DIM, 2, grid=ON)
    for x in (SHAPES["a map, channels last"][0].flatten(1, -2), SHAPES["a map, channels first"][0].flatten(2).mT):
        assert module(x).shape == (1, 16, DIM)
    assert module(SHAPES["no batch"][0][None]).shape == (1, 16, DIM)


COUNTS = {
    "one more": (17, Grid(4, 4), "One more: a class token? Grid(4, 4, prefix=1). "),
    "two more": (18, Grid(4, 4), "2 more: class tokens or registers? Grid(4, 4, prefix=2). "),
    "registers": (21, Grid(4, 4), "5 more: class tokens or registers? Grid(4, 4, prefix=5). "),
    "beside one": (18, Grid(4, 4, prefix=1), "One more: a class token? Grid(4, 4, prefix=2). "),
    "none": (16, Grid(4, 4, prefix=1), "One fewer: without a class token? Grid(4, 4). "),
    "a slice": (9, Grid(2, 4, origin=(2, 0)), "One more: a class token? Grid(2, 4, prefix=1, origin=(2, 0)). "),
    "another map": (25, Grid(4, 4), ""),
    "half of it": (8, Grid(4, 4), ""),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_tokens_that_are_too_many_by_a_prefix(kind: str) -> None:
    tokens, grid, guess = COUNTS[kind]
    expected = (
        f"`x` on {grid} must have {grid.tokens} tokens (prefix included); got {tokens}. {guess}"
        "Pass grid= for these tokens at the call."
    )
    assert complaint(lambda: Attention(DIM, 2, grid=grid)(torch.zeros(1, tokens, DIM))) == expected
    meant: Tensor | None = None
    if guess:
        said = eval(guess[guess.index("Grid(") :].rstrip(". "), {"Grid": Grid})
        meant = Attention(DIM, 2, grid=grid)(torch.zeros(1, tokens, DIM), grid=said)
    assert meant is None or meant.shape == (1, tokens, DIM)


def test_a_mask_of_the_module_itself() -> None:
    for build in (Attention, GatedAttention, MultiHeadAttention):
        text = complaint(lambda build=build: build(DIM, 2, mask=torch.ones(16, 16, dtype=torch.bool)))
        assert "`mask` as a Mask" in text
        assert "Pairs.from_kept(mask)" in text
        assert "keeps a `mask` without tensors" in complaint(
            lambda build=build: build(DIM, 2, mask=Padding(torch.ones(1, 16, dtype=torch.bool)))
        )
