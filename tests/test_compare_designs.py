"""Whole designs in `compare`: their layers are those of `locant.nn`, and what differs besides position is said."""

import torch

from locant.compare import finding
from locant.compare.candidate import Candidate
from locant.compare.looks import look
from locant.compare.model import Classifier
from locant.compare.placement import Placement
from locant.compare.schemes import SCHEMES, LayerSpec, find
from locant.grid import Grid
from locant.masks import Windows
from locant.nn.gated import GatedAttention
from locant.nn.space_time import SpaceTimeBlock
from locant.nn.window import WindowAttention
from locant.positions.gate import GatedPosition
from locant.tasks.kinds import KINDS

CLOSE = 1e-12  # float64
DESIGNS = [scheme for scheme in SCHEMES if scheme.beside]
ITEMS = {"images": ((1, 8, 8), (2, 2)), "clips": ((3, 1, 8, 8), (1, 4, 4))}


def candidate(name: str, depth: int = 2, item: tuple[int, ...] | None = None) -> Candidate:
    kind = "images" if name in ("swin", "convit") else "clips"
    own, patch = ITEMS[kind]
    return of_kind(kind, name, own if item is None else item, patch, depth=depth)


def of_kind(
    kind: str, name: str, item: tuple[int, ...], patch: tuple[int, ...], classes: int = 5, dim: int = 24, depth: int = 2
) -> Candidate:
    torch.manual_seed(0)
    placement = Placement(KINDS[kind], find(kind, (name,))[0], item, patch, classes)
    model = Candidate.of(lambda position: Classifier(position, dim, depth, heads=4), placement)
    model.net.eval()
    return model


def design(name: str, depth: int = 2, item: tuple[int, ...] | None = None) -> torch.nn.Module:
    return candidate(name, depth, item).net.double()


