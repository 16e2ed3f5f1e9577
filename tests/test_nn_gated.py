"""`locant.nn.GatedAttention` against ConViT's formula in double loops, on squares and rectangles."""

from __future__ import annotations

import pytest
import torch
from near import close
from torch import Tensor

from locant import ALiBi, Causal, GatedPosition, Grid, Padding, Rotary, Sinusoid, Windows
from locant.nn import GatedAttention

HEADS, WIDTH = 4, 3
DIM = HEADS * WIDTH


def published(module: GatedAttention, x: Tensor, rows: int, columns: int) -> Tensor:
    """ConViT's order: channels (dx, dy, dx² + dy²) of KEY minus QUERY, two softmaxes, mixed by the gate."""
    direction, spread = module.position.direction, module.position.spread
    weight = torch.stack([-direction[:, 1], -direction[:, 0], spread], dim=-1)  # pos_proj.weight [heads, 3]
    n = rows * columns
    out = torch.zeros_like(x)
    for b in range(len(x)):
        qk, values = x[b] @ module.qk.weight.T, x[b] @ module.v.weight.T
        for h in range(HEADS):
            channels = slice(h * WIDTH, (h + 1) * WIDTH)
            q, k, v = qk[:, :DIM][:, channels], qk[:, DIM:][:, channels], values[:, channels]
            g = torch.sigmoid(module.position.gate[h])
            for i in range(n):
                place = []
                for j in range(n):
                    dx, dy = j % columns - i % columns, j // columns - i // columns
                    place.append(weight[h, 0] * dx + weight[h, 1] * dy + weight[h, 2] * (dx * dx + dy * dy))
                content = torch.softmax(k @ q[i] * WIDTH**-0.5, 0)
                mixed = (1 - g) * content + g * torch.softmax(torch.stack(place), 0)
                out[b, i, channels] = (mixed / mixed.sum()) @ v
    return out @ module.proj.weight.T + module.proj.bias


def built(grid: Grid | None = None, **given: object) -> GatedAttention:
    """Nothing at its start: random v, directions and gates, so that every part shows."""
    module = GatedAttention(DIM, HEADS, grid=grid, **given).double()
    with torch.no_grad():
        torch.nn.init.normal_(module.v.weight)
        for parameter in module.position.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (5, 3), (2, 8), (1, 7)])
def test_the_formula_on_any_rectangle(rows: int, columns: int) -> None:
    """2 × 8 holds 16 tokens as 4 × 4 does: the published code cannot tell them apart, the grid can."""
    module = built(Grid(rows, columns))
    x = torch.randn(2, rows * columns, DIM, dtype=torch.float64)
    expected = published(module, x, rows, columns)
    close(module(x), expected)
    if (rows, columns) == (2, 8):
        assert float((module(x, grid=Grid(4, 4)) - expected).detach().abs().max()) > 1e-3


def test_gradients_of_every_parameter_follow_the_formula() -> None:
    module = built(Grid(2, 3))
    x = torch.randn(1, 6, DIM, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 6, DIM, dtype=torch.float64)
    wanted = dict(module.named_parameters()) | {"x": x}
    fast = torch.autograd.grad((module(x) * target).sum(), list(wanted.values()))
    slow = torch.autograd.grad((published(module, x, 2, 3) * target).sum(), list(wanted.values()))
    for a, b in zip(fast, slow, strict=True):
        assert bool(a.isfinite().all())
        close(a, b)
    assert float(fast[list(wanted).index("position.gate")].abs().min()) > 0


def test_it_starts_as_a_convolution_would() -> None:
    """v is the identity; with the gate shut on content, head h reads the cell at its offset (9 heads, 3 × 3)."""
    module = GatedAttention(18, 9, grid=Grid(14, 14), locality=60.0)
    assert torch.equal(module.v.weight, torch.eye(18))
    assert torch.equal(module.position.gate, torch.ones(9))
    assert float(torch.sigmoid(module.position.gate.detach())[0]) == pytest.approx(0.7311, abs=5e-5)
    with torch.no_grad():
        module.position.gate.fill_(50.0)
        module.proj.weight.copy_(torch.eye(18))
        module.proj.bias.zero_()
    x = torch.randn(1, 196, 18)
    image, out = x.unflatten(1, (14, 14)), module(x).unflatten(1, (14, 14))
    for head in range(9):
        down, right = head % 3 - 1, head // 3 - 1  # the row offset changes fastest
        channels = slice(2 * head, 2 * head + 2)
        moved = image[0, 5 + down, 6 + right, channels]
        assert float((out[0, 5, 6, channels] - moved).detach().abs().max()) <= 1e-5


