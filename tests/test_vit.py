"""ViT and DeiT against slow formulas: tokens without a place, any position, LayerScale, pooling, other sizes."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from near import close
from redrawing import redraw
from torch import Tensor, nn

from locant import ALiBi, Decomposed, Grid, Learned, RelativeTable, models
from locant.models.deit import DeiT, deit3_base, deit3_small, deit_tiny
from locant.models.placement import named
from locant.models.vit import ViT, vit_base, vit_large, vit_small, vit_tiny
from locant.resizing import resize_embedding, resize_table

DIM, HEADS, PATCH = 8, 2, 2
ALONE = ("alibi", "gated", "learned", "masked-sine", "relative", "rotary", "sinusoid")


def made(kind: type[ViT] = ViT, rows: int = 2, columns: int = 3, **given: object) -> ViT:
    sizes = {"img_size": (PATCH * rows, PATCH * columns), "patch": PATCH, "in_chans": 1, "num_classes": 5, "dim": DIM,
             "depth": 2, "heads": HEADS} | given  # fmt: skip
    return redraw(kind(**sizes).double())


def pictures(rows: int = 2, columns: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, PATCH * rows, PATCH * columns, dtype=torch.float64)


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def attended(module: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Head by head, query by query."""
    width, out = DIM // HEADS, torch.zeros_like(x)
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).split(DIM, dim=-1)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                shares = torch.softmax(k[b, :, part] @ q[b, i, part] * width**-0.5 + bias[h, i], 0)
                out[b, i, part] = shares @ v[b, :, part]
    return out @ module.proj.weight.T + module.proj.bias


def by_hand(model: ViT, images: Tensor, rows: int = 2, columns: int = 3) -> Tensor:
    """The tokens behind the blocks, patch by patch; a table's bias is read off the offset of every pair."""
    patches = []
    for r in range(rows):
        for c in range(columns):
            cut = images[:, :, PATCH * r : PATCH * (r + 1), PATCH * c : PATCH * (c + 1)].flatten(1)
            patches.append(cut @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias)
    x = torch.stack(patches, dim=1)
    front = [t for t in (model.cls_token, getattr(model, "dist_token", None), model.reg_token) if t is not None]
    if isinstance(model.pos_embed, Learned):
        x = x + model.pos_embed.table
        if model.pos_embed.prefix is not None:
            front = list(torch.cat(front, dim=1)[0] + model.pos_embed.prefix)
    x = torch.cat([*(t.reshape(1, -1, DIM).expand(len(x), -1, -1) for t in front), x], dim=1)
    prefix = x.shape[1] - rows * columns
    for block in model.blocks:
        bias = torch.zeros(HEADS, x.shape[1], x.shape[1], dtype=torch.float64)
        if isinstance(block.attention.position, RelativeTable):
            table = block.attention.position.table
            for i in range(rows * columns):
                for j in range(rows * columns):
                    row, column = i // columns - j // columns, i % columns - j % columns
                    bias[:, prefix + i, prefix + j] = table[:, row + rows - 1, column + columns - 1]
        y = attended(block.attention, normed(x, block.norm1), bias)
        x = x + (y if block.gamma1 is None else y * block.gamma1)
        hidden = normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        y = hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        x = x + (y if block.gamma2 is None else y * block.gamma2)
    return x


@pytest.mark.row(57)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"registers": 3},
        {"prefix_position": False, "layer_scale": 0.1},
        {"position": lambda grid, dim, heads: RelativeTable(Grid(*grid.shape), heads)},
        {"position": None, "like": "transformers"},
    ],
    ids=["plain", "registers", "deit3", "table", "none"],
)
def test_the_class_token_reads_its_formula(given: dict[str, object]) -> None:
    model, images = made(**given), pictures()
    x = by_hand(model, images)
    assert x.shape[1] == model.grid.tokens == 6 + 1 + given.get("registers", 0)
    close(model(images), normed(x, model.norm)[:, 0] @ model.head.weight.T + model.head.bias)
    assert model.fc_norm is None


@pytest.mark.row(57)
def test_a_mean_is_over_patches_alone_and_its_norm_comes_behind() -> None:
    model, images = made(pooling="mean", registers=2), pictures()
    assert model.cls_token is None
    x = by_hand(model, images)
    close(model(images), normed(x[:, 2:].mean(1), model.fc_norm) @ model.head.weight.T + model.head.bias)
    close(model.forward_features(images), x)


