"""What a count says, what it leaves alone, what it refuses, and the papers' tables."""

from __future__ import annotations

import copy
import runpy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from locant import Grid, Padding, RelativeTable, Windows, attend, flops
from locant.flops import MultiplyAdds, count
from locant.models.aim_swin import aim_swin_base
from locant.models.aim_vit import aim_vit_base
from locant.models.convit import convit_base, convit_small, convit_tiny
from locant.models.detr import detr
from locant.models.swin import swin_base, swin_large, swin_small, swin_tiny
from locant.nn import Attention, Block
from locant.nn.temporal import TemporalModel

DOCS = Path(__file__).parents[1] / "docs"
GRID = Grid(4, 6)


def model() -> nn.Sequential:
    """A convolution, a block in windows, a head; the head is frozen."""
    layers = nn.Sequential()
    layers.add_module("patches", nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2)))
    layers.add_module("turn", Turned())
    block = Block(8, 2, mlp_ratio=2.0, grid=GRID, position=RelativeTable(Grid(2, 3), 2), mask=Windows((2, 3)))
    layers.add_module("block", block)
    layers.add_module("head", nn.Linear(8, 5).requires_grad_(False))
    return layers


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def picture(batch: int = 1) -> Tensor:
    return torch.empty(batch, 3, 8, 12, device="meta")


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.row(49)
def test_by_module_with_what_is_below() -> None:
    """24 tokens of 8 channels in four windows of 6; patches of 2 × 2 × 3; hidden 16."""
    found = count(model(), picture())
    attention = MultiplyAdds(projections=24 * 4 * 64, logits=24 * 6 * 8, values=24 * 6 * 8)
    perceptron = MultiplyAdds(projections=24 * 2 * 8 * 16)
    assert found.modules["patches"] == found.modules["patches.0"] == MultiplyAdds(convolution=24 * 8 * 12)
    assert found.modules["block.attention.qkv"] == MultiplyAdds(projections=24 * 3 * 64)
    assert found.modules["block.attention"] == attention
    assert found.modules["block"] == attention + perceptron
    assert found.modules["head"] == MultiplyAdds(projections=24 * 8 * 5)
    assert found.parts == attention + perceptron + found.modules["patches"] + found.modules["head"]
    assert found.parts.total == found.multiply_adds == found.flops // 2
    assert "turn" not in found.modules
    assert list(found.modules)[:4] == ["", "patches", "patches.0", "block"]


@pytest.mark.row(49)
def test_parameters_that_learn_and_those_that_do_not() -> None:
    made = model()
    found = count(made, picture())
    assert found.frozen == 8 * 5 + 5
    assert found.parameters == sum(p.numel() for p in made.parameters()) == found.trainable + 45
    shared = nn.Sequential(first := nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = first.weight
    found = count(shared, torch.empty(1, 4))
    assert (found.parameters, found.multiply_adds) == (16 + 8, 32)


def test_it_prints_what_is_counted() -> None:
    golden = """\
multiply-adds       projections   logits   values  position  convolution     total
the model               13.25 k  1.152 k  1.152 k         0      2.304 k   17.86 k
patches                       0        0        0         0      2.304 k   2.304 k
patches.0                     0        0        0         0      2.304 k   2.304 k
block                   12.29 k  1.152 k  1.152 k         0            0   14.59 k
block.attention         6.144 k  1.152 k  1.152 k         0            0   8.448 k
block.mlp               6.144 k        0        0         0            0   6.144 k
head                        960        0        0         0            0       960

17,856 multiply-adds, 35,712 FLOPs
"""
    found = count(model(), picture())
    assert [line.split() for line in str(found).splitlines()[:10]] == [line.split() for line in golden.splitlines()]
    assert "parameters: " in str(found)
    assert "order and padding take none away" in str(found)
    widths = {len(line) for line in found.table().splitlines()}
    assert len(widths) == 1, "columns line up"
    assert len(found.table(depth=1).splitlines()) == 5
    assert found._repr_html_() == f"<pre>{found}</pre>"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (4_474_162_176, "4.474 G"), (999_999, "1000 k"), (3 * 10**15, "3000 T")],
)
def test_numbers_are_said_short(number: int, said: str) -> None:
    assert flops._short(number) == said


@pytest.mark.row(49)
def test_batches_and_modules_that_run_twice_add_up() -> None:
    once, made = count(model(), picture()), model()
    assert count(model(), picture(3)).multiply_adds == 3 * once.multiply_adds
    twice = nn.Sequential(made, Widened(), made.block)
    assert count(twice, picture()).parts == once.parts + once.modules["block"]


