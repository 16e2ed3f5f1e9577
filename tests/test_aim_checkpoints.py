"""AIM's weights in and out: mmaction's names, and the image models that it starts from."""

from __future__ import annotations

import pytest
import torch
from redrawing import refill
from torch import Tensor

from locant.checkpoints.aim import LAYOUTS
from locant.checkpoints.loading import export, load
from locant.models.aim_swin import AIMSwin
from locant.models.aim_vit import AIMViT

D = 8


def swin(**given: object) -> AIMSwin:
    return AIMSwin(**{"frames": 8, "dim": D, "depths": (2, 2), "heads": (2, 4), "window": 7, "num_classes": 5} | given)


def vit(**given: object) -> AIMViT:
    size = {"img_size": 32, "patch": 8, "frames": 4, "dim": D, "depth": 1, "heads": 2, "num_tadapter": 2}
    return AIMViT(**size | {"num_classes": 5} | given)


def named(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def linear(name: str, out: int, of: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, of), f"{name}.bias": (out,)}


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def adapters(dim: int, *names: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name in names:
        shapes |= linear(f"{name}.D_fc1", dim // 4, dim) | linear(f"{name}.D_fc2", dim, dim // 4)
    return shapes


def mmaction_swin() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the specification, section 3.5, learned tensors only."""
    shapes = {"patch_embed.proj.weight": (D, 3, 2, 4, 4), "patch_embed.proj.bias": (D,)} | norm("patch_embed.norm", D)
    for s, (dim, heads) in enumerate(((D, 2), (2 * D, 4))):
        for b in range(2):
            block = norm("norm1", dim) | norm("norm2", dim) | {"attn.relative_position_bias_table": (169, heads)}
            block |= linear("attn.qkv", 3 * dim, dim) | linear("attn.proj", dim, dim)
            block |= linear("mlp.fc1", 4 * dim, dim) | linear("mlp.fc2", dim, 4 * dim)
            block |= adapters(dim, "S_Adapter", "S_Adapter2", *(() if b else ("T_Adapter",)))
            block |= {} if b else {"attn.temporal_position_bias_table": (7, heads)}
            shapes |= named(f"layers.{s}.blocks.{b}.", block)
    shapes |= norm("layers.0.downsample.norm", 4 * D) | {"layers.0.downsample.reduction.weight": (2 * D, 4 * D)}
    return named("backbone.", shapes | norm("norm", 2 * D)) | linear("cls_head.fc_cls", 5, 2 * D)


def clip(root: str) -> dict[str, tuple[int, ...]]:
    shapes = {"conv1.weight": (D, 3, 8, 8), "class_embedding": (D,), "positional_embedding": (17, D)}
    block = norm("ln_1", D) | norm("ln_2", D) | {"attn.in_proj_weight": (3 * D, D), "attn.in_proj_bias": (3 * D,)}
    block |= linear("attn.out_proj", D, D) | linear("mlp.c_fc", 4 * D, D) | linear("mlp.c_proj", D, 4 * D)
    return named(root, shapes | norm("ln_pre", D) | norm("ln_post", D) | named("transformer.resblocks.0.", block))


def mmaction_vit() -> dict[str, tuple[int, ...]]:
    kinds = ("MLP_Adapter", "S_Adapter", "T_Adapter", "T_Adapter_in")
    rest = named("transformer.resblocks.0.", adapters(D, *kinds)) | {"temporal_embedding": (1, 4, D)}
    return clip("backbone.") | named("backbone.", rest) | linear("cls_head.fc_cls", 5, D)


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in shapes.items()}


CASES = {"swin": (swin, mmaction_swin), "vit": (vit, mmaction_vit)}


@pytest.mark.row(54)
@pytest.mark.parametrize("name", CASES)
def test_mmactions_names_and_back(name: str) -> None:
    build, published = CASES[name]
    model = refill(build())
    theirs = export(model, "mmaction")
    assert shapes_of(theirs) == published()
    other = refill(build())
    report = load(other, {"meta": "any", "state_dict": theirs})
    assert report.layout == "mmaction"
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


@pytest.mark.row(54)
def test_old_files_hold_what_is_recomputed() -> None:
    """Indices and masks are dropped; a file without them loads as well."""
    state = drawn(mmaction_swin())
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    state["backbone.layers.0.blocks.0.attn.t_relative_coords"] = torch.zeros(16, dtype=torch.int64)
    state["backbone.layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    model = swin()
    report = load(model, state)
    assert sorted(name.rpartition(".")[2] for name in report.dropped) == [
        "attn_mask", "relative_position_index", "t_relative_coords",
    ]  # fmt: skip
    attention = model.layers[0].blocks[0].attention
    flat = state["backbone.layers.0.blocks.0.attn.temporal_position_bias_table"]
    assert torch.equal(attention.temporal.table[:, :, 0, 0], flat.T)
    flat = state["backbone.layers.0.blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(attention.position.table[:, 0], flat.T.reshape(2, 13, 13))
    adapter = model.layers[0].blocks[0].MLP_Adapter
    assert torch.equal(adapter.D_fc1.weight, state["backbone.layers.0.blocks.0.S_Adapter.D_fc1.weight"])


@pytest.mark.row(8)
def test_tables_and_embeddings_are_brought_to_longer_clips() -> None:
    report = load(swin(frames=16), drawn(mmaction_swin()))
    assert {(line.old, line.new, line.method) for line in report.resized} == {((7, 1, 1), (15, 1, 1), "linear")}
    state = drawn(mmaction_vit())
    state["backbone.temporal_embedding"] = torch.arange(4.0)[None, :, None].expand(1, 4, D)
    longer = vit(frames=7)
    load(longer, state)
    assert float((longer.temporal_embedding.table.detach()[:, 0] - torch.linspace(0, 3, 7)).abs().max()) <= 1e-6


@pytest.mark.row(54)
@pytest.mark.parametrize("root", ["", "visual."])
def test_clip_starts_the_vit(root: str) -> None:
    """The bare vision half, or the whole of CLIP, whose other half has names that the bare half has too."""
    state = drawn(clip(root))
    if root:
        state |= drawn({"transformer.resblocks.0.attn.in_proj_weight": (12, 4), "positional_embedding": (77, 4)})
        state |= {"visual.proj": torch.zeros(D, 4), "logit_scale": torch.zeros(())}
    model = vit()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="ln_post"):  # what such a file does hold is asked for
        load(model, {name: x for name, x in state.items() if "ln_post" not in name})
    report = load(model, state)
    assert report.exact
    groups = model.groups()
    by_design = {*groups["adapters"], *groups["temporal"], *groups["head"]}
    assert by_design == {name for name in report.left if name in start}
    assert all(torch.equal(model.get_parameter(name), start[name]) for name in by_design)
    block = model.blocks[0]
    assert torch.equal(block.attention.qkv.weight, state[f"{root}transformer.resblocks.0.attn.in_proj_weight"])
    assert torch.equal(model.conv1.proj.weight[:, :, 0], state[f"{root}conv1.weight"])
    assert torch.equal(model.positional_embedding.prefix[0], state[f"{root}positional_embedding"][0])
    assert torch.equal(model.positional_embedding.table, state[f"{root}positional_embedding"][1:])


@pytest.mark.row(54)
def test_swin_starts_the_model_of_clips() -> None:
    """Its kernel is halved and repeated: a clip that stands still has the tokens of its picture."""
    kinds = ("Adapter", "temporal", "cls_head")
    state = {
        n.removeprefix("backbone."): t for n, t in drawn(mmaction_swin()).items() if not any(k in n for k in kinds)
    }
    state["patch_embed.proj.weight"] = torch.randn(D, 3, 4, 4)
    model, picture = swin(), torch.randn(2, 3, 28, 28)
    report = load(model, {"model": state | drawn({"head.weight": (3, 2 * D), "head.bias": (3,)})})
    assert (report.layout, report.exact) == ("official", True)
    tokens, grid = model.patch_embed(picture[:, :, None].expand(-1, -1, 4, -1, -1))
    proj = torch.nn.functional.conv2d(
        picture, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4
    )
    wanted = model.patch_embed.norm(proj.flatten(2).transpose(1, 2))
    assert grid.shape == (2, 7, 7)
    for frame in tokens.unflatten(1, (2, 49)).unbind(1):
        assert float((frame - wanted).detach().abs().max()) <= 1e-5 * float(wanted.detach().abs().max())
    with pytest.raises(ValueError, match="counterpart"):
        export(model, LAYOUTS[0])  # a picture's model has no place for adapters
