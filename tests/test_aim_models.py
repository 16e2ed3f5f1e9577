"""AIM's models: what follows from their definition, their sizes, what freezes, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from near import apart
from redrawing import shake
from torch import Tensor

from locant import Causal, Padding, Windows
from locant.models.aim import AIM
from locant.models.aim_swin import AIMSwin, aim_swin_base
from locant.models.aim_vit import AIMViT, QuickGELU, aim_vit_base, aim_vit_large


def swin(**given: object) -> AIMSwin:
    return AIMSwin(**{"frames": 8, "dim": 4, "depths": (2, 1), "heads": (2, 2), "window": 2, "num_classes": 3} | given)


def vit(**given: object) -> AIMViT:
    size = {"img_size": (16, 24), "patch": 8, "frames": 5, "dim": 8, "depth": 2, "heads": 2, "num_classes": 3}
    return AIMViT(**size | given)


MODELS: dict[str, Callable[..., AIM]] = {"swin": swin, "vit": vit}
both = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def clips(model: AIM, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, model.frames, 16, 24, dtype=torch.float64)


# --- the whole models


@both
@pytest.mark.row(5)
def test_at_its_start_every_frame_is_read_by_itself(build: Callable[..., AIM]) -> None:
    """Adapters give nothing, the temporal embedding is zero: a frame (a pair of them in Swin) alone gives the same."""
    model = build(num_classes=0).eval()
    x = torch.randn(2, 3, model.frames, 16, 24)
    out = model(x)
    alone = [model(part) for part in x.split(model.together, dim=2)]
    assert apart(out, torch.cat(alone, dim=2)) <= 1e-5 * float(out.detach().abs().max())
    shake(model).double().eval().float()
    assert apart(model(x), torch.cat([model(part) for part in x.split(model.together, dim=2)], dim=2)) > 1e-3


@both
@pytest.mark.row(5)
def test_clips_of_a_batch_never_meet(build: Callable[..., AIM]) -> None:
    """Two clips of half the frames, whose product the published code folds into one clip of all frames."""
    model = shake(build()).double().eval()
    x = clips(model)[:, :, : model.frames // 2]
    out = model(x)
    assert apart(out[:1], model(x[:1])) <= 1e-10
    assert apart(out[1:], model(x[1:])) <= 1e-10


@both
@pytest.mark.row(7)
def test_a_padded_clip_is_the_clip_cut_short(build: Callable[..., AIM], parity: Callable[..., None]) -> None:
    """Even where padding holds NaN. An odd number of frames shares its last token with a frame of zeros."""
    model = shake(build()).double().eval()
    x = clips(model, 3)
    lengths = torch.tensor([model.frames, 3, 2])
    mask = Padding.from_lengths(lengths, model.frames)
    wanted = [model(x[i : i + 1, :, :n]) for i, n in enumerate(lengths.tolist())]
    for i, n in enumerate(lengths.tolist()):
        x[i, :, n:] = torch.nan
    out = model(x, mask=mask)
    parity(7, f"{type(model).__name__} on each clip alone, cut short", apart(out, torch.cat(wanted)), 1e-10)
    features = model.forward_features(x, mask=mask)[1, :, : -(-3 // model.together)]
    assert apart(features, model.forward_features(x[1:2, :, :3])[0]) <= 1e-10


@both
@pytest.mark.row(7)
def test_a_clip_of_padding_alone_gives_the_bias_of_the_head(build: Callable[..., AIM]) -> None:
    model = shake(build()).double().eval()
    x = clips(model).requires_grad_()
    out = model(x, mask=Padding.from_lengths(torch.tensor([0, 2]), model.frames))
    assert apart(out[0], model.cls_head.fc_cls.bias) == 0
    out.square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert not bool(x.grad[0].any())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@both
@pytest.mark.row(7)
def test_a_causal_model_reads_no_later_frame(build: Callable[..., AIM]) -> None:
    for causal in (True, False):
        model = shake(build(causal=causal, num_classes=0)).double().eval()
        x = clips(model)
        seen, changed = 2, x.clone()
        changed[:, :, seen:] = 9.0
        steps = seen // model.together
        assert (apart(model(changed)[:, :, :steps], model(x)[:, :, :steps]) == 0) is causal


@both
def test_drop_path_is_drawn_per_clip(build: Callable[..., AIM]) -> None:
    """The published one draws for each place, or for each token of all clips at once."""
    model = shake(build(drop_path_rate=0.6, num_classes=0, head_dropout=0.0)).double().eval().train()
    x = clips(model, 1).expand(16, -1, -1, -1, -1)
    with torch.no_grad():
        kinds = torch.unique(model(x).flatten(1), dim=0).shape[0]
    assert 1 < kinds <= 8  # at most three branches have a rate above 0; drawn per place, all 16 clips would differ
    assert apart(model.eval()(x[:1]), model(x[1:2])) <= 1e-10


def test_rates_grow_from_none_to_the_last_block() -> None:
    rates = [block.drop_path for stage in swin(drop_path_rate=0.2).layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@both
def test_checkpointing_changes_no_gradient(build: Callable[..., AIM]) -> None:
    model = shake(build()).double().eval()
    x, mask = clips(model), Padding.from_lengths(torch.tensor([5, 2]), model.frames)
    wanted = torch.autograd.grad(model(x, mask=mask).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    found = torch.autograd.grad(model(x, mask=mask).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@both
@pytest.mark.row(8)
def test_resized_serves_longer_clips(build: Callable[..., AIM]) -> None:
    model = build().double()
    model.freeze(train=("head",))
    longer = model.resized(frames=2 * model.frames)
    assert longer(clips(longer)).shape == (2, 3)
    assert [n for n, p in longer.named_parameters() if p.requires_grad] == [
        "cls_head.fc_cls.weight",
        "cls_head.fc_cls.bias",
    ]
    same = model.resized(frames=model.frames)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))


def test_resized_serves_other_pictures_and_windows() -> None:
    larger = vit().resized(img_size=(32, 24), method="bicubic")
    assert larger(torch.randn(1, 3, 5, 32, 24)).shape == (1, 3)
    wider = swin().resized(window=(4, 3))
    assert wider.layers[0].blocks[0].attention.position.table.shape == (2, 1, 7, 5)
    assert wider.layers[0].blocks[1].attention.windows == Windows((4, 3), (2, 1))
    assert wider(torch.randn(1, 3, 8, 16, 24)).shape == (1, 3)


def test_quick_gelu() -> None:
    y = torch.linspace(-4, 4, 9)
    assert apart(QuickGELU()(y), y / (1 + torch.exp(-1.702 * y))) <= 1e-6


# --- sizes


@pytest.mark.row(52)
def test_published_sizes() -> None:
    """Section 3 of the paper and the published model zoo: 97 M with 11 M tunable, 341 M with 38 M."""
    with torch.device("meta"):
        models = {
            "Swin-B": aim_swin_base(num_classes=0),
            "ViT-B": aim_vit_base(frames=8),
            "ViT-L": aim_vit_large(frames=8),
            "ViT-B on SSv2": aim_vit_base(frames=8, num_tadapter=2, num_classes=0),
        }
    numbers = {name: dict(model.named_parameters()) for name, model in models.items()}
    groups = {
        name: {group: sum(numbers[name][n].numel() for n in names) for group, names in model.groups().items()}
        for name, model in models.items()
    }
    assert groups["Swin-B"]["adapters"] == 8_762_080
    assert groups["Swin-B"]["temporal"] == 5_828
    spatial = sum(p.numel() for n, p in numbers["Swin-B"].items() if n.endswith("attention.position.table"))
    assert spatial == 63_544
    assert groups["ViT-B"]["adapters"] == 36 * 295_872
    assert groups["ViT-B on SSv2"]["adapters"] == 48 * 295_872
    assert round(groups["ViT-L"]["adapters"] / 1e6, 2) == 37.84
    for name, total, tunable in (("ViT-B", 97, 11), ("ViT-L", 341, 38)):
        assert round(sum(groups[name].values()) / 1e6) == total
        assert round((sum(groups[name].values()) - groups[name]["image"]) / 1e6) == tunable


# --- freezing


def adapter_names(block: str, kinds: str) -> list[str]:
    return [
        f"{block}.{kind}_Adapter.D_fc{i}.{part}"
        for kind in kinds.split()
        for i in (1, 2)
        for part in ("weight", "bias")
    ]


HEAD = ["cls_head.fc_cls.weight", "cls_head.fc_cls.bias"]


@pytest.mark.row(52)
def test_what_learns_in_swin() -> None:
    """The temporal tables and the last norm learn, which the published script leaves frozen for want of their names."""
    model = swin()
    even, odd = "layers.{}.blocks.0", "layers.0.blocks.1"
    adapters = [name for stage in (0, 1) for name in adapter_names(even.format(stage), "T S MLP")]
    adapters += adapter_names(odd, "S MLP")
    tables = [f"{even.format(stage)}.attention.temporal.table" for stage in (0, 1)]
    found = model.freeze()
    assert sorted(found) == sorted([*HEAD, *adapters, *tables, "norm.weight", "norm.bias"])
    assert found == [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(model.freeze(train="published")) == sorted([*HEAD, *adapters])
    assert model.freeze(train=("head",)) == HEAD
    assert len(model.freeze(train=tuple(model.groups()))) == len(list(model.parameters()))
    assert model.freeze(train=()) == []


@pytest.mark.row(52)
def test_what_learns_in_the_vit() -> None:
    model = vit(num_tadapter=2)
    kinds = [*adapter_names("blocks.0", "T S MLP"), *adapter_names("blocks.1", "T S MLP")]
    inner = [f"blocks.{b}.T_Adapter_in.D_fc{i}.{part}" for b in (0, 1) for i in (1, 2) for part in ("weight", "bias")]
    wanted = sorted([*HEAD, *kinds, *inner, "temporal_embedding.table", "ln_post.weight", "ln_post.bias"])
    assert sorted(model.freeze()) == wanted
    assert sorted(model.freeze(train="published")) == wanted  # here the script knows all names
    assert "positional_embedding.table" in model.groups()["image"]


@both
@pytest.mark.row(52)
def test_what_is_frozen_does_not_move(build: Callable[..., AIM]) -> None:
    model = shake(build()).double().eval()
    learns = set(model.freeze())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rate = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(clips(model)).square().sum().backward()
    rate.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == learns


# --- numbers, copies, graphs


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both
def test_half_precision_is_finite_and_near(build: Callable[..., AIM], dtype: torch.dtype) -> None:
    model = build().eval().to(dtype)
    x, mask = clips(model).to(dtype), Padding.from_lengths(torch.tensor([3, 0]), model.frames)
    out = model(x, mask=mask)
    exact = copy.deepcopy(model).double()(x.double(), mask=mask)
    assert out.dtype == dtype
    # at most 64 roundings of numbers no larger than a few
    assert apart(out.double(), exact) <= 64 * torch.finfo(dtype).eps * max(1.0, float(exact.detach().abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(model.float()(x.float(), mask=mask).isfinite().all())


@pytest.mark.row(54)
@both
def test_the_state_holds_what_is_learned_and_copies_compute_the_same(build: Callable[..., AIM]) -> None:
    model = shake(build()).double().eval()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    x = clips(model)
    wanted = model(x)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)


@both
def test_what_is_not_decayed(build: Callable[..., AIM]) -> None:
    model = build()
    tables = {"layers.0.blocks.0.attention.position.table", "layers.0.blocks.0.attention.temporal.table"}
    wanted = tables if build is swin else {"temporal_embedding.table"}
    assert wanted <= model.no_weight_decay()
    assert not any("weight" in name or "bias" in name for name in model.no_weight_decay())


@pytest.mark.compiled
@pytest.mark.row(55)
@pytest.mark.parametrize("name", MODELS)
def test_compiled_whole_it_computes_and_trains_the_same(name: str) -> None:
    model = shake(swin(depths=(1,), heads=(2,)) if name == "swin" else vit(depth=1)).double().eval().float()
    x, mask = clips(model).float(), Padding.from_lengths(torch.tensor([model.frames, 2]), model.frames)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(x, mask=mask), model(x, mask=mask)
    assert apart(found, wanted) <= 1e-5 * float(wanted.detach().abs().max())
    leaves = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted)), strict=True):
        assert apart(a, b) <= 3e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.compiled
@pytest.mark.row(55)
def test_exported_it_computes_the_same() -> None:
    model = shake(vit(depth=1)).double().eval()
    x, mask = clips(model), Padding.from_lengths(torch.tensor([model.frames, 2]), model.frames)
    program = torch.export.export(model, (x,), {"mask": mask})
    assert apart(program.module()(x, mask=mask), model(x, mask=mask)) <= 1e-10


# --- what is refused

PIXELS = torch.zeros(1, 3, 8, 16, 24)


@pytest.mark.plain
@pytest.mark.row(4)
@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: swin(frames=7), r"AIMSwin needs `frames` of at least 1 that 2 divides; got 7. Use frames=8"),
        (lambda: swin(num_classes=-1), r"AIMSwin needs `num_classes` of at least 0; got -1"),
        (lambda: swin(heads=(2,)), r"AIMSwin needs `heads` for each of its `depths`"),
        (lambda: vit(img_size=(16, 20)), r"AIMViT needs an `img_size` that `patch` divides.*Use img_size=\(16, 16\)"),
        (lambda: vit().resized(img_size=20), r"AIMViT needs an `img_size` that `patch` divides"),
        (lambda: swin().resized(frames=9), r"needs `frames` of at least 1 that 2 divides; got 9"),
        (lambda: vit()(PIXELS), r"AIMViT needs clips .* of 1 to 5 frames; got \[1, 3, 8, 16, 24\].*resized\(frames="),
        (lambda: swin()(PIXELS.repeat(1, 1, 2, 1, 1)), r"AIMSwin needs clips .* of 1 to 8 frames; got \[1, 3, 16,"),
        (lambda: swin()(PIXELS[:, :, :0]), r"of 1 to 8 frames; got \[1, 3, 0, 16, 24\]"),
        (lambda: swin()(PIXELS[0]), r"AIMSwin needs clips \[batch, channels, time, height, width\]"),
        (lambda: swin()(PIXELS[:, :2]), r"needs an input \[batch, 3, time, height, width\]"),
        (lambda: vit()(PIXELS[:, :, :5, :, :16]), r"AIMViT has positions for frames of 16 × 24; got 16 × 16"),
        (
            lambda: swin()(PIXELS, mask=Padding(torch.ones(1, 7, dtype=torch.bool))),
            r"AIMSwin needs a `mask` of real frames, Padding of shape \[1, 8\]; got \[1, 7\]",
        ),
        (lambda: swin()(PIXELS, mask=Causal(axis=0)), r"needs a `mask` of real frames.*got Causal.*causal=True"),
        (lambda: swin().freeze(train="adapters"), r'freeze needs `train` to be "published" or a tuple of groups'),
        (lambda: swin().freeze(train=("tables",)), r"groups out of 'adapters', 'temporal', 'norm', 'head', 'image'"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