def test_a_shut_gate_leaves_content_and_an_open_one_position() -> None:
    module = built(Grid(3, 3))
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    with torch.no_grad():
        module.position.gate.fill_(60.0)
    out = module(x)
    other = torch.randn_like(module.qk.weight)
    with torch.no_grad():
        module.qk.weight.copy_(other)
    close(module(x), out)  # content plays no part


def test_gates_may_join_other_positions_and_windows() -> None:
    grid = Grid(4, 6)
    gate = GatedPosition(HEADS)
    module = GatedAttention(DIM, HEADS, grid=grid, position=(gate, Sinusoid(DIM)), qkv_bias=True).double()
    assert {"position.0.gate", "qk.bias", "v.bias"} <= set(module.state_dict())
    x = torch.randn(1, 24, DIM, dtype=torch.float64)
    encoded = module(x)
    assert float((encoded - module(x, position=gate)).detach().abs().max()) > 1e-6
    out = module(x, position=gate, mask=Windows((2, 3)))
    corner = x.unflatten(1, (4, 6))[:, :2, :3].flatten(1, 2)
    close(out.unflatten(1, (4, 6))[:, :2, :3].flatten(1, 2), module(corner, grid=Grid(2, 3), position=gate))


def test_dropout_and_padding_take_the_dense_form() -> None:
    grid = Grid(3, 4)
    module = built(grid, dropout=0.5)
    x = torch.randn(2, 12, DIM, dtype=torch.float64)
    noisy = module(x)
    exact = published(module, x, 3, 4)
    assert float((noisy - exact).detach().abs().max()) > 1e-2
    module.eval()
    close(module(x), exact)
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[:, :, 3] = False
    kept = x.unflatten(1, (3, 4))[:, :, :3].flatten(1, 2)
    close(
        module(x, mask=Padding(valid)).unflatten(1, (3, 4))[:, :, :3].flatten(1, 2), module(kept, grid=Grid(3, 3))
    )  # a separable map on what is left


def test_the_default_gate_has_the_axes_of_the_grid() -> None:
    assert GatedAttention(DIM, HEADS).position.axes == 2
    assert GatedAttention(DIM, HEADS, grid=Grid(5)).position.axes == 1
    clip = GatedAttention(DIM, 8 // 2, grid=Grid(2, 3, 4))
    assert clip.position.axes == 3
    assert clip(torch.randn(1, 24, DIM)).shape == (1, 24, DIM)


def test_without_local_init_nothing_is_set() -> None:
    module = GatedAttention(DIM, HEADS, local_init=False)
    assert not torch.equal(module.v.weight, torch.eye(DIM))
    assert float(module.position.spread.detach().abs().max()) < 0.2


def test_extra_repr() -> None:
    module = GatedAttention(8, 2, grid=Grid(4, 4), mask=Windows((2, 2)), proj_dropout=0.1)
    assert "dim=8, heads=2, grid=Grid(4, 4), mask=Windows" in repr(module)
    assert "proj_dropout=0.1" in repr(module)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: GatedAttention(8, 3), r"GatedAttention needs a `dim`.*got dim=8, heads=3"),
        (lambda: GatedAttention(8, 2, dropout=2.0), r"`dropout` of at least 0 and below 1; got 2.0"),
        (lambda: GatedAttention(8, 2, position=ALiBi(2)), r"`position` with a gate.*got ALiBi"),
        (lambda: GatedAttention(8, 2, position=Sinusoid(8)), r"got none that acts inside attention"),
        (lambda: GatedAttention(8, 2, position=Causal()), r"`position` such as RelativeTable.*got Causal"),
        (
            lambda: GatedAttention(8, 2, grid=Grid(4, 4))(torch.zeros(1, 15, 8)),
            r"`x` on Grid\(4, 4\) must have 16 tokens.*got 15",
        ),
        (
            lambda: GatedAttention(8, 2, grid=Grid(4, 4))(torch.zeros(1, 16, 8), position=Rotary(4)),
            r"`position` with a gate.*got Rotary",
        ),
        (lambda: GatedAttention(8, 2)(torch.zeros(1, 16, 8)), r"built for grids of 2 axes; got Grid\(16\)"),
    ],
)
def test_wrong_arguments_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
