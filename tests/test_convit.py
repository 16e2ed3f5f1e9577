"""ConViT against slow formulas: features of pairs, the whole model by hand on any rectangle, how far heads look."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from convits import DIM, HEADS, PATCH, built, by_hand, features, pictures, published_weight
from near import close
from redrawing import redraw
from torch import Tensor

from locant import GatedPosition, Grid, checkpoints, weights
from locant.checkpoints.convit import KEY_MINUS_QUERY
from locant.models.convit import ConViT, convit_tiny
from locant.models.nonlocality import attention_map, non_locality
from locant.nn import GatedAttention, WindowAttention

# --- the features of a pair -------------------------------------------------------------------------------------------


def logits(grid: Grid) -> Tensor:
    """dx, dy and dx² + dy² of key - query, read off a gate of three heads that weigh one of them each."""
    gate = GatedPosition(3).double()
    with torch.no_grad():
        gate.direction.copy_(torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]))
        gate.spread.copy_(torch.tensor([0.0, 0.0, 1.0]))
    return gate.values(grid, grid).dense(grid, grid).detach()


@pytest.mark.row(17)
@pytest.mark.row(56)
def test_features_of_two_by_two() -> None:
    """N × N relative offsets, key - query, x before y, with signs: neither absolute, nor N · 2, nor distances."""
    dx, dy, square = logits(Grid(2, 2)).int().tolist()
    assert dx == [[0, 1, 0, 1], [-1, 0, -1, 0], [0, 1, 0, 1], [-1, 0, -1, 0]]
    assert dy == [[0, 0, 1, 1], [0, 0, 1, 1], [-1, -1, 0, 0], [-1, -1, 0, 0]]
    assert square == [[0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 0, 1], [2, 1, 1, 0]]


@pytest.mark.row(17)
@pytest.mark.row(56)
def test_features_of_the_centre_of_three_by_three() -> None:
    """The third is the squared distance, not a mixture of the other two."""
    dx, dy, square = logits(Grid(3, 3))[:, 4].int().tolist()
    assert dx == [-1, 0, 1] * 3
    assert dy == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert square == [2, 1, 2, 1, 0, 1, 2, 1, 2]


@pytest.mark.row(17)
@pytest.mark.row(20)
@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (3, 5), (5, 3), (1, 4), (1, 1)])
def test_features_of_rectangles(rows: int, columns: int) -> None:
    assert torch.equal(logits(Grid(rows, columns)).permute(1, 2, 0), features(rows, columns))


@pytest.mark.row(18)
def test_the_positional_half_has_no_batch_and_no_pairs() -> None:
    """Published code expands N × N × 3 to the batch; here there are heads · (H² + W²) numbers in all."""
    values = GatedPosition(9).values(Grid(14, 10), Grid(14, 10))
    assert [tuple(line.shape) for line in values.logits] == [(9, 14, 14), (9, 10, 10)]


@pytest.mark.row(18)
@pytest.mark.row(53)
@pytest.mark.row(56)
def test_two_softmaxes_are_mixed_and_rows_sum_to_one() -> None:
    """Two maps with a softmax each, then a convex mixture: not one softmax over a sum, nor a change of shape."""
    grid, gate = Grid(14, 14), redraw(GatedPosition(HEADS)).double()
    q, k = torch.randn(2, 2, HEADS, grid.tokens, 3, dtype=torch.float64)
    share = gate.gate.sigmoid()[:, None, None]
    content, place = q @ k.mT * 3**-0.5, features(14, 14) @ published_weight(gate).T
    mixed = (1 - share) * content.softmax(-1) + share * place.permute(2, 0, 1).softmax(-1)
    found = weights(q, k, grid=grid, position=gate)
    close(found, mixed)
    assert float((found - (content + place.permute(2, 0, 1)).softmax(-1)).detach().abs().max()) > 0.05
    close(found.sum(-1), torch.ones(2, HEADS, grid.tokens, dtype=torch.float64))
    for kind in (torch.float16, torch.bfloat16):
        half = weights(q.to(kind), k.to(kind), grid=grid, position=copy.deepcopy(gate).to(kind)).double()
        # 196 weights of at most 1, each rounded once
        assert float((half.sum(-1) - 1).detach().abs().max()) <= 196 * torch.finfo(kind).eps / 2


@pytest.mark.row(51)
def test_the_positional_map_depends_on_offsets_alone() -> None:
    gate = redraw(GatedPosition(HEADS)).double()
    q, k = torch.randn(2, 1, HEADS, 15, 3, dtype=torch.float64)
    close(weights(q, k, grid=Grid(3, 5, origin=(7, -2)), position=gate), weights(q, k, grid=Grid(3, 5), position=gate))


@pytest.mark.row(22)
def test_gradients_of_the_gate() -> None:
    """gradcheck in float64, with every share between shut and open; finite even where a gate has saturated."""
    module = redraw(GatedAttention(DIM, HEADS, grid=Grid(2, 3)).double())
    x = torch.randn(1, 6, DIM, dtype=torch.float64, requires_grad=True)
    names = ("gate", "direction", "spread")

    def run(x: Tensor, *position: Tensor) -> Tensor:
        return torch.func.functional_call(module, {f"position.{n}": p for n, p in zip(names, position, strict=True)}, x)

    position = [module.position.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (x, *position))
    with torch.no_grad():
        module.position.gate.copy_(torch.tensor([-800.0, 800.0, 0.0, 1.0]))
    (by_gate,) = torch.autograd.grad(module(x).square().sum(), [module.position.gate])
    assert by_gate.isfinite().all()
    assert by_gate[2:].abs().min() > 0


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.row(20)
@pytest.mark.row(21)
@pytest.mark.row(56)
@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (3, 2)])
@pytest.mark.parametrize("late", [0, 2, 3])
def test_the_model_is_its_formula_on_rectangles(rows: int, columns: int, late: int) -> None:
    """The class token joins in front of block `late`. 2 × 8 is 16 patches as 4 × 4 is; the published code mixes them
    up, and refuses other rectangles, which its readers must be told."""
    if late != 2 and columns == 8:
        rows = 1  # the loops are slow
    model, images = built(rows, columns, local_up_to_layer=late), pictures(rows, columns)
    found = model(images)
    close(found, by_hand(model, images, rows, columns))
    if (rows, columns) == (2, 8):
        square = copy.deepcopy(model)
        for block in square.blocks[:late]:  # as published: sides of sqrt(16)
            block.attention.register_forward_pre_hook(
                lambda module, args, kwargs: (args, kwargs | {"grid": Grid(4, 4)}), with_kwargs=True
            )
        assert float((square(images) - found).detach().abs().max()) > 1e-3


@pytest.mark.row(21)
def test_only_plain_blocks_see_the_class_token() -> None:
    model, images, seen = built(2, 3), pictures(2, 3), []
    for block in model.blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args[0], kwargs["grid"])), with_kwargs=True
        )
    model(images)
    first = seen[:]
    with torch.no_grad():
        model.cls_token.add_(1.0)
    seen.clear()
    model(images)
    assert [grid for _, grid in seen] == [Grid(2, 3)] * 2 + [Grid(2, 3, prefix=1)] * 2
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first[:2], seen[:2], strict=True))
    assert torch.equal(first[2][0][:, 1:], seen[2][0][:, 1:])
    assert not torch.equal(first[3][0], seen[3][0])


def stretched(rows: Tensor, size: int) -> Tensor:
    """Linear between neighbours along the first axis, end points on end points."""
    found = []
    for i in range(size):
        at = i * (len(rows) - 1) / (size - 1)
        low = min(int(at), len(rows) - 2)
        found.append(rows[low] + (at - low) * (rows[low + 1] - rows[low]))
    return torch.stack(found)


@pytest.mark.row(20)
def test_another_size_is_a_model_of_its_own() -> None:
    """pos_embed by the named method, all else as it was; back from a size that holds every old place it is equal."""
    model = built(2, 3)
    larger = model.resized(img_size=(3 * PATCH, 5 * PATCH))
    table = stretched(model.pos_embed.table.unflatten(0, (2, 3)), 3)
    close(larger.pos_embed.table, stretched(table.transpose(0, 1), 5).transpose(0, 1).flatten(0, 1))
    for name, value in model.state_dict().items():
        assert name == "pos_embed.table" or torch.equal(larger.state_dict()[name], value), name
    images = pictures(3, 5, batch=1)
    close(larger(images), by_hand(larger, images, 3, 5))
    back, images = larger.resized(img_size=(2 * PATCH, 3 * PATCH), method="linear"), pictures(2, 3)
    close(back(images), model(images))
    other = model.resized(img_size=(3 * PATCH, 5 * PATCH), method="bicubic")
    assert not torch.equal(other.pos_embed.table, larger.pos_embed.table)


def test_without_pos_embed_any_size_may_come() -> None:
    model, images = built(2, 2, pos_embed=False), pictures(3, 4, batch=1)
    assert not any(name.startswith("pos_embed") for name in model.state_dict())
    other = built(3, 4)
    other.load_state_dict(model.state_dict() | {"pos_embed.table": torch.zeros(12, DIM)})
    close(model(images), by_hand(other, images, 3, 4))


def test_the_published_sizes_and_the_start() -> None:
    model = convit_tiny(img_size=(32, 48), num_classes=3, drop_path_rate=0.1)
    gated, plain = model.blocks[9].attention, model.blocks[10].attention
    assert torch.equal(gated.v.weight, torch.eye(192))
    assert (gated.qk.weight.shape, gated.qk.bias, plain.qkv.bias) == ((384, 192), None, None)
    assert 0.019 < float(plain.qkv.weight.detach().std()) < 0.021
    assert float(model.blocks[0].mlp.fc1.bias.detach().abs().max()) == 0.0
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert model.no_weight_decay() == {"pos_embed.table", "cls_token"}
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 3)
    assert convit_tiny(img_size=32, num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 192)
    assert not torch.equal(convit_tiny(img_size=32, local_init=False).blocks[0].attention.v.weight, torch.eye(192))


def test_dropout_and_drop_path_act_in_training_alone() -> None:
    given = {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3}
    model, plain, images = built(2, 3, **given), built(2, 3), pictures(2, 3)
    plain.load_state_dict(model.state_dict())
    assert float((model(images) - plain(images)).detach().abs().max()) > 1e-3
    close(model.eval()(images), plain(images))


# --- checkpoints, precision, graphs, wrong arguments ------------------------------------------------------------------


@pytest.mark.row(54)
@pytest.mark.parametrize("layout", ["official", "timm"])
def test_published_names_there_and_back(layout: str) -> None:
    """What is dropped is named: the dead pos_proj.bias, and indices that some files hold. The rest is one to one."""
    model, other = built(2, 3, qkv_bias=True), built(2, 3, qkv_bias=True)
    theirs = checkpoints.export(model, layout)
    assert theirs["pos_embed"].shape == (1, 6, DIM)
    assert torch.equal(theirs["blocks.1.attn.pos_proj.weight"], published_weight(model.blocks[1].attention.position))
    dead = {f"blocks.{i}.attn.{name}": torch.zeros(HEADS) for i in (0, 1) for name in ("pos_proj.bias", "rel_indices")}
    report = checkpoints.load(other, theirs | dead, layout=layout)
    assert (report.exact, set(report.dropped)) == (True, set(dead))
    assert set(other.state_dict()) == {name for name, _ in other.named_parameters()}
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    part = torch.arange(6.0).reshape(2, 3)
    assert [x.tolist() for x in KEY_MINUS_QUERY.ours((part,), ((2, 2), (2,)))] == [[[-1, -0.0], [-4, -3]], [2, 5]]


@pytest.mark.plain
@pytest.mark.row(54)
def test_a_checkpoint_of_another_local_up_to_layer_is_told() -> None:
    """Published weights have 10; the constructor's own default is 3, and users were left with a list of keys."""
    theirs = checkpoints.export(built(2, 3), "timm")
    with pytest.raises(ValueError, match=r"blocks\.2\.attn"):
        checkpoints.load(built(2, 3, local_up_to_layer=3), theirs, layout="timm")