@pytest.mark.row(57)
def test_a_distillation_token_has_a_head_of_its_own() -> None:
    model, images = made(DeiT, distilled=True), pictures()
    x = normed(by_hand(model, images), model.norm)
    heads = [x[:, i] @ head.weight.T + head.bias for i, head in enumerate((model.head, model.head_dist))]
    close(model(images), (heads[0] + heads[1]) / 2)
    for found, wanted in zip(model.both(images), heads, strict=True):
        close(found, wanted)
    alone = made(DeiT, distilled=True, head_dist=False)
    assert "head_dist.weight" not in alone.state_dict()
    x = normed(by_hand(alone, images), alone.norm)
    close(alone(images), x[:, 0] @ alone.head.weight.T + alone.head.bias)
    with pytest.raises(ValueError, match="both needs a DeiT with a distillation token and a head"):
        alone.both(images)


@pytest.mark.parametrize("word", ALONE)
def test_every_word_places_its_scheme(word: str) -> None:
    """What embeds stands on the tokens once, all else in every block, each with numbers of its own."""
    assert set(ALONE) <= set(named())
    model, images = made(position=word), pictures()
    embeds = word in ("learned", "masked-sine", "sinusoid")
    assert (model.pos_embed is not None) == embeds
    own = [block.attention.position for block in model.blocks]
    assert all((position is None) == embeds for position in own)
    assert embeds or own[0] is not own[1]
    moved = images.roll(PATCH, -1)  # the mean over patches is blind to order, unless something tells it
    assert float((model(images) - model(moved)).detach().abs().max()) > 1e-6
    mean = made(position=None, pooling="mean")
    close(mean(images), mean(moved))


def test_several_at_once_and_functions_that_build_them() -> None:
    """A vector per place on the tokens and a table in every layer: the sum of what both say."""

    def build(grid: Grid, dim: int, heads: int) -> tuple[nn.Module, ...]:
        return Learned(grid, dim), RelativeTable(Grid(*grid.shape), heads)

    model, images = made(position=build), pictures()
    close(model.forward_features(images), normed(by_hand(model, images), model.norm))
    tables = [block.attention.position.table for block in model.blocks]
    assert not torch.equal(*tables)
    assert {"pos_embed.table", "pos_embed.prefix", "blocks.1.attention.position.table"} <= set(model.state_dict())


def test_blocks_start_from_tables_of_their_own() -> None:
    torch.manual_seed(0)
    model = ViT(img_size=32, dim=8, heads=2, depth=2, position="relative")
    first, second = (block.attention.position.table for block in model.blocks)
    assert not torch.equal(first, second)


