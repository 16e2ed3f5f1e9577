"""Segment Anything's encoder against a plain writing of it, on other pictures, and its refusals."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from near import apart
from redrawing import redraw
from small import sam_encoder, same
from torch import Tensor, nn
from torch.nn import functional as F

from locant import checkpoints
from locant.models import SAMEncoder, sam_encoder_base, sam_encoder_huge, sam_encoder_large
from locant.models.sam_encoder import SIZES


def attended(attention: nn.Module, x: Tensor) -> Tensor:
    """A whole map or a window [batch, rows, columns, dim], pair by pair from the paper."""
    (batch, rows, columns, dim), heads = x.shape, attention.heads
    q, k, v = attention.qkv(x).reshape(batch, rows * columns, 3, heads, -1).permute(2, 0, 3, 1, 4)
    high, wide = attention.position.tables
    out = torch.empty_like(q)
    for i in range(rows * columns):
        logits = q[:, :, i, None] @ k.mT * (dim // heads) ** -0.5
        for j in range(rows * columns):
            row, column = i // columns - j // columns, i % columns - j % columns
            vector = high[row + len(high) // 2] + wide[column + len(wide) // 2]
            logits[..., 0, j] += q[:, :, i] @ vector
        out[:, :, i] = (logits.softmax(-1) @ v)[:, :, 0]
    return attention.proj(out.transpose(1, 2).flatten(2)).reshape(x.shape)


def written(model: SAMEncoder, images: Tensor) -> Tensor:
    """The model, plainly."""
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=model.patch)
    x = x.movedim(1, -1) + model.pos_embed.table.unflatten(0, x.shape[2:])
    for index, block in enumerate(model.blocks):
        y, (rows, columns), side = block.norm1(x), x.shape[1:3], model.window
        if index in model.global_blocks:
            y = attended(block.attention, y)
        else:
            y = F.pad(y, (0, 0, 0, -columns % side, 0, -rows % side))
            bands = [[attended(block.attention, z) for z in band.split(side, 2)] for band in y.split(side, 1)]
            y = torch.cat([torch.cat(band, 2) for band in bands], 1)[:, :rows, :columns]
        x = x + y
        x = x + block.mlp(block.norm2(x))
    x = x.movedim(-1, 1)
    for layer in model.neck:
        x = layer(x) if isinstance(layer, nn.Conv2d) else F.layer_norm(
            x.movedim(1, -1), x.shape[1:2], layer.weight, layer.bias, 1e-6
        ).movedim(-1, 1)  # fmt: skip
    return x


@pytest.mark.row(59)
@pytest.mark.parametrize("size", [48, (32, 56), (24, 16)])
def test_it_is_its_formula(size: int | tuple[int, int]) -> None:
    """On maps of 6 × 6, 4 × 7 and 3 × 2, with windows of 4."""
    model = redraw(sam_encoder(size)).double().eval()
    images = torch.randn(2, 3, *model.img_size, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = model(images), written(model, images)
    assert found.shape == (2, 6, *model.grid.shape)
    assert apart(found, wanted) <= 1e-10 * wanted.abs().max()


@pytest.mark.row(59)
def test_published_sizes() -> None:
    """Parameters of the published files, head by head."""
    for build, millions in ((sam_encoder_base, 89.67), (sam_encoder_large, 308.28), (sam_encoder_huge, 637.03)):
        with torch.device("meta"):
            model = build()
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert [len(size["global_blocks"]) for size in SIZES.values()] == [4, 4, 4]


def test_resized_carries_what_was_learned() -> None:
    """Windows stay, whole maps and the embedding are stretched, and at its own size it is the same model."""
    model = redraw(sam_encoder(48)).eval()
    images = torch.randn(1, 3, 48, 48)
    other = model.resized(img_size=(64, 32))
    assert (other.grid.shape, model.grid.shape) == ((8, 4), (6, 6))
    assert torch.equal(other.blocks[0].attention.position.tables[0], model.blocks[0].attention.position.tables[0])
    wanted = F.interpolate(model.blocks[1].attention.position.tables[1].T[None], size=7, mode="linear")[0].T
    assert torch.allclose(other.blocks[1].attention.position.tables[1], wanted, atol=1e-6)
    assert other(torch.randn(1, 3, 64, 32)).shape == (1, 6, 8, 4)
    assert torch.equal(model.resized(img_size=48)(images), model(images))


def test_a_checkpoint_for_other_pictures_is_resized() -> None:
    small, large = redraw(sam_encoder(48)), sam_encoder((64, 80))
    report = checkpoints.load(large, checkpoints.export(small, "timm"))
    assert {(r.name, r.old, r.new, r.method) for r in report.resized} == {
        ("pos_embed.table", (6, 6), (8, 10), "antialiased"),
        ("blocks.1.attention.position.tables.0", (11,), (15,), "bilinear"),
        ("blocks.1.attention.position.tables.1", (11,), (19,), "bilinear"),
    }
    wanted = small.resized(img_size=(64, 80)).state_dict()
    assert same(large.state_dict(), wanted)


def test_files_of_the_whole_model() -> None:
    """Its decoder and its prompts are left alone, and a bare encoder's names are read as well."""
    model = redraw(sam_encoder())
    for layout, others in (("official", "mask_decoder.x"), ("transformers", "prompt_encoder.x")):
        state = checkpoints.export(model, layout)
        again = sam_encoder()
        assert checkpoints.load(again, {**state, others: torch.zeros(1)}).left == [others]
        assert same(again.state_dict(), model.state_dict())
        bare = {re.sub(r"^\w+_encoder\.", "", name): x for name, x in state.items()}
        assert checkpoints.load(sam_encoder(), bare).layout == layout