class Widened(nn.Module):
    """From 5 channels to 8."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 3))


@pytest.mark.row(49)
def test_no_size_is_too_large() -> None:
    """A million tokens in windows, 100 000 without: 10 billion pairs that nobody forms."""
    grid = Grid(1000, 1000)
    with torch.device("meta"):
        module, other = Attention(768, 12, grid=grid, mask=Windows((8, 8))), Attention(768, 12)
    found = count(module, torch.empty(1, grid.tokens, 768, device="meta")).parts
    assert found == MultiplyAdds(4 * 10**6 * 768**2, 64 * 10**6 * 768, 64 * 10**6 * 768)
    assert count(other, torch.empty(1, 10**5, 768, device="meta")).parts.logits == 10**10 * 768


# --- what it leaves alone --------------------------------------------------------------------------------------------


def test_nothing_of_the_model_changes() -> None:
    made = TemporalModel(4, 2, (4, 6), start_out_channels=4).train()
    before = copy.deepcopy(made.state_dict())
    x = torch.randn(2, 3, 4, 4, 6)
    count(made, x)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in made.parameters())
    assert made(x).requires_grad


def test_attention_computes_again_afterwards_and_elsewhere_all_the_time() -> None:
    results: list[Tensor] = []
    q = torch.randn(1, 2, 5, 4)
    expected = attend.attention(q, q, q)

    class Meanwhile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: results.append(attend.attention(q, q, q)))
            thread.start()
            thread.join()
            return attend.attention(x, x, x)

    count(Meanwhile(), q)
    assert torch.equal(results[0], expected)
    with pytest.raises(ValueError, match="meta device"):
        count(Reads(), q)
    assert torch.equal(attend.attention(q, q, q), expected)


def test_counts_that_overlap_in_two_threads_are_both_right_and_leave_nothing_behind() -> None:
    """The first to enter leaves before the second: afterwards attention computes, in both threads."""
    q = torch.randn(1, 2, 5, 4)
    expected, golden = attend.attention(q, q, q), count(Attends(), q)
    entered, left = threading.Event(), threading.Event()
    results: list[object] = []

    class Waits(nn.Module):
        def __init__(self, before: threading.Event, until: threading.Event) -> None:
            super().__init__()
            self.before, self.until = before, until

        def __deepcopy__(self, memo: object) -> nn.Module:
            return Waits(self.before, self.until)

        def forward(self, x: Tensor) -> Tensor:
            self.before.set()
            assert self.until.wait(30)
            return attend.attention(x, x, x)

    inside = threading.Event()

    def second() -> None:
        assert entered.wait(30)
        results.append(count(Waits(inside, left), q))  # enters while the first counts, leaves when it has left
        results.append(attend.attention(q, q, q))

    thread = threading.Thread(target=second)
    thread.start()
    first = count(Waits(entered, inside), q)
    after_first = attend.attention(q, q, q)
    left.set()
    thread.join()
    assert [first.parts, results[0].parts] == [golden.parts] * 2
    assert torch.equal(after_first, expected)
    assert torch.equal(results[1], expected)
    assert torch.equal(attend.attention(q, q, q), expected)


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return attend.attention(x, x, x)


def test_it_counts_within_inference_mode_and_beside_gradients() -> None:
    golden = count(model(), picture())
    with torch.inference_mode():
        assert count(model(), picture()) == golden
    made = model()
    assert count(made, torch.randn(1, 3, 8, 12, requires_grad=True)) == golden


# --- what it refuses -------------------------------------------------------------------------------------------------


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class Elsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-1])


@pytest.mark.parametrize(
    ("make", "shape", "sentence"),
    [
        (lambda: nn.Sequential(nn.Identity(), Reads()), (1, 2, 5, 4), r"values; 1 failed there.*read no values"),
        (Elsewhere, (2, 3), r"values; the model failed there.*tensors on the device of the input"),
        (lambda: nn.Linear(4, 5), (2, 3), r"failed there.*Check the inputs' shapes"),
    ],
)
def test_models_that_need_values(make: Callable[[], nn.Module], shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        count(make(), torch.empty(shape))


@pytest.mark.plain
def test_what_a_model_says_of_its_inputs_is_passed_on() -> None:
    with pytest.raises(ValueError, match=r"`x` must be \[batch, tokens, 8\]; got \[1, 24, 7\]"):
        count(Attention(8, 2), torch.empty(1, 24, 7))
    with pytest.raises(ValueError, match="offsets up to .* reaches"):
        count(Attention(8, 2, position=RelativeTable(Grid(3), 2)), torch.empty(1, 24, 8))


# --- the papers ------------------------------------------------------------------------------------------------------

PAPERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
    # parameters in millions, multiply-adds in billions
    "Swin-T": (swin_tiny, (1, 3, 224, 224), 28, 4.5),
    "Swin-S": (swin_small, (1, 3, 224, 224), 50, 8.7),
    "Swin-B": (swin_base, (1, 3, 224, 224), 88, 15.4),
    "AIM ViT-B": (aim_vit_base, (3, 3, 8, 224, 224), 97, 606),
}


@pytest.mark.row(49)
@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_tables(name: str) -> None:
    make, shape, parameters, giga = PAPERS[name]
    with torch.device("meta"):
        made = make()
    found = count(made, torch.empty(shape, device="meta"))
    assert round(found.parameters / 1e6) == parameters
    assert round(found.multiply_adds / 1e9, 0 if giga == round(giga) else 1) == giga


@pytest.mark.row(49)
def test_swin_by_the_published_rule_for_borders() -> None:
    """384 × 384, windows of 12, whole ones at the border: 103.9 G."""
    with torch.device("meta"):
        made = swin_large(img_size=384, window=12, border="pad-roll")
    assert round(count(made, torch.empty(1, 3, 384, 384, device="meta")).multiply_adds / 1e9, 1) == 103.9


@pytest.mark.row(49)
@pytest.mark.parametrize(
    ("make", "heads", "dim", "giga"),
    [(convit_tiny, 4, 192, 1.0), (convit_small, 9, 432, 5.4), (convit_base, 16, 768, 17)],
)
def test_convit_by_its_formula(make: Callable[[], nn.Module], heads: int, dim: int, giga: float) -> None:
    """Ten gated blocks on 196 tokens, two plain ones on 197; the paper's figure lies between, without and with A v."""
    with torch.device("meta"):
        made = make()
    found = count(made, torch.empty(1, 3, 224, 224, device="meta")).parts
    tokens = 10 * 196 + 2 * 197
    assert found.projections == tokens * 12 * dim**2 + dim * 1000
    assert found.logits == found.values == (10 * 196**2 + 2 * 197**2) * dim
    assert found.position == 10 * 3 * 196**2 * heads
    assert found.convolution == 196 * dim * 16 * 16 * 3
    digits = 1 if giga == 5.4 else 0
    assert round((found.projections + found.convolution) / 1e9, digits) <= giga <= round(found.total / 1e9, digits)


