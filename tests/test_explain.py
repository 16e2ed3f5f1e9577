"""What `locant explain` computes is exact: rows, parts, rollout; shares and rules on heads whose answer is known."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locant import attend, hooks
from locant.attend import attention
from locant.call import Call, Schemes
from locant.explain import rules
from locant.explain.data import Head, Layer
from locant.explain.heads import heads_of
from locant.explain.measures import flat, looks, split
from locant.explain.recording import Recorder, Seen
from locant.explain.rollout import roll_out
from locant.explain.run import run
from locant.explain.scores import Reader
from locant.grid import Grid
from locant.kernels.kernel import Output
from locant.masks import Causal, Padding, Windows
from locant.nn import WindowAttention
from locant.positions.gate import GatedPosition
from locant.positions.position import Position
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from locant.positions.transformer_xl import TransformerXL
from locant.softmax import softmax

GRID = Grid(4, 6)
DTYPE = torch.float64


def called(q: Tensor, k: Tensor, **given: object) -> Call:
    """The call that attention makes of these."""
    found: list[Call] = []

    def keep(call: Call, proceed: object) -> Output:
        found.append(call)
        return torch.zeros_like(q), None

    with hooks.attending(keep):
        attention(q, k, torch.zeros_like(k), **given)  # type: ignore[call-overload]
    return found[0]


def wide(position: Position) -> Position:
    """With numbers large enough for a wrong one to show."""
    for parameter in position.parameters():
        nn.init.normal_(parameter, std=1.0)
    return position.to(DTYPE)


CASES = {
    "table": (GRID, lambda: wide(RelativeTable(GRID, 4)), None),
    "prefix rows": (Grid(4, 6, prefix=1), lambda: wide(RelativeTable(Grid(4, 6, prefix=1), 4)), None),
    "windows": (GRID, lambda: wide(RelativeTable(Grid(3, 3), 4)), Windows((3, 3), (1, 2))),
    "rotary": (GRID, lambda: Rotary(8, axes=2).to(DTYPE), None),
    "gate": (GRID, lambda: wide(GatedPosition(4)), None),
    "gate in windows": (GRID, lambda: wide(GatedPosition(4)), Windows((2, 3))),
    "order": (Grid(9), lambda: ALiBi(4).to(DTYPE), Causal()),
    "shaw": (Grid(9), lambda: wide(Shaw(4, 8, 4)), None),
    "transformer-xl": (Grid(9), lambda: wide(TransformerXL(32, 4)), Causal()),
    "padding": (Grid(9), lambda: ALiBi(4).to(DTYPE), Padding(torch.arange(9)[None] < 6)),
    "none": (GRID, lambda: None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_and_parts_are_the_dense_ones(name: str) -> None:
    torch.manual_seed(0)
    grid, build, mask = CASES[name]
    position = build()
    q, k = torch.randn(1, 4, grid.tokens, 8, dtype=DTYPE), torch.randn(1, 2, grid.tokens, 8, dtype=DTYPE)
    call = called(q, k, grid=grid, position=position, mask=mask)
    truth = attend.weights(q, k, grid=grid, position=position, mask=mask)[0]
    reader = Reader(call)
    allowed = None if mask is None else mask.allowed(grid)[0]
    # content alone, by plain arithmetic
    added = position.queries(q) if hasattr(position, "queries") else q
    logits = 8**-0.5 * added[0] @ k[0].repeat_interleave(2, 0).transpose(-1, -2)
    by_content = softmax(logits, allowed)[0]
    blind = q.clone() * 0 if position is not None and position.entrance in ("bias", "gate") else None
    found, content = torch.zeros_like(truth), torch.zeros_like(truth)
    for query in range(grid.tokens):
        block = reader.row(query)
        found[:, query, block.keys] = block.weights()[:, 0]
        own = block.by_content()
        content[:, query, block.keys] = block.weights()[:, 0] if own is None else own[:, 0]
        if blind is not None and position.entrance == "bias":  # position alone: the same with a q of zeros
            alone = attend.weights(blind, k, grid=grid, position=position, mask=mask)[0, :, query]
            assert torch.allclose(block.by_position()[:, 0], alone[:, block.keys], atol=1e-12)
    assert torch.allclose(found, truth, atol=1e-12)
    assert torch.allclose(content, by_content, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_blocks_cover_every_pair_once(name: str) -> None:
    torch.manual_seed(0)
    grid, build, mask = CASES[name]
    position = build()
    q, k = torch.randn(2, 1, 4, grid.tokens, 8, dtype=DTYPE)
    truth = attend.weights(q, k, grid=grid, position=position, mask=mask)[0]
    found, pairs = torch.zeros_like(truth), 0
    reader = Reader(called(q, k, grid=grid, position=position, mask=mask))
    for block in reader.blocks():
        found[:, block.queries[:, None], block.keys] += block.weights()
        pairs += block.queries.numel() * block.keys.numel()
    assert torch.allclose(found, truth, atol=1e-12)
    assert pairs == reader.pairs()


class Small(nn.Module):
    """Two layers of windows, the second shifted, on a map that they do not divide unless it is 6 x 6."""

    def __init__(self, border: str = "cells", shape: tuple[int, int] = (6, 6)) -> None:
        super().__init__()
        grid, self.shape = Grid(*shape), shape
        self.layers = nn.ModuleList(
            WindowAttention(8, 2, window=(3, 3), grid=grid, shift=shift, border=border) for shift in (0, 1)
        )
        for layer in self.layers:
            nn.init.normal_(layer.position.table)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize(("border", "shape"), [("cells", (6, 6)), ("roll-pad", (5, 7)), ("pad-roll", (5, 7))])
def test_outputs_keep_their_bits_and_rollout_is_the_dense_product(border: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Small(border, shape).eval()
    x = torch.randn(1, shape[0] * shape[1], 8)
    with torch.no_grad():
        before = model(x)
        recorder = Recorder(model, [(0.1, 0.1), (0.9, 0.6)], rollout=True)
        with recorder.recording():
            assert torch.equal(model(x), before)
    assert [seen.name for seen in recorder.seen] == ["layers.0", "layers.1"]
    dense = torch.eye(x.shape[1], dtype=DTYPE)
    for seen in recorder.seen:
        weights = torch.zeros_like(dense)
        for query, key, block in seen.blocks or ():
            weights[query[:, None], key] += block.double()
        if border == "cells":
            assert torch.allclose(weights.sum(1), torch.ones(len(dense), dtype=DTYPE), atol=1e-6)
        dense = (weights + torch.eye(len(dense), dtype=DTYPE)) / 2 @ dense
        for row in seen.rows:  # a row that is kept is the row of the blocks, on the map
            at = np.ravel_multi_index(row.query, shape)
            drawn = np.zeros(shape)
            drawn[tuple(slice(o, o + n) for o, n in zip(row.origin, row.both.shape[1:], strict=True))] = row.both.mean(
                0
            )
            assert np.allclose(drawn.ravel(), weights[at], atol=1e-6)
    rolled = roll_out(recorder.seen, [(0.1, 0.1), (0.9, 0.6)], recorder.pairs)
    places = [np.ravel_multi_index((int(a * shape[0]), int(b * shape[1])), shape) for a, b in ((0.1, 0.1), (0.9, 0.6))]
    assert np.allclose(rolled.maps.reshape(2, -1), dense[places].numpy(), atol=1e-6)


def _merged(name: str, grid: Grid) -> Seen:
    """A layer whose tokens attend to themselves."""
    tokens = torch.arange(grid.tokens)
    blocks = [(tokens, tokens, torch.eye(grid.tokens))]
    return Seen(name, Schemes(), None, grid, grid, 1, 8, 1.0, 1, blocks=blocks)


def test_rollout_goes_through_merged_maps_of_odd_sides() -> None:
    """7 x 6 cells merged by fours are 4 x 3: the last row is made of one row alone, for zeros are no tokens."""
    layers = [_merged("fine", Grid(7, 6)), _merged("coarse", Grid(4, 3))]
    maps = roll_out(layers, [(0.99, 0.0), (0.0, 0.5)], 0).maps
    wanted = np.zeros((2, 7, 6))
    wanted[0, 6, :2], wanted[1, :2, 2:4] = 1 / 2, 1 / 4
    assert np.array_equal(maps, wanted)
    assert "can't follow" in roll_out([_merged("fine", Grid(7, 6)), _merged("coarse", Grid(5, 3))], [()], 0).reason


def test_shares_of_heads_that_are_made_by_hand() -> None:
    """Pure position, pure content, and a mixture of uncorrelated parts by a known factor."""
    torch.manual_seed(0)
    n = 64
    content = torch.randn(n, dtype=DTYPE)
    content = (content - content.mean()) / content.std()
    position = torch.randn(n, dtype=DTYPE)
    position = position - position.mean()
    position = position - (position @ content) / (content @ content) * content
    position = position / position.std()
    q = torch.zeros(1, 3, n, 1, dtype=DTYPE)
    q[0, 1], q[0, 2] = 1.0, 2.0
    table = RelativeTable(Grid(n), 3).to(DTYPE)
    with torch.no_grad():
        table.table.zero_()
        for head, factor in ((0, 1.0), (2, 1.0)):
            table.table[head, n - 1 - torch.arange(n)] = factor * position  # the offset of query 0 to key j is -j
    k = content.reshape(1, 1, n, 1).expand(1, 3, n, 1)
    call = called(q, k.contiguous(), grid=Grid(n), position=table, scale=1.0)
    found = split(Reader(call).row(0), Grid(n), Grid(n))
    assert np.allclose(found[:2, 0], (0, 1))
    assert np.allclose(found[:2, 1], (1, 0))
    assert np.allclose(found[:2, 2], (0.8, 0.2))  # 2² to 1²
    assert np.allclose(found[2, 2], 0, atol=1e-12)
    assert np.isclose(found[3, 1], 0)
    assert found[3, 0] > 0.1


def seen_of(position: Position, grid: Grid) -> Seen:
    from locant.call import by_entrance

    return Seen("made", by_entrance(position), None, grid, grid, position.heads, 8, 8**-0.5, 1)  # type: ignore[arg-type]


def layer_of(position: Position, grid: Grid, entrance: str = "bias") -> Layer:
    return Layer(0, "made", "made", entrance, grid.shape, None, heads_of(seen_of(position, grid)))


def with_table(*maps: np.ndarray) -> RelativeTable:
    grid = Grid(*((size + 1) // 2 for size in maps[0].shape))
    table = RelativeTable(grid, len(maps))
    with torch.no_grad():
        table.table.copy_(torch.from_numpy(np.stack(maps)))
    return table


def test_directions_are_those_of_keys_seen_from_the_query() -> None:
    """A table that rewards offsets query - key = (2, 0) looks up, one of (0, -2) looks right."""
    up, right = np.zeros((5, 5)), np.zeros((5, 5))
    up[4, 2], right[2, 0] = 9.0, 9.0
    layer = layer_of(with_table(up, right), Grid(3, 3))
    kinds = {(f.kind, f.head) for f in rules.find([layer]) if f.kind in ("up", "down", "left", "right")}
    assert kinds == {("up", 0), ("right", 1)}
    assert layer.heads[0].map is not None
    weights = flat(layer.heads[0].map)
    assert np.isclose(weights.sum(), 1)
    far, uneven, direction = looks(weights)
    assert far == pytest.approx(2, abs=0.01)
    assert direction == pytest.approx((-2, 0), abs=0.01)
    assert 0 <= uneven <= 1


def test_mirror_duplicate_dead_and_saturated() -> None:
    rng = np.random.default_rng(0)
    odd = rng.normal(size=(5, 5))
    even = odd + odd[:, ::-1]
    kinds = lambda *maps: {(f.kind, f.head) for f in rules.find([layer_of(with_table(*maps), Grid(3, 3))])}  # noqa: E731
    assert ("mirror", None) in kinds(even, 2 * even)
    assert ("duplicate", 0) in kinds(even, 2 * even)
    found = kinds(odd, even)
    assert not {"mirror", "duplicate", "dead", "saturated"} & {kind for kind, _ in found}
    peak = np.zeros((5, 5))
    peak[1, 3] = 20.0
    assert ("saturated", 1) in kinds(odd, peak)
    assert ("dead", 1) in kinds(odd, 0.001 * odd)
    broken = odd.copy()
    broken[0, 0] = np.nan
    assert ("unknown", 0) in kinds(broken, odd)


def test_positional_needs_half() -> None:
    heads = (Head(0, position_share=0.49), Head(1, position_share=0.51), Head(2, gate=0.6))
    found = rules.find([Layer(4, "made", "made", "bias", (3, 3), None, heads)])
    assert [(f.kind, f.head, f.value) for f in found] == [("positional", 2, 0.6)]
    assert found[0].text == "Heads 1 and 2 of layer 4 are 51 to 60 % position."
    (one,) = rules.find([Layer(4, "made", "made", "bias", (3, 3), None, heads[:2])])
    assert one.text == "Head 1 of layer 4 is 51 % position."


def test_layers_where_position_says_nothing_are_one_sentence_and_not_positional() -> None:
    """A share of next to nothing is no rule of position, however large it is."""
    table = with_table(*(0.001 * np.random.default_rng(0).normal(size=(2, 5, 5))))
    layers = [dataclasses.replace(layer_of(table, Grid(3, 3)), index=index) for index in (0, 1, 3)]
    shares = [tuple(dataclasses.replace(h, position_share=0.9) for h in layer.heads) for layer in layers]
    found = rules.find([dataclasses.replace(one, heads=heads) for one, heads in zip(layers, shares, strict=True)])
    assert [f.kind for f in found] == ["dead"]
    assert found[0].text.startswith("Position says nothing in layers 0 to 1 and 3: no head moves even 0.1 %")


def test_a_rotary_map_is_the_mean_cosine_at_the_offset() -> None:
    rotary = Rotary(8, axes=1)
    x = torch.ones(1, 1, 9, 8)
    turned = rotary(x, Grid(9))[0, 0]
    seen = Seen("made", called(x, x, position=rotary).schemes, None, Grid(5), Grid(5), 1, 8, 1.0, 1)
    (head,) = heads_of(seen)
    assert head.map is not None
    assert head.map[4 + 3] == pytest.approx(float(turned[3] @ turned[0]) / 8, abs=1e-6)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a model that Python runs.*torch\.compile.*_orig_mod"):
        Recorder(torch.compile(Small()))  # type: ignore[arg-type]


def test_recording_keeps_nothing_that_a_module_lets_go() -> None:
    """The stack is walked for a layer's name; a copy of a frame's variables would hold them until it returns."""
    gone = []

    class Lets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small()

        def forward(self, x: Tensor) -> Tensor:
            large = torch.zeros(1000)
            seen = weakref.ref(large)
            out = self.inner(x)
            del large
            gone.append(seen() is None)
            return out

    with torch.no_grad(), Recorder(Lets()).recording():
        Lets()(torch.randn(1, 36, 8))
    assert gone == [True]


def test_recording_ends_with_its_context() -> None:
    model = Small().eval()
    recorder = Recorder(model)
    with recorder.recording():
        model(torch.randn(1, 36, 8))
    model(torch.randn(1, 36, 8))
    assert len(recorder.seen) == 2


def test_run_on_a_module_and_on_a_scheme() -> None:
    torch.manual_seed(0)
    model = Small().train()
    found = run(model, torch.randn(1, 36, 8))
    assert model.training
    data = found.data
    assert [layer.name for layer in data.layers] == ["layers.0", "layers.1"]
    assert data.input is not None
    assert len(data.input.queries) == len(data.layers[0].rows) == 9
    share = [head.position_share + head.content_share for layer in data.layers for head in layer.heads]
    assert np.allclose(share, 1)
    assert run("relative:4x4").data.notes[0].startswith("The numbers are random")


@pytest.mark.parametrize(
    ("what", "given", "sentence"),
    [
        ("nothing", None, r"MODEL needs timm:NAME.*got 'nothing'.*Schemes are"),
        ("relative:4y4", None, "sizes of a grid with x between them; got '4y4'. Write relative:14x14"),
        ("aim:4x4", None, "made for grids of 3 axes; got '4x4'"),
        ("relative:4x4", "photo.jpg", "an input needs a model that takes it"),
    ],
)
def test_bad_input_is_a_sentence(what: str, given: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(what, given)


@pytest.mark.plain
def test_a_model_of_another_type_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="needs a scheme, a model or a name of one; got int"):
        run(7)  # type: ignore[arg-type]