def test_a_published_file_is_converted_for_other_pictures(tmp_path: Path) -> None:
    model = redraw(sam_encoder())
    checkpoints.write(tmp_path / "in.safetensors", checkpoints.export(model, "official"))
    settings = {"patch": 8, "dim": 16, "depth": 2, "heads": 2, "window": 4, "global_blocks": (1,), "out_chans": 6}
    report = checkpoints.convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", model="SAMEncoder", image_size=64, settings=settings
    )  # fmt: skip
    assert (report.layout, report.exact, len(report.resized)) == ("official", True, 3)


def test_a_map_that_is_not_square_has_no_published_file() -> None:
    with pytest.raises(ValueError, match=re.escape("needs an embedding of a square map, whose sides it can tell; got")):
        checkpoints.export(sam_encoder((48, 24)), "timm")


def test_rules_of_libraries() -> None:
    model = sam_encoder()
    model.follow("timm")
    assert {m.eps for m in model.blocks.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert {m.eps for m in model.neck if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert "norm_eps=1e-06" in checkpoints.load(model, checkpoints.export(model, "official")).notes[0]


def test_copies_checkpointing_and_groups() -> None:
    model = redraw(sam_encoder()).train()
    other, images = copy.deepcopy(model), torch.randn(1, 3, 48, 48)
    other.set_grad_checkpointing()
    for m in (model, other):
        m(images).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert model.no_weight_decay() == {
        "pos_embed.table", *(f"blocks.{i}.attention.position.tables.{axis}" for i in (0, 1) for axis in (0, 1))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"global_blocks": (2,)}, "`global_blocks` out of 0 to depth - 1"),
        ({"window": 0}, "`window` and `out_chans` of at least 1"),
        ({"img_size": 50}, "SAMEncoder needs an `img_size` that `patch` divides"),
        ({"like": "torchvision"}, "SAMEncoder needs `like` out of 'official', 'timm', 'transformers'"),
    ],
)
def test_bad_input(given: dict, said: str) -> None:
    options = {"img_size": 48, "patch": 8, "dim": 16, "depth": 2, "heads": 2, "window": 4, "global_blocks": (1,)}
    with pytest.raises(ValueError, match=re.escape(said)):
        SAMEncoder(**{**options, **given})


def test_pictures_of_another_size_are_told_of_resized() -> None:
    with pytest.raises(ValueError, match=re.escape("SAMEncoder has positions for 6 × 6 tokens; got pictures of 7 × 6")):
        sam_encoder()(torch.randn(1, 3, 56, 48))


@pytest.mark.compiled
def test_one_graph_and_an_exported_program() -> None:
    model, images = redraw(sam_encoder()).eval(), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        wanted = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert apart(compiled(images), wanted) <= 1e-5 * wanted.abs().max()
        program = torch.export.export(model, (images,)).module()
        assert apart(program(images), wanted) <= 1e-5 * wanted.abs().max()