@pytest.mark.row(53)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_large_map(kind: torch.dtype) -> None:
    """14 × 14 reaches a squared distance of 338, which bfloat16 cannot count to: the map is built in float32."""
    model, images = built(14, 14, local_init=True).to(kind), pictures(14, 14).to(kind)
    out = model(images)
    assert (out.dtype, bool(out.isfinite().all())) == (kind, True)
    exact = copy.deepcopy(model).double()(images.double()).detach()
    # a chain of at most 16 roundings per block, of numbers no larger than a few
    assert float((out.double() - exact).detach().abs().max()) <= 64 * torch.finfo(kind).eps * float(exact.abs().max())
    gate = copy.deepcopy(model.blocks[0].attention.position)
    shown = gate.values(Grid(14, 14), Grid(14, 14)).dense(Grid(14, 14), Grid(14, 14))
    close(shown.double(), (features(14, 14) @ published_weight(gate.double()).T).permute(2, 0, 1), 1e-6)


@pytest.mark.row(53)
def test_gradcheck_of_the_whole_model() -> None:
    model = built(2, 2, depth=2, local_up_to_layer=1, num_classes=2)
    images = pictures(2, 2, batch=1).requires_grad_()
    names = ("cls_token", "pos_embed.table", "blocks.0.attention.position.gate", "blocks.0.attention.qk.weight")

    def run(images: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), images)

    values = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (images, *values), fast_mode=True)