def copied(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> torch.nn.Module:
    module.load_state_dict(values)
    return module.double().eval()


def test_they_take_part_by_name_alone() -> None:
    """The default run holds all but position fixed, and keeps its time."""
    assert [scheme.name for scheme in DESIGNS] == ["swin", "convit", "aim", "temporal"]
    assert not {scheme.name for scheme in DESIGNS} & {name for kind in KINDS.values() for name in kind.schemes}


def test_swin_is_window_attention_moved_in_every_second_layer() -> None:
    model = design("swin", depth=3)
    assert [layer.positions.reaches for layer in model.blocks()] == [
        (Windows((2, 2)),), (Windows((2, 2), (1, 1)),), (Windows((2, 2)),)
    ]  # fmt: skip
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    for layer, shift in zip(model.blocks(), (0, 1, 0), strict=True):
        values = {**layer.attention.state_dict(), "position.table": layer.positions[0].table}
        peer = copied(WindowAttention(24, 4, (2, 2), shift=shift), values)
        ((reach, position),) = layer.positions.passes()
        got = layer.attention(x, grid=Grid(4, 4), position=position, mask=reach)
        assert (got - peer(x, grid=Grid(4, 4))).abs().max() < CLOSE


def test_windows_are_half_a_side_and_at_most_seven() -> None:
    (scheme,) = find("images", ("swin",))

    def windows(*sides: int, layer: int = 1) -> Windows:
        ((reach, _),) = scheme.passes(LayerSpec(Grid(*sides), 24, 4, layer, 2))
        assert isinstance(reach, Windows)
        return reach

    assert windows(4, 8) == Windows((2, 4), (1, 2))
    assert windows(5, 32) == Windows((3, 7), (1, 3))
    assert windows(2, 1) == Windows((2, 1))  # one window is not moved
    assert windows(4, 8, layer=2) == Windows((2, 4))


def test_windows_stay_as_wide_on_a_larger_canvas() -> None:
    moved, how = candidate("swin").moved_to((1, 12, 10))
    assert how == "its own reach"
    assert [layer.reaches for layer in moved.blocks()] == [(Windows((2, 2)),), (Windows((2, 2), (1, 1)),)]
    assert all(layer[0].table.shape == (4, 3, 3) for layer in moved.blocks())


def test_convit_gates_all_but_the_last_sixth() -> None:
    (scheme,) = find("images", ("convit",))
    for depth, gated in {1: 1, 2: 1, 3: 2, 6: 5, 12: 10}.items():
        passes = [scheme.passes(LayerSpec(Grid(4, 4), 24, 4, layer, depth)) for layer in range(depth)]
        assert [isinstance(p, GatedPosition) for ((_, p),) in passes] == [True] * gated + [False] * (depth - gated)


def test_convits_first_layer_is_gated_attention_as_it_starts() -> None:
    layer, plain = design("convit").blocks()
    qk, v = layer.attention.qkv.weight.split((48, 24))
    assert torch.equal(v, torch.eye(24, dtype=v.dtype))
    assert not torch.equal(plain.attention.qkv.weight[48:], v)
    fresh = GatedAttention(24, 4, grid=Grid(4, 4), qkv_bias=True)
    assert torch.equal(fresh.v.weight.double(), v)
    for name, start in fresh.position.state_dict().items():
        assert torch.equal(layer.positions[0].state_dict()[name], start.double()), name
    bias = dict(zip(("qk.bias", "v.bias"), layer.attention.qkv.bias.split((48, 24)), strict=True))
    rest = {f"proj.{n}": t for n, t in layer.attention.proj.state_dict().items()}
    gate = {f"position.{n}": t for n, t in layer.positions[0].state_dict().items()}
    peer = copied(fresh, {"qk.weight": qk, "v.weight": v, **bias, **rest, **gate})
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    got = layer.attention(x, grid=Grid(4, 4), position=layer.positions[0])
    assert (got - peer(x)).abs().max() < CLOSE


def test_aims_layer_is_the_space_time_block() -> None:
    layer = design("aim").blocks()[1]
    time, space = layer.positions
    peer = SpaceTimeBlock(24, 4, frames=3, window=(2, 2), mlp_ratio=2.0)
    values = {f"{name}.{n}": t for name in ("norm1", "norm2") for n, t in getattr(layer, name).state_dict().items()}
    values |= {f"attention.{n}": t for n, t in layer.attention.state_dict().items()}
    values |= {"attention.temporal.table": time.table, "attention.position.table": space.table}
    for name, own in (("fc1", layer.mlp[0]), ("fc2", layer.mlp[2])):
        values |= {f"mlp.{name}.{n}": t for n, t in own.state_dict().items()}
    for name, where in (("T_Adapter", "time"), ("S_Adapter", "space"), ("MLP_Adapter", "mlp")):
        values |= {f"{name}.{n}": t for n, t in layer.adapters[where].state_dict().items()}
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    assert (layer(x, Grid(3, 2, 2)) - copied(peer, values)(x, grid=Grid(3, 2, 2))).abs().max() < CLOSE


def test_aim_differs_from_shared_weights_by_its_adapters_alone() -> None:
    aim, shared = design("aim"), design("shared")
    started = shared.state_dict()
    added = {name for name in aim.state_dict() if name not in started}
    assert added
    assert all(".adapters." in name for name in added)
    for name, value in aim.state_dict().items():
        assert name in added or torch.equal(value, started[name]), name
    with torch.no_grad():
        for layer in aim.blocks():
            layer.adapters["mlp"].D_fc2.weight.zero_()
            layer.adapters["space"].D_fc2.weight.zero_()
            layer.adapters["time"] = torch.nn.Identity()
    x = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64)
    assert (aim(x) - shared(x)).abs().max() < CLOSE


def test_temporal_reads_three_frames_and_no_table_of_time() -> None:
    model = design("temporal", item=(6, 1, 8, 8))
    assert model.ordered.model.receptive_field == 3
    assert [reach for layer in model.blocks() for reach, _ in layer.positions.passes()] == ["space", "space"]
    x = torch.randn(1, 24, 24, dtype=torch.float64, requires_grad=True)
    y = model.ordered(x, Grid(6, 2, 2)).unflatten(1, (4, 4))
    assert y.shape == (1, 4, 4, 24)  # frames 3 to 6
    for kept in range(4):
        (seen,) = torch.autograd.grad(y[0, kept].sum(), x, retain_graph=True)
        frames = seen.unflatten(1, (6, 4)).abs().sum((0, 2, 3)) > 0
        assert frames.tolist() == [kept <= frame <= kept + 2 for frame in range(6)]