@pytest.mark.row(49)
def test_detrs_encoder_by_its_formula() -> None:
    """Six layers: N (4 C² + 2 C · 2048) + 2 N² C each, N = 850; the paper's model has 7.9 M fewer without them."""
    with torch.device("meta"):
        made = detr()
    whole = count(made, torch.empty(1, 2048, 25, 34, device="meta"))
    padded = Padding(torch.ones(1, 800, 1088, dtype=torch.bool))
    assert count(made, torch.empty(1, 2048, 25, 34, device="meta"), arguments={"mask": padded}) == whole
    encoder = whole.modules["transformer.encoder"]
    assert encoder.projections == 6 * 850 * (4 * 256**2 + 2 * 256 * 2048)
    assert encoder.logits == encoder.values == 6 * 850**2 * 256
    assert sum(p.numel() for p in made.transformer.encoder.parameters()) == 7_890_432


@pytest.mark.row(49)
def test_aim_on_swin() -> None:
    """Adapters 8 762 080, tables over time 5 828, tables over space 63 544; frozen are the others."""
    with torch.device("meta"):
        made = aim_swin_base(num_classes=0)
    made.freeze(("adapters", "temporal"))
    numbers = {name: p.numel() for name, p in made.named_parameters()}
    assert sum(n for name, n in numbers.items() if name.endswith("position.table")) == 63_544
    found = count(made.eval(), torch.empty(1, 3, 32, 224, 224, device="meta"))
    assert found.trainable == 8_762_080 + 5_828
    whole = flops.published_aim_swin()
    assert found.parts.logits == found.parts.values < whole / 2  # windows are cut at the border, not filled


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.row(49)
def test_the_page_is_what_is_counted() -> None:
    """docs/models.py, run again, writes docs/models.md as it lies there."""
    assert runpy.run_path(str(DOCS / "models.py"))["page"]() == (DOCS / "models.md").read_text()