@pytest.mark.row(54)
def test_copies_and_pickles_compute_the_same() -> None:
    model, images = built(2, 3), pictures(2, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))


@pytest.mark.compiled
@pytest.mark.row(55)
def test_one_graph_and_an_exported_program() -> None:
    model, images = built(2, 3), pictures(2, 3)
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(images), expected)
    found, wanted = (
        torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (compiled(images), expected)
    )
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    close(torch.export.export(model.eval(), (images,)).module()(images), expected)


@pytest.mark.plain
@pytest.mark.row(21)
@pytest.mark.parametrize("late", [4, 12, -1])
def test_a_class_token_that_never_joins_is_refused(late: int) -> None:
    """Published code builds it, and classifies by the first patch."""
    with pytest.raises(
        ValueError, match=f"`local_up_to_layer` of at least 0 and below `depth`.*{late}, depth=4. Use .*=2"
    ):
        ConViT(depth=4, local_up_to_layer=late)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: convit_tiny(img_size=(224, 230)), r"that `patch` divides.*\(224, 230\), patch=16. Use .*\(224, 224\)"),
        (lambda: convit_tiny(proj_drop_rate=1.0), r"`proj_drop_rate` of at least 0 and below 1; got 1.0"),
        (lambda: convit_tiny(drop_path_rate=-0.1), r"`drop_path_rate` of at least 0 and below 1; got -0.1"),
        (lambda: built(2, 3)(pictures(3, 2)), r"for images of 4 × 6; got 6 × 4.*model.resized\(img_size=\(6, 4\)\)"),
        (lambda: built(4, 4)(pictures(2, 2)), r"positions for images of 8 × 8; got 4 × 4"),
        (lambda: built(2, 2).resized(img_size=5), r"`img_size` that `patch` divides.*got img_size=5, patch=2"),
        (lambda: built(2, 2).resized(img_size=8, method="nearest"), r"needs a method out of 'linear'.*got 'nearest'"),
        (lambda: non_locality(torch.zeros(1, 1, 5, 5), Grid(2, 2)), r"\[batch, heads, 4, 4\].*got \[1, 1, 5, 5\]"),
        (lambda: non_locality(torch.zeros(1, 1, 1, 1), Grid(0, 2, prefix=1)), r"which must have a cell"),
        (
            lambda: attention_map(WindowAttention(8, 2, (2, 2)), torch.zeros(1, 4, 8), Grid(2, 2)),
            r"needs an Attention or a GatedAttention; got WindowAttention",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
