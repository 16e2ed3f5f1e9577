"""Swin and Swin v2 as models: windows as a partition, sizes, features, what shifts and what drops, files, graphs."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from near import apart_by_size
from torch import Tensor

from locant import Grid
from locant.models import swin as builders
from locant.models import swin_v2 as builders_v2
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.nn import Block, WindowAttention
from locant.resizing import resize_table

KINDS = (Swin, SwinV2)


def small(kind: type[Swin] = Swin, **given: object) -> Swin:
    """Two stages of an unshifted and a shifted block on windows of 4; every number drawn so that it shows."""
    options = {"dim": 8, "depths": (2, 2), "heads": (1, 2), "window": 4, "img_size": None, "num_classes": 5}
    model = kind(**(options | given))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if ".position." in name else 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(std=spread)
    return model.eval()


def pictures(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size)


# Sizes (row 12)


@pytest.mark.row(12)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", ["cells", "pad-roll", "roll-pad"])
def test_one_model_runs_at_many_sizes(kind: type[Swin], border: str) -> None:
    """Odd sizes, maps smaller than windows, and lines among them."""
    model = small(kind, border=border, small="per-axis")
    for size in ((64, 24), (29, 50), (4, 4), (3, 17)):
        rows, columns = (-(-n // 4) for n in size)
        first, second = model.features(pictures(*size))
        assert first.shape == (2, 8, rows, columns)
        assert second.shape == (2, 16, -(-rows // 2), -(-columns // 2))
        assert bool(second.isfinite().all())


@pytest.mark.row(12)
@pytest.mark.parametrize("border", ["cells", "pad-roll"])
def test_at_each_size_it_is_the_model_that_was_built_for_it(border: str) -> None:
    """Which has smaller tables where a map is smaller than the window: the centres of the larger ones."""
    rules = {"border": border, "small": "per-axis"}
    model = small(**rules)
    for size in ((36, 20), (8, 40)):
        built, x = small(img_size=size, **rules), pictures(*size)
        state, wanted = model.state_dict(), built.state_dict()
        for name in state:
            if name.endswith("table"):
                ends = [(n - m) // 2 for n, m in zip(state[name].shape[1:], wanted[name].shape[1:], strict=True)]
                centre = tuple(slice(end, n - end) for end, n in zip(ends, state[name].shape[1:], strict=True))
                state[name] = state[name][(slice(None), *centre)]
        built.load_state_dict(state)
        assert built.layers[1].blocks[0].attention.position.grid.shape != (4, 4)
        assert apart_by_size(model(x), built(x)) <= 1e-5


def test_a_batch_is_its_pictures_one_by_one() -> None:
    model, x = small().double(), pictures(36, 52, batch=3).double()
    assert apart_by_size(torch.cat([model(one[None]) for one in x]), model(x)) <= 1e-12
    assert model(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_stages(kind: type[Swin]) -> None:
    model, x = small(kind), pictures(40, 28)
    tokens, grid = model.patch_embed(x)
    found = []
    for stage in model.layers:
        for block in stage.blocks:
            tokens = block(tokens, grid=grid)
        found.append(tokens.transpose(1, 2).unflatten(2, grid.shape))
        last = tokens
        if stage.downsample is not None:
            tokens, grid = stage.downsample(tokens, grid)
    assert all(torch.equal(a, b) for a, b in zip(model.features(x), found, strict=True))
    assert torch.equal(model.features(x, [-1])[0], found[1])
    normed = model.norm(last)
    assert apart_by_size(model.forward_features(x).flatten(2).transpose(1, 2), normed) <= 1e-6
    assert apart_by_size(model(x), model.head(normed.mean(1))) <= 1e-5
    bare = small(kind, num_classes=0)
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("head")})
    assert apart_by_size(bare(x), normed.mean(1)) <= 1e-5


# Equivariance (row 51)


@pytest.mark.row(51)
@pytest.mark.parametrize("kind", KINDS)
def test_moving_a_picture_by_whole_windows_moves_its_features(kind: type[Swin]) -> None:
    """With one block per stage none is shifted: a window of the last stage is 4 · 4 · 2 pixels wide."""
    model, x = small(kind, depths=(1, 1)).double(), pictures(64, 96).double()
    moved = x.roll((32, -64), (2, 3))
    assert apart_by_size(model.features(moved)[1], model.features(x)[1].roll((4, -8), (2, 3))) <= 1e-12
    assert apart_by_size(model(moved), model(x)) <= 1e-12
    near = x.roll((16, 0), (2, 3))
    assert apart_by_size(model.features(near)[1], model.features(x)[1].roll((2, 0), (2, 3))) > 1e-2


@pytest.mark.row(51)
@pytest.mark.parametrize("module", [WindowAttention])
def test_shifted_windows_move_along_inside_the_border(module: type[WindowAttention]) -> None:
    attention = module(8, 2, (3, 3), shift=1).double()
    torch.nn.init.normal_(attention.position.table)
    canvas = torch.randn(1, 15, 15, 8, dtype=torch.float64)
    here, there = (canvas[:, a : a + 12, b : b + 12].flatten(1, 2) for a, b in ((3, 0), (0, 3)))
    here, there = (attention(x, grid=Grid(12, 12)).unflatten(1, (12, 12)) for x in (here, there))
    assert apart_by_size(here[:, 1:7, 4:10], there[:, 4:10, 1:7]) <= 1e-12
    assert apart_by_size(here[:, 1:7, 4:10], there[:, 3:9, 1:7]) > 1e-2


# Training


@pytest.mark.row(13)
def test_drop_path_grows_block_by_block() -> None:
    model = Swin(dim=8, depths=(2, 3, 1), heads=(1, 2, 4), drop_path_rate=0.5)
    rates = [block.drop_path for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [block.attention.shift for stage in model.layers for block in stage.blocks] == [
        (0, 0), (3, 3), (0, 0), (3, 3), (0, 0), (0, 0),
    ]  # fmt: skip
    assert Swin(dim=8, depths=(1,), heads=(1,)).layers[0].blocks[0].drop_path == 0


@pytest.mark.parametrize("kind", KINDS)
def test_both_branches_are_dropped_and_only_in_training(kind: type[Swin]) -> None:
    """Sample by sample x + path(attention) + path(perceptron), each 0 or 1 / (1 - p) of the branch."""
    block = small(kind, depths=(2,), heads=(1,), drop_path_rate=0.6).layers[0].blocks[1]
    grid, x = Grid(4, 4), torch.randn(64, 16, 8)
    evaluated = block(x, grid=grid)
    block.train()
    out = block(x, grid=grid)
    kept = copy.deepcopy(block)
    kept.eval()

    def branch(which: str, y: Tensor) -> Tensor:
        first = which == "attention"
        norm, inside = (block.norm1, lambda z: block.attention(z, grid=grid)) if first else (block.norm2, block.mlp)
        return inside(norm(y)) if kind is Swin else norm(inside(y))

    options = []
    for a, b in itertools.product((0, 1 / 0.4), repeat=2):
        y = x + a * branch("attention", x)
        options.append(y + b * branch("mlp", y))
    errors = torch.stack([(out - y).abs().amax((1, 2)) for y in options])
    assert float(errors.detach().amin(0).max()) <= 1e-4
    assert sorted(set(errors.argmin(0).tolist())) == [0, 1, 2, 3]
    assert torch.equal(kept(x, grid=grid), evaluated)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind: type[Swin]) -> None:
    """What is dropped is dropped again when a block is computed again."""
    model, x = small(kind, drop_path_rate=0.5, proj_drop_rate=0.1).train(), pictures(36, 36)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        found.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    assert model.layers[0].checkpointing
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_what_is_not_decayed() -> None:
    assert small().no_weight_decay() == {
        f"layers.{s}.blocks.{b}.attention.position.table" for s in range(2) for b in range(2)
    }
    names = {name.split("attention.")[1] for name in small(SwinV2).no_weight_decay()}
    assert names == {"logit_scale", *(f"position.mlp.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight"))}


def test_a_block_of_swin_v2_starts_as_the_identity() -> None:
    block = SwinV2(dim=8, depths=(1,), heads=(1,)).layers[0].blocks[0]
    x = torch.randn(1, 49, 8)
    assert torch.equal(block(x, grid=Grid(7, 7)), x)
    assert isinstance(block, Block)


# Other windows and sizes


@pytest.mark.row(12)
def test_tables_are_made_for_the_pictures_they_are_built_for() -> None:
    """Window 7 on 112 × 224: the second stage has 7 × 14 cells. "joint" shrinks a square, "pad" nothing."""
    for rule, golden in (("joint", (3, 3)), ("per-axis", (3, 6)), ("pad", (6, 6))):
        model = Swin(dim=8, depths=(1, 1), heads=(1, 2), window=6, img_size=(24, 64), small=rule)
        assert [s.blocks[0].attention.position.grid.shape for s in model.layers][1] == golden


def test_resized_tables_are_interpolated_and_the_rest_is_kept() -> None:
    model = small(window=(4, 2), img_size=(32, 16))
    wide = model.resized(window=(6, 5), img_size=(96, 80))
    before, after = model.state_dict(), wide.state_dict()
    for name, tensor in before.items():
        if not name.endswith("table"):
            assert torch.equal(after[name], tensor)
            continue
        assert torch.equal(after[name], resize_table(tensor, (11, 9), "linear"))
    assert [block.attention.shift for block in wide.layers[0].blocks] == [(0, 0), (3, 2)]
    assert (wide.window, wide.img_size) == ((6, 5), (96, 80))
    assert model.window == (4, 2)
    x = pictures(32, 16)
    assert torch.equal(model.resized(window=(4, 2), method="bicubic")(x), model(x))
    assert wide(pictures(96, 80)).shape == (2, 5)


def test_a_resized_swin_v2_measures_by_the_windows_it_was_built_for() -> None:
    model = small(SwinV2, window=4, img_size=32)
    wide = model.resized(window=8, img_size=64)
    for before, after in zip(model.layers, wide.layers, strict=True):
        a, b = (stage.blocks[1].attention.position for stage in (before, after))
        assert (a.grid.shape, b.grid.shape) == ((4, 4), (8, 8))
        assert torch.allclose(b(Grid(8, 8))[:, :4, :4], a(Grid(4, 4))[:, :4, :4])
    x = pictures(24, 40)
    assert torch.equal(model.resized()(x), model(x))


# Precision, files, graphs (rows 53 to 55)


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("border", ["cells", "pad-roll", "roll-pad"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_finite(kind: type[Swin], border: str, dtype: torch.dtype) -> None:
    model = small(kind, border=border).to(dtype)
    out = model(pictures(36, 28).to(dtype))
    assert out.dtype == dtype
    assert bool(out.isfinite().all())
    model.float()
    with torch.autocast("cpu", dtype):
        out = model(pictures(36, 28))
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.row(54)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_learned_tensors_only(kind: type[Swin]) -> None:
    model, x = small(kind), pictures(36, 28)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.row(55)
@pytest.mark.compiled
def test_compiled_it_is_the_same_at_two_sizes() -> None:
    """One graph per size: the grid is a constant in it."""
    model = small(depths=(2,), heads=(2,), window=3).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((16, 16), (20, 13)):
        x = pictures(*size).double()
        assert apart_by_size(compiled(x), model(x)) <= 1e-12


@pytest.mark.row(55)
@pytest.mark.compiled
def test_exported_it_takes_any_batch() -> None:
    model = small(SwinV2, depths=(2,), heads=(2,), window=3)
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(model, (pictures(16, 16),), dynamic_shapes={"x": {0: batch}})
    more = pictures(16, 16, batch=3)
    assert apart_by_size(program.module()(more), model(more)) <= 1e-5


# Builders and what is refused


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_builders_agree_with_each_other(size: str) -> None:
    first, second = getattr(builders, f"swin_{size}"), getattr(builders_v2, f"swinv2_{size}")
    assert inspect.signature(first).parameters.keys() == inspect.signature(second).parameters.keys()
    with torch.device("meta"):
        a, b = first(), second(window=16)
    assert [s.blocks[0].attention.heads for s in a.layers] == [s.blocks[0].attention.heads for s in b.layers]
    assert [s.blocks[0].attention.position.grid.shape for s in b.layers] == [(16, 16)] * 3 + [(8, 8)]
    assert [len(s.blocks) for s in a.layers] == [2, 2, 6 if size == "tiny" else 18, 2]


@pytest.mark.plain
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: small(heads=(1,)), r"Swin needs as many `depths` as `heads`.*depths=\(2, 2\), heads=\(1,\).*Swin-T"),
        (lambda: small(num_classes=-1), r"`num_classes` of at least 0; got .*num_classes=-1"),
        (lambda: small(patch=0), r"patch=0"),
        (lambda: small(window=(7, 7, 7)), r"Swin needs `window` as one number.*got \(7, 7, 7\). Write window=\(7, 9\)"),
        (lambda: small(SwinV2, img_size=0), r"SwinV2 needs `img_size` as one number of at least 1.*got 0"),
        (lambda: small(heads=(3, 3)), r"`dim` that its `heads` divide.*dim=8, heads=3"),
        (lambda: small(border="pad"), r"`border` out of 'cells'.*got 'pad'"),
        (lambda: small().features(pictures(32, 32), (0, 2)), r"`stages` out of 0 to 1; got \[0, 2\]. Leave them out"),
        (lambda: small()(torch.zeros(1, 1, 32, 32)), r"\[batch, 3, height, width\]; got \[1, 1, 32, 32\]"),
        (lambda: small(patch_border="refuse")(pictures(30, 32)), r"\(4, 4\) divides; got \(30, 32\)"),
        (
            lambda: small(img_size=16)(pictures(40, 64)),
            r"Swin on pictures of 40 × 64 needs tables for windows of \(4, 4\) in stage 1; those there reach \(2, 2\), "
            r"made for img_size=\(16, 16\). Use model.resized\(img_size=\(40, 64\)\)",
        ),
        (lambda: small().resized(window=8, method="cubic"), r"method out of .*got 'cubic'"),
    ],
)  # fmt: skip
def test_what_is_refused(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
