"""Several positions in one module: any sequence is registered, so that they are trained, moved and saved."""

from __future__ import annotations

from collections import UserList
from collections.abc import Callable

import pytest
import torch
from near import close
from torch import Tensor, nn

from locant import ALiBi, Grid, Learned, RelativeTable, Rotary, attention
from locant.models.transformer_xl_layers import MemoryAttention
from locant.nn import (
    Attention,
    Block,
    CosineWindowAttention,
    GatedAttention,
    MultiHeadAttention,
    WindowAttention,
)
from locant.positions.gate import GatedPosition

DIM, HEADS, GRID = 8, 2, Grid(2, 3)


def biases() -> list[nn.Module]:
    torch.manual_seed(3)
    return [RelativeTable(GRID, HEADS, init_std=1.0), RelativeTable(GRID, HEADS, init_std=1.0)]


# how each module that takes a position is built with several, and called
MODULES: dict[str, tuple[Callable[[object], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "Attention": (lambda p: Attention(DIM, HEADS, grid=GRID, position=p), lambda m, x: m(x)),
    "Block": (lambda p: Block(DIM, HEADS, grid=GRID, position=p), lambda m, x: m(x)),
    "WindowAttention": (lambda p: WindowAttention(DIM, HEADS, (2, 3), grid=GRID, position=p), lambda m, x: m(x)),
    "CosineWindowAttention": (
        lambda p: CosineWindowAttention(DIM, HEADS, (2, 3), grid=GRID, position=p),
        lambda m, x: m(x),
    ),
    "GatedAttention": (
        lambda p: GatedAttention(DIM, HEADS, grid=GRID, position=p, local_init=False),
        lambda m, x: m(x),
    ),
    "MultiHeadAttention": (
        lambda p: MultiHeadAttention(DIM, HEADS, grid=GRID, position=p),
        lambda m, x: m(x, x, x)[0],
    ),
    "MemoryAttention": (lambda p: MemoryAttention(DIM, HEADS, DIM // HEADS, position=p), lambda m, x: m(x)),
}
SEQUENCES = {"tuple": tuple, "list": list, "ModuleList": nn.ModuleList, "UserList": UserList}


def several(name: str) -> list[nn.Module]:
    if name == "MemoryAttention":
        torch.manual_seed(3)
        return [RelativeTable(Grid(6), HEADS, init_std=1.0), RelativeTable(Grid(6), HEADS, init_std=1.0)]
    return [*biases(), GatedPosition(HEADS, axes=2)] if name == "GatedAttention" else biases()


def seeded(build: Callable[[object], nn.Module], position: object) -> nn.Module:
    torch.manual_seed(1)
    return build(position).double()


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("name", MODULES)
def test_any_sequence_is_registered_and_acts(name: str, sequence: str) -> None:
    build, call = MODULES[name]
    module = seeded(build, SEQUENCES[sequence](several(name)))
    owner = module.attention if name == "Block" else module
    names = {f"position.{i}.{n}" for i, p in enumerate(several(name)) for n in p.state_dict()}
    assert {n for n in owner.state_dict() if n.startswith("position")} == names
    assert names <= {n for n, _ in owner.named_parameters()}

    x = torch.randn(2, GRID.tokens, DIM, dtype=torch.float64)
    summed = [p.double() for p in several(name)]
    with torch.no_grad():
        summed[0].table += summed[1].table
    close(call(module, x), call(seeded(build, (summed[0], *summed[2:])), x))
    call(module, x).square().sum().backward()
    for i in range(2):
        assert float(owner.position[i].table.grad.abs().max()) > 0


def test_a_module_list_stays_the_one_that_was_given() -> None:
    given = nn.ModuleList(biases()[:1])
    module = Attention(DIM, HEADS, grid=GRID, position=given).double()
    x = torch.randn(2, GRID.tokens, DIM, dtype=torch.float64)
    before = module(x)
    given.append(biases()[1].double())
    assert float((module(x) - before).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"MemoryAttention"}))
def test_any_sequence_is_taken_at_the_call(name: str, sequence: str) -> None:
    build, _ = MODULES[name]
    own = GatedPosition(HEADS, axes=2) if name == "GatedAttention" else None
    module = seeded(build, own)
    given = [p.double() for p in (*several(name)[:2], *([own] if own else []))]
    x = torch.randn(2, GRID.tokens, DIM, dtype=torch.float64)
    inputs = (x, x, x) if name == "MultiHeadAttention" else (x,)
    outs = [module(*inputs, position=make(given)) for make in (SEQUENCES[sequence], tuple)]
    found, expected = (out[0] if isinstance(out, tuple) else out for out in outs)
    close(found, expected)


def test_an_embedding_in_a_list_acts_before_the_projection() -> None:
    x = torch.randn(2, GRID.tokens, DIM, dtype=torch.float64)
    learned = Learned(GRID, DIM, init_std=1.0).double()
    module = Attention(DIM, HEADS, grid=GRID).double()
    close(module(x, position=[learned, *biases()]), module(x, position=(learned, *biases())))


class Own(nn.Module):
    """A module of one's own, as the docs show it."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.ModuleList([Rotary(4, axes=2), *biases()])

    def forward(self, q: Tensor) -> Tensor:
        return attention(q, q, q, grid=GRID, position=self.position)


def test_a_module_of_ones_own_trains_and_saves_a_module_list() -> None:
    own = Own().double()
    assert set(own.state_dict()) == {"position.1.table", "position.2.table"}
    q = torch.randn(1, HEADS, GRID.tokens, 4, dtype=torch.float64)
    out = own(q)
    close(out, attention(q, q, q, grid=GRID, position=tuple(own.position)))
    out.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in own.parameters())


@pytest.mark.parametrize("bare", [tuple, list])
@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"Block", "GatedAttention"}))
def test_a_bare_sequence_set_afterwards_is_noticed(name: str, bare: type) -> None:
    """torch would take it for any other attribute: neither trained nor moved nor saved."""
    build, call = MODULES[name]
    module = seeded(build, None)
    module.position = bare(several(name))
    x = torch.randn(2, GRID.tokens, DIM, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"bare (tuple|list) with RelativeTable.*Write module\.position = nn\.ModuleList"
    ):
        call(module, x)
    module.position = nn.ModuleList(several(name)).double()
    close(call(module, x), call(seeded(build, tuple(several(name))), x))


def test_nothing_is_lost_in_a_tuple_without_weights() -> None:
    module = Attention(DIM, HEADS).double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    module.position = (ALiBi(HEADS), Rotary(4))
    close(module(x), Attention.forward(module, x, position=(ALiBi(HEADS), Rotary(4))))


@pytest.mark.plain
@pytest.mark.parametrize(
    ("position", "came"),
    [
        ("rotary", "got str"),
        (nn.Sequential(Rotary(4)), "got Sequential"),
        (nn.ModuleDict({"a": Rotary(4)}), "got ModuleDict"),
        ([Rotary(4), None], "got NoneType"),
        (RelativeTable, "got the class RelativeTable"),
        ((Rotary(4) for _ in range(2)), "got generator"),
        (nn.ModuleList([nn.Linear(2, 2)]), "got Linear"),
    ],
)
def test_what_is_no_sequence_of_schemes_is_refused(position: object, came: str) -> None:
    for build, _ in MODULES.values():
        if isinstance(position, str) and build in (MODULES["WindowAttention"][0], MODULES["CosineWindowAttention"][0]):
            continue  # these know a scheme by name, and say so
        with pytest.raises(ValueError, match=f"needs a `position` such as RelativeTable, a tuple, list or .*{came}"):
            build(position)


@pytest.mark.compiled
def test_a_module_list_in_a_graph() -> None:
    own = Own().double()
    q = torch.randn(1, HEADS, GRID.tokens, 4, dtype=torch.float64)
    close(torch.compile(own, fullgraph=True, backend="aot_eager")(q), own(q))
