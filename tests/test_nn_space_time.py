"""Attention over space and over time by one module, AIM's `Attention`, and what a text about them gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from near import apart
from redrawing import shake
from torch import Tensor, nn

from locant import Causal, Grid, Padding, RelativeTable, Windows
from locant.nn.adapter import Adapter
from locant.nn.relative import RelativeAttention
from locant.nn.space_time import SpaceTimeAttention, SpaceTimeBlock

DIM, HEADS, T, SIDE = 6, 2, 4, 2
CLIP = Grid(T, 4, 6)


def attention(**given: object) -> SpaceTimeAttention:
    module = SpaceTimeAttention(DIM, HEADS, **{"frames": T, "window": (SIDE, SIDE), "grid": CLIP} | given)
    return shake(module).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, CLIP.tokens, DIM, dtype=torch.float64)


@pytest.mark.row(4)
def test_one_module_is_one_attention_under_two_windows(x: Tensor) -> None:
    module = attention()
    plain = super(SpaceTimeAttention, module).forward
    wanted = plain(x, position=module.temporal, mask=Windows((T, 1, 1)))
    assert torch.equal(module(x, temporal=True), wanted)
    assert torch.equal(module(x), plain(x, mask=Windows((1, SIDE, SIDE))))
    shifted = attention(shift=(1, 1), frames=None)
    wanted = super(SpaceTimeAttention, shifted).forward(x, mask=Windows((1, SIDE, SIDE), (0, 1, 1)))
    assert torch.equal(shifted(x), wanted)
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(module.state_dict()) == names | {"position.table", "temporal.table"}
    assert set(SpaceTimeAttention(DIM, HEADS, frames=T).state_dict()) == names


@pytest.mark.row(4)
@pytest.mark.row(7)
@pytest.mark.row(56)
def test_a_mask_over_time_is_not_ignored(x: Tensor) -> None:
    """The published forward takes it and does nothing. Here a padded clip gets what the clip alone gets."""
    module, places = attention(), 24
    valid = torch.arange(T)[None, :, None, None] < torch.tensor([3, 2])[:, None, None, None]
    out = module(x, mask=Padding(valid.expand(2, *CLIP.shape)), temporal=True)
    for sample, frames in enumerate((3, 2)):
        alone = module(x[sample : sample + 1, : frames * places], grid=CLIP[:frames], temporal=True)
        assert apart(out[sample : sample + 1, : frames * places], alone) <= 1e-10
    assert apart(out, module(x, temporal=True)) > 1e-3


@pytest.mark.row(7)
def test_order_in_time_sees_no_later_frame(x: Tensor) -> None:
    module = attention()
    out = module(x, mask=Causal(axis=0), temporal=True)
    changed = x.clone()
    changed[:, 2 * 24 :] = 9.0
    again = module(changed, mask=Causal(axis=0), temporal=True)
    assert torch.equal(again[:, : 2 * 24], out[:, : 2 * 24])
    assert apart(module(changed, temporal=True)[:, : 2 * 24], module(x, temporal=True)[:, : 2 * 24]) > 1e-3


@pytest.mark.row(5)
@pytest.mark.row(51)
def test_time_commutes_with_a_permutation_of_places(x: Tensor) -> None:
    module, order = attention(), torch.randperm(24)

    def moved(y: Tensor) -> Tensor:
        return y.unflatten(1, (T, 24))[:, :, order].flatten(1, 2)

    assert apart(module(moved(x), temporal=True), moved(module(x, temporal=True))) <= 1e-10
    assert apart(module(moved(x)), moved(module(x))) > 1e-3  # space does not


@pytest.mark.row(51)
def test_space_commutes_with_whole_windows_and_with_frames(x: Tensor) -> None:
    module = attention()

    def rolled(y: Tensor, by: tuple[int, int, int]) -> Tensor:
        return y.unflatten(1, CLIP.shape).roll(by, (1, 2, 3)).flatten(1, 3)

    assert apart(module(rolled(x, (1, 2, 4))), rolled(module(x), (1, 2, 4))) <= 1e-10
    assert apart(module(rolled(x, (0, 1, 0))), rolled(module(x), (0, 1, 0))) > 1e-3


@pytest.mark.row(51)
def test_moving_all_frames_changes_nothing(x: Tensor, parity: Callable[..., None]) -> None:
    module = attention()
    later = Grid(*CLIP.shape, origin=(5, 0, 0))
    error = apart(module(x, grid=later, temporal=True), module(x, temporal=True))
    parity(51, "the same clip, all frames moved", error, 0.0)
    assert torch.equal(module(x, grid=later), module(x))


def test_a_class_token_per_frame_is_a_column(x: Tensor) -> None:
    """Over time class tokens meet class tokens; over space each meets its own frame."""
    module = shake(SpaceTimeAttention(DIM, HEADS, frames=T, grid=Grid(T, 24))).double().eval()
    time, space = module(x, temporal=True), module(x)
    column = x.unflatten(1, (T, 24))[:, :, 0]
    assert apart(time.unflatten(1, (T, 24))[:, :, 0], module(column, grid=Grid(T, 1), temporal=True)) <= 1e-10
    frame = x.unflatten(1, (T, 24))[:, 2]
    assert apart(space.unflatten(1, (T, 24))[:, 2], module(frame, grid=Grid(1, 24))) <= 1e-10


def test_small_maps_lose_their_shift_and_shrink_to_the_shorter_side() -> None:
    """The published rule, in each frame; one frame alone does not count as a short axis."""
    module = shake(SpaceTimeAttention(DIM, HEADS, window=(4, 4), shift=(2, 2))).double().eval()
    for shape, cells in (((2, 8, 8), Windows((1, 4, 4), (0, 2, 2))), ((1, 8, 8), Windows((1, 4, 4), (0, 2, 2))),
                         ((2, 4, 8), Windows((1, 4, 4))), ((2, 2, 8), Windows((1, 2, 2)))):  # fmt: skip
        y = torch.randn(1, math.prod(shape), DIM, dtype=torch.float64)
        wanted = super(SpaceTimeAttention, module).forward(y, grid=Grid(*shape), mask=cells)
        assert torch.equal(module(y, grid=Grid(*shape)), wanted)


def test_resized_keeps_the_centre_and_linear_tables() -> None:
    module = attention()
    with torch.no_grad():
        module.temporal.table.copy_(torch.arange(1.0 - T, T)[:, None, None].expand(HEADS, -1, 1, 1))
    new = module.resized(frames=7, window=(3, 3), shift=(1, 1))
    assert apart(new.temporal.table[0, :, 0, 0], torch.linspace(1 - T, T - 1, 13).double()) <= 1e-12
    assert torch.equal(new.position.table[:, :, 2, 2], module.position.table[:, :, 1, 1])
    assert (new.frames, new.windows, module.frames) == (7, Windows((3, 3), (1, 1)), T)
    assert SpaceTimeAttention(DIM, HEADS).resized(frames=7, window=(3, 3)).state_dict().keys() == {
        "qkv.weight", "qkv.bias", "proj.weight", "proj.bias",
    }  # fmt: skip


# --- AIM's Attention


def slow(module: RelativeAttention, x: Tensor, scale: float) -> Tensor:
    """Pair by pair: the scale on the product, then the bias at query - key + T - 1."""
    heads, width, out = module.heads, module.dim // module.heads, torch.zeros_like(x)
    reach = module.position.table.shape[1] // 2
    for b in range(len(x)):
        qkv = x[b] if module.qkv is None else module.qkv(x[b])
        for h in range(heads):
            parts = (0, 0, 0) if module.qkv is None else (0, 1, 2)
            q, k, v = (qkv[:, p * module.dim + h * width : p * module.dim + (h + 1) * width] for p in parts)
            for i in range(len(q)):
                s = torch.stack(
                    [(q[i] @ k[j]) * scale + module.position.table[h, i - j + reach] for j in range(len(k))]
                )
                out[b, i, h * width : (h + 1) * width] = torch.softmax(s, 0) @ v
    return out if module.proj is None else module.proj(out)


@pytest.mark.row(6)
@pytest.mark.parametrize("with_qkv", [True, False])
def test_relative_attention_pair_by_pair(with_qkv: bool, parity: Callable[..., None]) -> None:
    module = shake(RelativeAttention(DIM, 5, HEADS, with_qkv=with_qkv)).double().eval()
    y = torch.randn(2, 5, DIM, dtype=torch.float64)
    parity(6, f"double loop, with_qkv={with_qkv}", apart(module(y), slow(module, y, 3**-0.5)), 1e-10)
    assert apart(module(y[:, :3]), slow(module, y[:, :3], 3**-0.5)) <= 1e-10  # the centre of the table
    module.scale = 0.0  # a scale, not "none given"
    assert apart(module(y), slow(module, y, 0.0)) <= 1e-10


@pytest.mark.row(6)
@pytest.mark.row(56)
def test_without_qkv_there_is_nothing_but_the_table() -> None:
    """No qkv, no projection, no dropout behind one: q, k and v are the input itself."""
    module = RelativeAttention(DIM, 5, HEADS, with_qkv=False)
    assert sum(p.numel() for p in module.parameters()) == (2 * 5 - 1) * HEADS
    assert set(module.state_dict()) == {"position.table"}
    nn.init.zeros_(module.position.table)
    y = torch.randn(2, 5, DIM)
    heads = y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    wanted = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
    assert apart(module(y), wanted) <= 1e-6
    assert set(RelativeAttention(DIM, 5, HEADS).state_dict()) == {
        "position.table", "qkv.weight", "proj.weight", "proj.bias",
    }  # fmt: skip


@pytest.mark.row(7)
def test_relative_attention_takes_masks() -> None:
    module = shake(RelativeAttention(DIM, 5, HEADS)).double().eval()
    y = torch.randn(2, 5, DIM, dtype=torch.float64)
    padded = module(y, mask=Padding.from_lengths(torch.tensor([5, 3]), 5))
    assert apart(padded[1:, :3], module(y[1:, :3])) <= 1e-10
    assert apart(module(y, mask=Causal())[:, :2], module(y[:, :2], mask=Causal())) <= 1e-10


# --- what a text about these modules says, and is not so


@pytest.mark.row(56)
def test_tables_are_learned_and_only_their_index_is_fixed(x: Tensor) -> None:
    """Not "pre-computed" and not "fixed": both tables get gradients, and no index is kept at all."""
    module = attention()
    module(module(x, temporal=True)).square().sum().backward()
    for table in (module.position.table, module.temporal.table):
        assert isinstance(table, nn.Parameter)
        assert float(table.grad.abs().min()) > 0
    assert not list(module.buffers())


@pytest.mark.row(56)
def test_the_temporal_index_is_a_signed_difference() -> None:
    """Not a distance between words: the bias from a frame to the next is another than back, at one place of a clip."""
    table = RelativeTable(Grid(T, 1, 1), 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(2.0 * T - 1).reshape(1, -1, 1, 1))
    bias = table(Grid(T, 1, 1))[0]
    assert bias[0, 1] == T - 2
    assert bias[1, 0] == T
    assert bias.numel() == T * T


@pytest.mark.row(56)
def test_both_axes_are_attended_on_one_clip(x: Tensor) -> None:
    """`temporal` does not say what the data is: it picks the axis. Over time a place sees no other place."""
    module, changed = attention(), x.clone()
    changed.view(2, T, 24, DIM)[:, 0, 0] = 9.0  # the first place of the first frame
    time, space = (
        (module(changed, temporal=t) - module(x, temporal=t)).view(2, T, 24, DIM).abs().amax((0, 3)) > 0
        for t in (True, False)
    )
    assert time.nonzero().tolist() == [[frame, 0] for frame in range(T)]
    assert space.nonzero().tolist() == [[0, place] for place in (0, 1, 6, 7)]  # its window of 2 × 2


@pytest.mark.row(56)
def test_over_time_there_is_a_group_for_every_place() -> None:
    """Not for every window: each of 24 places is a sequence of T frames."""
    allowed = Windows((T, 1, 1)).allowed(CLIP)[0, 0]
    assert allowed.sum(1).tolist() == [T] * CLIP.tokens
    assert len(torch.unique(allowed, dim=0)) == 24
    assert len(torch.unique(Windows((1, SIDE, SIDE)).allowed(CLIP)[0, 0], dim=0)) == T * 2 * 3


@pytest.mark.row(56)
def test_shifted_windows_hide_borders_and_not_the_future(x: Tensor) -> None:
    """A pixel sees later ones of its window; what it does not see lies across the border of the picture."""
    allowed = Windows((1, SIDE, SIDE), (0, 1, 1)).allowed(Grid(1, 4, 4))[0, 0]
    assert bool(allowed[5, 10])  # down and to the right, later in any order
    assert not bool(allowed[0, 15])
    assert not bool(allowed[0, 3])
    assert torch.equal(allowed, allowed.T)


@pytest.mark.row(56)
def test_logits_are_multiplied_by_the_scale() -> None:
    module = shake(RelativeAttention(DIM, 5, HEADS, scale=2.0)).double().eval()
    y = torch.randn(1, 5, DIM, dtype=torch.float64)
    assert apart(module(y), slow(module, y, 2.0)) <= 1e-10
    assert apart(module(y), slow(module, y, 0.5)) > 1e-3


# --- numbers and graphs


@pytest.mark.row(53)
def test_gradients_are_those_of_the_function() -> None:
    grid = Grid(2, 2, 2)
    y = torch.randn(1, 8, 4, dtype=torch.float64, requires_grad=True)
    block = shake(SpaceTimeBlock(4, 2, frames=2, window=(2, 2), adapters=2, causal=True)).double().eval()
    leaves = [p for p in block.parameters() if p.numel() <= 40]

    def run(inputs: Tensor, *_: Tensor) -> Tensor:
        return block(inputs, grid=grid)

    assert torch.autograd.gradcheck(run, (y, *leaves))
    for with_qkv in (True, False):
        module = shake(RelativeAttention(4, 8, 2, with_qkv=with_qkv)).double().eval()
        assert torch.autograd.gradcheck(lambda inputs, *_, m=module: m(inputs), (y, module.position.table))


@pytest.mark.compiled
@pytest.mark.row(55)
def test_compiled_relative_attention_computes_the_same() -> None:
    module = shake(RelativeAttention(DIM, 5, HEADS)).double().eval()
    y, mask = torch.randn(2, 5, DIM, dtype=torch.float64), Padding.from_lengths(torch.tensor([5, 2]), 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert apart(compiled(y, mask=mask), module(y, mask=mask)) <= 1e-10


# --- what is refused


@pytest.mark.plain
@pytest.mark.row(4)
@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Adapter(3), r"Adapter needs a `ratio` that leaves a hidden channel; got 0.25 of dim=3"),
        (lambda: SpaceTimeAttention(7, 2), r"SpaceTimeAttention needs a `dim`.*got dim=7, heads=2"),
        (lambda: SpaceTimeAttention(6, 2, frames=0), r"needs `frames` of at least 1; got 0"),
        (lambda: SpaceTimeAttention(6, 2, shift=(1, 1)), r"needs a `window`.*got shift=\(1, 1\) without one"),
        (
            lambda: SpaceTimeAttention(6, 2, window=(2, 2))(torch.zeros(1, 8, 6), grid=Grid(2, 2, 2), temporal=True),
            r"needs `frames` to attend over time; it was built with frames=None",
        ),
        (
            lambda: SpaceTimeAttention(6, 2, window=(2, 2))(torch.zeros(1, 8, 6), grid=Grid(4, 2)),
            r"needs a grid of 3 axes, time first.*got Grid\(4, 2\)",
        ),
        (
            lambda: SpaceTimeAttention(6, 2, frames=4)(torch.zeros(1, 9, 6), grid=Grid(4, 2, prefix=1)),
            r"without a prefix; got Grid\(4, 2, prefix=1\)",
        ),
        (
            lambda: SpaceTimeAttention(6, 2, frames=4, window=(1, 1))(
                torch.zeros(1, 5, 6), grid=Grid(5, 1, 1), temporal=True
            ),
            r"resized\(Grid\(5, 1, 1\)\)",
        ),
        (lambda: SpaceTimeBlock(8, 2, frames=2, adapters=3), r"needs `adapters` of 1 .* or 2 .*got 3"),
        (lambda: RelativeAttention(7, 5, 2), r"RelativeAttention needs a `dim`.*got dim=7, heads=2"),
        (lambda: RelativeAttention(6, 5, 2, with_qkv=False, qkv_bias=True), r"with_qkv=False has neither a qkv_bias"),
        (lambda: RelativeAttention(6, 5, 2)(torch.zeros(1, 6, 6)), r"resized\(Grid\(6\), method=.clip.\)"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