def test_temporal_on_short_and_on_longer_clips() -> None:
    assert design("temporal", item=(1, 1, 8, 8)).ordered is None  # one frame has no order
    pair = design("temporal", item=(2, 1, 8, 8))
    assert pair.ordered.model.receptive_field == 2
    x = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64)
    assert (pair(x) - pair(x.flip(1))).abs().max() > 1e-3
    model = candidate("temporal")
    assert model.moved_to((5, 1, 8, 8))[1] == "its own reach"
    assert model.moved_to((3, 1, 12, 12))[1] == "table resized (clip)"


def test_what_all_schemes_have_starts_from_the_same_weights() -> None:
    for kind, plain in (("images", "gated"), ("clips", "none")):
        start = of_kind(kind, plain, *ITEMS[kind]).net.double().state_dict()
        for scheme in DESIGNS:
            if scheme.fits(KINDS[kind]):
                own = design(scheme.name).state_dict()
                for name, value in start.items():
                    if ".positions." not in name and not (scheme.local and name == "layers.0.attention.qkv.weight"):
                        assert torch.equal(own[name], value), (scheme.name, name)


def test_parameters_beside_the_plain_models() -> None:
    """At the default sizes: hand-counted, and told in docs/compare.md."""

    def extra(kind: str, name: str) -> int:
        item, patch = {"images": ((1, 8, 8), (2, 2)), "clips": ((3, 1, 24, 24), (1, 8, 8))}[kind]
        models = (of_kind(kind, n, item, patch, classes=8, dim=48).net for n in (name, "none"))
        own, plain = (sum(p.numel() for p in model.parameters()) for model in models)
        return own - plain

    assert extra("images", "swin") == 2 * 4 * 3 * 3
    assert extra("images", "convit") == 16 * 48 + 4 * (2 + 1 + 1)
    tables = 2 * 4 * (5 + 5 * 5)
    assert extra("clips", "aim") == tables + 2 * 3 * (2 * 48 * 12 + 12 + 48)
    assert 0 < extra("clips", "temporal") < 0.4 * 41_528  # none has 41,528


def test_flops_count_adapters_and_convolutions() -> None:
    tokens, hidden = 12, 6
    added = 2 * tokens * 2 * (3 * 2 * 24 * hidden)  # 2 layers, 3 adapters of two matrices
    assert candidate("aim").flops() - candidate("shared").flops() == added
    model = candidate("temporal")
    narrow = 12
    pointwise = 3 * narrow * narrow // 2 + (18 + 4) * narrow, 3 * narrow * narrow // 2 + (18 + 4) * 24
    space = 2 * narrow // 2 * narrow // 2 * 9 + narrow // 2 * narrow // 2 * 9  # two frames, and one
    pyramid = narrow * (narrow // 3)  # once per frame
    convolved = tokens * (24 * narrow + sum(pointwise) + 2 * space + narrow * 24) + 3 * 2 * pyramid
    plain = candidate("temporal")
    plain.net.ordered = None
    assert model.flops() - plain.flops() == 2 * convolved


def test_pictures_say_what_they_leave_out() -> None:
    told = {scheme.name: look(candidate(scheme.name))["what"] for scheme in DESIGNS}
    assert "Keys that a token does not see are drawn as 0." in told["swin"]
    assert "The learned vectors on the tokens are not drawn." in told["convit"]
    assert "The convolutions, which tell the order of frames, are not drawn." in told["temporal"]
    heads = look(candidate("swin"))["layers"][0]["heads"]
    seen = [[abs(bias) > 0 for bias in row] for row in heads[0]]
    assert seen == Windows((2, 2)).allowed(Grid(4, 4))[0, 0].tolist()
    assert [layer["layer"] for layer in look(candidate("convit"))["layers"]] == [1]


def test_the_finding_names_what_differs_by_more_than_position() -> None:
    def row(name: str, beside: str | None) -> dict:
        accuracy = {"mean": 0.5, "spread": 0.1}
        return {
            "name": name,
            "label": name,
            "tells_direction": True,
            "accuracy": accuracy,
            "beside": beside,
            "shifts": {},
        }

    task = {"kind": "images", "schemes": [row("learned", None), row("swin", "windows")], "shifts": []}
    pair = {"a": "learned", "b": "swin", "difference": 0, "low": -1, "high": 1, "verdict": "no difference shown"}
    said = finding.of_task({**task, "comparisons": [pair], "sizes": {"test": 100}})
    assert "swin differs from the rest by more than position." in said
