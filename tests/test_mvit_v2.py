"""MViT v2 against a plain writing of its pooled attention, on other sizes, and its refusals."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from near import apart
from redrawing import redraw
from small import mvit_v2, same
from torch import Tensor
from torch.nn import functional as F

from locant import checkpoints
from locant.models import mvitv2_base, mvitv2_huge, mvitv2_large, mvitv2_small, mvitv2_small_clips, mvitv2_tiny
from locant.models.mvit_layers import PooledAttention


def attended(attention: PooledAttention, x: Tensor, rows: int, columns: int, prefix: int) -> Tensor:
    """Pair by pair, with published indices: q · ratio - k · ratio, the offset of the last key 0."""
    batch, _, dim, heads = *x.shape[:2], attention.out_dim // attention.heads, attention.heads
    q, k, v = attention.qkv(x).view(batch, x.shape[1], 3, heads, dim).permute(2, 0, 3, 1, 4)
    sides = []
    pooled = []
    for part, name in ((q, "q"), (k, "k"), (v, "v")):
        pool, norm = getattr(attention, f"pool_{name}"), getattr(attention, f"norm_{name}")
        cells = part[:, :, prefix:].transpose(2, 3).reshape(batch * heads, dim, rows, columns)
        cells = F.conv2d(cells, pool.weight, stride=pool.stride, padding=1, groups=dim)
        sides.append(cells.shape[2:])
        cells = cells.flatten(2).transpose(1, 2).view(batch, heads, -1, dim)
        part = torch.cat([part[:, :, :prefix], cells], 2)
        pooled.append(F.layer_norm(part, (dim,), norm.weight, norm.bias, 1e-6))
    (q, k, v), ((rows_q, columns_q), (rows_k, columns_k), _) = pooled, sides
    logits = q @ k.mT * dim**-0.5
    high, wide = attention.position.tables
    for i in range(rows_q * columns_q):
        for j in range(rows_k * columns_k):
            row, column = (
                a * max(m // n, 1) - b * max(n // m, 1) + (m - 1) * max(n // m, 1)
                for a, b, n, m in (
                    (i // columns_q, j // columns_k, rows_q, rows_k),
                    (i % columns_q, j % columns_k, columns_q, columns_k),
                )
            )  # fmt: skip
            vector = high[row] + wide[column]
            logits[:, :, prefix + i, prefix + j] += q[:, :, prefix + i] @ vector
    out = logits.softmax(-1) @ v + q
    if not attention.prefix_residual:
        out[:, :, :prefix] -= q[:, :, :prefix]
    return attention.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.row(64)
@pytest.mark.parametrize("size", [32, (48, 32)])
@pytest.mark.parametrize("more", [{}, {"class_token": True, "prefix_residual": False}, {"stride_kv": 2, "heads": 2}])
def test_pooled_attention_is_its_formula(size: int | tuple[int, int], more: dict) -> None:
    model = redraw(mvit_v2(size, **more)).double().eval()
    grid = model.grid
    for block in model.blocks:
        x = torch.randn(2, grid.tokens, block.attention.dim, dtype=torch.float64)
        with torch.no_grad():
            found, after = block.attention(x, grid=grid)
            wanted = attended(block.attention, x, *grid.shape, grid.prefix)
        assert apart(found, wanted) <= 1e-10 * wanted.abs().max()
        grid = after


@pytest.mark.row(64)
def test_published_sizes() -> None:
    """Parameters of the published models; torchvision says 34,537,744 of its own."""
    counts = {
        mvitv2_tiny: 24_173_320, mvitv2_small: 34_870_216, mvitv2_small_clips: 34_537_744, mvitv2_base: 51_472_744,
        mvitv2_large: 217_992_952,
    }  # fmt: skip
    for build, count in counts.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in build().parameters()) == count
    with torch.device("meta"):
        assert mvitv2_huge().norm.normalized_shape == (1536,)


def test_resized_carries_what_was_learned() -> None:
    model = redraw(mvit_v2(32)).eval()
    other = model.resized(img_size=(64, 32))
    old, new = (m.blocks[1].attention.position.tables for m in (model, other))
    assert torch.equal(new[1], old[1])
    assert torch.allclose(new[0], F.interpolate(old[0].T[None], size=len(new[0]), mode="linear")[0].T, atol=1e-6)
    assert other(torch.randn(1, 3, 64, 32)).shape == (1, 5)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.resized(img_size=32)(images), model(images))
    clips = mvit_v2(32, frames=4, class_token=True)
    assert clips.resized(img_size=32, frames=8)(torch.randn(1, 3, 8, 32, 32)).shape == (1, 5)


def test_a_checkpoint_for_other_pictures_is_resized() -> None:
    small, large = redraw(mvit_v2(32)), mvit_v2(64)
    report = checkpoints.load(large, checkpoints.export(small, "timm"))
    assert {(r.method, len(r.new)) for r in report.resized} == {("bilinear", 1)}
    assert len(report.resized) == 6
    assert same(large.state_dict(), small.resized(img_size=64).state_dict())


def test_a_published_file_is_converted_for_other_pictures(tmp_path: Path) -> None:
    """Of timm, whose names need the model's stages."""
    checkpoints.write(tmp_path / "in.safetensors", checkpoints.export(redraw(mvit_v2(32)), "timm"))
    report = checkpoints.convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", model="MViTv2", image_size=64,
        settings={"dim": 8, "depths": (1, 2), "num_classes": 5},
    )  # fmt: skip
    assert (report.layout, report.exact, len(report.resized)) == ("timm", True, 6)


def test_copies_checkpointing_and_drop_path() -> None:
    model = redraw(mvit_v2(32, class_token=True)).train()
    other, images = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    other.set_grad_checkpointing()
    for m in (model, other):
        m(images).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad is None or torch.equal(p.grad, q.grad), name
    drawn = mvit_v2(32, drop_path_rate=0.9).train()
    assert not torch.equal(drawn(images), drawn(images))
    assert torch.equal(drawn.eval()(images), drawn(images))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"img_size": 40}, "MViTv2 needs sides that 16 divides"),
        ({"frames": 3}, "an even number of `frames`; got img_size=(32, 32), frames=3"),
        ({"depths": (1, 0)}, "MViTv2 needs `depths`, `dim` and `stride_kv` of at least 1"),
    ],
)
def test_bad_input(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        mvit_v2(**given)


def test_pictures_of_another_size_are_told_of_resized() -> None:
    with pytest.raises(ValueError, match=re.escape("MViTv2 has tables for an input [batch, channels, 32, 32]; got")):
        mvit_v2()(torch.randn(1, 3, 48, 32))


@pytest.mark.compiled
def test_one_graph_and_an_exported_program() -> None:
    model, images = redraw(mvit_v2(class_token=True)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert apart(compiled(images), wanted) <= 1e-5 * wanted.abs().max()
        program = torch.export.export(model, (images,)).module()
        assert apart(program(images), wanted) <= 1e-5 * wanted.abs().max()