def test_another_size_is_a_model_of_its_own() -> None:
    """Embeddings and tables by the method, prefix rows as they were; schemes without a grid serve as they are."""

    def build(grid: Grid, dim: int, heads: int) -> tuple[nn.Module, ...]:
        return Learned(grid, dim), RelativeTable(grid, heads), Decomposed(Grid(*grid.shape), heads, dim // heads)

    model, images = made(position=build), pictures(4, 3)
    with pytest.raises(ValueError, match=r"positions for 2 × 3 tokens; got pictures of 4 × 3.*model.resized"):
        model(images)
    larger = model.resized(img_size=(4 * PATCH, 3 * PATCH), method="bicubic")
    assert (larger.grid, larger.img_size) == (Grid(4, 3, prefix=1), (8, 6))
    close(larger.pos_embed.table, resize_embedding(model.pos_embed.table, (2, 3), (4, 3), "bicubic"))
    assert torch.equal(larger.pos_embed.prefix, model.pos_embed.prefix)
    old, new = (m.blocks[1].attention.position for m in (model, larger))
    close(new[0].table, resize_table(old[0].table, (7, 5), "bicubic"))
    assert torch.equal(new[0].both, old[0].both)
    assert new[1].grid == Grid(4, 3)
    assert larger(images).shape == (2, 5)
    free = made(position=lambda grid, dim, heads: ALiBi(heads, distance="euclidean"))
    assert free(images).shape == (2, 5)
    close(free.resized(img_size=(8, 6))(images), free(images))


def test_same_size_is_the_same_model() -> None:
    model, images = made(registers=2), pictures()
    again = model.resized(img_size=(2 * PATCH, 3 * PATCH))
    assert again is not model
    assert torch.equal(again(images), model(images))


def test_rules_of_libraries() -> None:
    """timm and transformers cut what patches leave over; norms have another epsilon in transformers."""
    images = torch.randn(2, 1, 5, 7, dtype=torch.float64)
    cut = made(img_size=(5, 7), like="timm")
    assert cut.grid == Grid(2, 3, prefix=1)
    close(cut(images), cut(images[..., :4, :6]))
    filled = made(img_size=(5, 7), patch_border="pad")
    assert filled.grid == Grid(3, 4, prefix=1)
    with pytest.raises(ValueError, match=r"`img_size` that `patch` divides.*img_size=\(5, 7\)"):
        made(img_size=(5, 7))
    assert made(like="transformers").blocks[0].norm1.eps == 1e-12
    assert made(like="transformers", norm_eps=1e-3).norm.eps == 1e-3
    model = made()
    model.follow("transformers")
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    assert (model.patch_embed.border, model.rules) == ("cut", ViT.LIBRARIES["transformers"])
    with pytest.raises(
        ValueError, match=r"ViT needs `like` out of .*got 'keras'.*one by one: patch_border=, norm_eps="
    ):
        made(like="keras")


def test_what_freezing_leaves() -> None:
    model = made(DeiT, position="relative", distilled=True)
    learns = model.freeze()
    assert learns == [name for name, p in model.named_parameters() if p.requires_grad]
    rows = ("table", "query_prefix", "key_prefix", "both")
    tables = {f"blocks.{b}.attention.position.{row}" for b in (0, 1) for row in rows}
    assert set(learns) == tables | {f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}


def test_groups_for_optimisers() -> None:
    model = made(DeiT, distilled=True)
    assert model.no_weight_decay() == {"cls_token", "dist_token", "pos_embed.table", "pos_embed.prefix"}
    stem = re.compile(model.group_matcher()["stem"])
    assert {name.split(".")[0] for name in model.state_dict() if stem.match(name)} == {
        "cls_token", "dist_token", "pos_embed", "patch_embed"
    }  # fmt: skip


def test_checkpointing_changes_no_number() -> None:
    model, images = made(drop_path_rate=0.0), pictures()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    for one in (model, again):
        one(images).square().sum().backward()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (vit_tiny, 5_717_416), (vit_small, 22_050_664), (vit_base, 86_567_656), (vit_large, 304_326_632),
        (deit_tiny, 5_717_416), (lambda: deit_tiny(distilled=True), 5_910_800), (deit3_small, 22_059_496),
        (deit3_base, 86_585_320),
        (lambda: vit_base(patch=32), 88_224_232), (lambda: vit_base(num_classes=0), 85_798_656),
    ],
)  # fmt: skip
def test_published_numbers_of_parameters(build: object, count: int) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: ViT(pooling="max"), r'`pooling` "class" or "mean"; got .*pooling=\'max\''),
        (lambda: ViT(depth=0), r"`depth` of at least 1.*got depth=0"),
        (lambda: ViT(registers=-1), r"`registers` of at least 0.*got .*registers=-1"),
        (lambda: ViT(position="polar"), r"ViT needs a `position` out of .*'learned'.*got 'polar'"),
        (lambda: ViT(position=ALiBi(12)), r"a function of \(grid, dim, heads\).*got ALiBi"),
        (lambda: ViT(position=ALiBi), r"a function of .*got the class ALiBi"),
        (lambda: ViT(position=lambda grid, dim, heads: "alibi"), r"builds schemes of locant.positions.*got 'alibi'"),
        (lambda: ViT(drop_path_rate=1.0), r"ViT needs `drop_path_rate` of at least 0 and below 1"),
        (lambda: models.vit_tiny(img_size=33), r"`img_size` that `patch` divides"),
        (lambda: vit_tiny(img_size=32)(torch.zeros(1, 3, 64, 64)), r"for 2 × 2 tokens; got pictures of 4 × 4"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.compiled
def test_one_graph_and_an_exported_program() -> None:
    """With a learned vector per patch, whose grid is compared with that of the pictures."""
    model, images = made().eval(), torch.randn(2, 1, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(images)
        close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), wanted)
        close(torch.export.export(model, (images,)).module()(images), wanted)
