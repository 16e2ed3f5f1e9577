"""Names of one library for those of another, sizes for others, and what is said about it."""

from __future__ import annotations

import math
from collections.abc import Callable

import published
import pytest
import torch
from redrawing import refill
from small import MODELS, convit, same, small_detr, swin
from torch import Tensor, nn

from locant import checkpoints
from locant.checkpoints import Layout, Report, Rule, export, load
from locant.checkpoints.families import layouts
from locant.checkpoints.names import matched, turned_in, turned_out
from locant.checkpoints.report import folded
from locant.checkpoints.turns import JOINED, ROWS_WITH_PREFIX, SHARED, STACKED, TABLE, TABLE_WITH_PREFIX

SOURCES: dict[str, tuple[str, str, Callable[[], dict[str, Tensor]]]] = {
    "Swin, official": ("models.swin.Swin", "official", published.swin),
    "Swin, timm": ("models.swin.Swin", "timm", published.swin_timm),
    "Swin, transformers": ("models.swin.Swin", "transformers", lambda: published.swin_transformers(old=False)),
    "Swin, transformers 4": ("models.swin.Swin", "transformers 4", lambda: published.swin_transformers(old=True)),
    "Swin, torchvision": ("models.swin.Swin", "torchvision", published.swin_torchvision),
    "ConViT, official": ("models.convit.ConViT", "official", published.convit),
    "ViT, timm": ("models.vit.ViT", "timm", published.vit),
    "ViT, transformers": ("models.vit.ViT", "transformers", lambda: published.vit_transformers(old=False)),
    "ViT, transformers 4": ("models.vit.ViT", "transformers 4", lambda: published.vit_transformers(old=True)),
    "ViT, torchvision": ("models.vit.ViT", "torchvision", published.vit_torchvision),
    "DeiT, distilled": ("models.deit.DeiT", "timm", published.deit),
    "DETR, official": ("models.detr.DETR", "official", published.detr),
    "AIM Swin, mmaction": ("models.aim_swin.AIMSwin", "mmaction", published.aim_swin),
    "AIM ViT, mmaction": ("models.aim_vit.AIMViT", "mmaction", published.aim_vit),
    "FIERY, official": ("nn.temporal.TemporalModel", "official", published.fiery),
    "Transformer-XL, official": ("models.transformer_xl.MemTransformerLM", "official", published.transformer_xl),
    "BERT, transformers": ("models.bert.BertEmbeddings", "transformers", published.bert),
    "Wq, Wk, Wv and fc": ("nn.multihead.MultiHeadAttention", "plain", published.plain),
}


@pytest.mark.row(16)
@pytest.mark.row(35)
@pytest.mark.row(54)
@pytest.mark.parametrize("source", SOURCES)
def test_published_files_load_and_come_out_again(source):
    """Every learned number of the file is in the model, at its place: exported, they are all back."""
    kind, layout, make = SOURCES[source]
    state, model = make(), refill(MODELS[kind]())
    report = load(model, {"model": state})
    assert (report.layout, report.exact, report.resized) == (layout, True, [])
    read = {name for _, names in report.renamed for name in names} | set(report.kept)
    assert read | {*report.dropped, *report.left} == state.keys()
    out = export(model, layout)
    gone = set(report.dropped) | set(report.left)
    assert same(out, {name: tensor for name, tensor in state.items() if name not in gone})


def test_what_a_published_name_becomes():
    """By hand, one number each: the joined projections, the flat table, the other sign, the packed projections."""
    state, model = published.swin_transformers(old=True), swin()
    load(model, state)
    theirs = "swin.encoder.layers.0.blocks.1.attention.self"
    attention = model.layers[0].blocks[1].attention
    assert torch.equal(attention.qkv.weight[9], state[f"{theirs}.key.weight"][1])
    flat = state[f"{theirs}.relative_position_bias_table"]
    for head, row, column in ((0, 0, 1), (1, 3, 3), (1, 6, 2)):
        assert attention.position.table[head, row, column] == flat[row * 7 + column, head]
    state, model = published.convit(), convit()
    load(model, state)
    weight, position = state["blocks.1.attn.pos_proj.weight"], model.blocks[1].attention.position
    for head in range(4):  # (dx, dy, d²) of key - query; ours (row, column) of query - key
        assert position.direction[head].tolist() == [-weight[head, 1], -weight[head, 0]]
        assert position.spread[head] == weight[head, 2]
    state, model = published.detr(), small_detr()
    load(model, state)
    packed = state["transformer.decoder.layers.0.multihead_attn.in_proj_weight"]
    assert torch.equal(model.transformer.decoder.layers[0].multihead_attn.v.weight, packed[16:])


@pytest.mark.row(16)
@pytest.mark.parametrize("kind", MODELS)
def test_export_and_load_are_inverse_in_every_layout(kind):
    model = refill(MODELS[kind]())
    names = [one.name for one in layouts(model)]
    done = 0
    for name in dict.fromkeys(names):
        try:
            state = export(model, name)
        except ValueError:
            continue  # an image model's layout has no names for what AIM adds
        again = refill(MODELS[kind]())
        assert load(again, state, layout=name).exact
        assert same(again.state_dict(), model.state_dict())
        done += 1
    assert done >= 2


@pytest.mark.row(54)
def test_old_and_new_names_are_one_model():
    models = [swin(), swin()]
    for model, old in zip(models, (True, False), strict=True):
        torch.manual_seed(1)
        load(model, published.swin_transformers(old=old))
    assert same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.row(35)
@pytest.mark.row(54)
def test_buffers_may_be_missing_or_too_many():
    state, model = published.swin(), swin()
    bare = {name: tensor for name, tensor in state.items() if "index" not in name and "mask" not in name}
    assert len(load(model, state).dropped) == len(state) - len(bare) > 0
    assert load(model, bare).dropped == []
    state, model = published.fiery(), MODELS["nn.temporal.TemporalModel"]()
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    report = load(model, old)
    assert report.exact
    assert all(
        name.endswith("num_batches_tracked") for name in report.left if "frustum" not in name and "coder" not in name
    )


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(wrapper):
    state = {wrapper + name: tensor for name, tensor in published.swin_timm().items()}
    assert load(swin(), {"state_dict": state, "epoch": 3}).layout == "timm"


def test_a_bare_part_has_no_prefix():
    state = published.swin_transformers(old=False)
    bare = {name.removeprefix("swin."): tensor for name, tensor in state.items() if name.startswith("swin.")}
    report = load(swin(num_classes=0), bare)
    assert (report.layout, report.exact) == ("transformers", True)
    bare = {n.removeprefix("model.temporal_model."): t for n, t in published.fiery().items() if "temporal" in n}
    assert load(MODELS["nn.temporal.TemporalModel"](), bare).exact


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("norm.bias"), "1 missing: norm.bias"),
    "part of a join": (
        lambda s: s.pop("layers.0.blocks.0.mlp.fc1.bias"), r"1 missing: layers.0.blocks.0.mlp.fc1.bias"
    ),
    "another shape": (
        lambda s: s.update({"head.weight": torch.ones(7, 16)}), r"of another shape: head.weight \[7, 16\] for \[5, 16\]"
    ),
    "heads": (
        lambda s: s.update({"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(49, 3)}),
        r"of another shape: layers.0.blocks.0.attention.position.table \[3, 7, 7\] for \[2, 7, 7\]",
    ),
    "NaN": (lambda s: s["norm.weight"].fill_(math.nan), "1 with NaN or infinity: norm.weight"),
    "infinity": (lambda s: s["norm.weight"][:1].fill_(math.inf), "1 with NaN or infinity: norm.weight"),
    "a stage too many": (
        lambda s: s.update({"layers.2.blocks.0.norm1.weight": torch.ones(32)}),
        "1 unexpected: layers.2.blocks.0.norm1.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_strict_refuses_and_loads_nothing(fault):
    spoil, words = FAULTS[fault]
    state, model = published.swin(), refill(swin())
    spoil(state)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"needs to fit the Swin tensor by tensor; got, .*'official', .*{words}.*Build"
    ):
        load(model, state)
    assert same(model.state_dict(), before)
    report = load(model, state, strict=False)
    assert not report.exact
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    faulty = {*report.missing, *(name for name, *_ in report.unfit), *report.broken}
    assert set(changed) == before.keys() - faulty
    assert {*report.kept, *(name for ours, _ in report.renamed for name in ours)} == set(changed), "and counted so"


def test_a_layout_that_nobody_has():
    with pytest.raises(
        ValueError, match=r"'locant', 'official', .*got 2 names, most like .* Check that it is this model"
    ):
        load(swin(), {"encoder.weight": torch.ones(2), "norm.weight": torch.ones(16)})
    with pytest.raises(ValueError, match=r"`layout` needs a name out of 'locant', 'official', .* got 'mmaction'"):
        load(swin(), published.swin(), layout="mmaction")
    state = published.swin() | {"ema_decay": torch.ones(1)}
    with pytest.raises(ValueError, match=r"most like 'official', by which 50 of the model's 50 .* none for ema_decay"):
        load(swin(), state)
    assert load(swin(), state, layout="official", strict=False).unexpected == ["ema_decay"]


def test_names_that_two_layouts_read_differently(monkeypatch):
    from locant.checkpoints import swin as data

    swapped = Layout("swapped", (Rule("norm.weight", "norm.bias"), Rule("norm.bias", "norm.weight"), Rule("*", "*")))
    monkeypatch.setattr(data, "LAYOUTS", (swapped,))
    with pytest.raises(ValueError, match=r"'locant' and 'swapped' read differently\. Say which with layout="):
        load(swin(), swin().state_dict())


def test_a_file_of_another_model_is_told():
    with pytest.raises(ValueError, match=r"needs layers.*|needs names of one of its layouts"):
        load(swin(), published.convit())
    with pytest.raises(ValueError, match=r"`source` needs tensors by their names: .* none under \['epoch'\]"):
        load(swin(), {"epoch": 3})
    with pytest.raises(ValueError, match=r"of shapes that make up .* Check that the file is of this model"):
        load(swin(), published.swin() | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(3)})


def test_fresh_stays_as_the_model_has_it():
    state, model = (
        published.swin() | {"head.weight": torch.ones(1000, 16), "head.bias": torch.ones(1000)},
        refill(swin()),
    )
    head = model.head.weight.clone()
    report = load(model, state, fresh=("head.*",))
    assert torch.equal(model.head.weight, head)
    assert report.exact
    assert report.left == ["head.weight", "head.bias"]
    assert load(swin(num_classes=0), state, fresh=("head.*",)).left == ["head.weight", "head.bias"]


def test_dtypes_are_the_models():
    state, model = {n: t.half() if t.is_floating_point() else t for n, t in published.swin().items()}, swin()
    load(model, state)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.norm.weight, state["norm.weight"].float())


def test_models_without_a_family_have_our_own_names_alone():
    model = refill(nn.Linear(3, 2))
    assert load(nn.Linear(3, 2), model.state_dict()) == Report("Linear", "locant", kept=["weight", "bias"])
    with pytest.raises(ValueError, match=r"`layout` needs a name out of 'locant' for a Linear; got 'timm'"):
        export(model, "timm")
    with pytest.raises(ValueError, match=r"'one' needs a counterpart for every tensor; got 'bias'"):
        export(model, Layout("one", (Rule("weight", "w"),)))


def test_the_package_lists_its_names():
    assert all(hasattr(checkpoints, name) for name in checkpoints.__all__)


RULES = (
    Rule("stem.*", "features.0.*"),
    Rule("stages.{}.blocks.{}.*", "features.{2i+1}.{}.*"),
    Rule("stages.{}.merging", "stages.{i+1}.merging"),
    Rule("layers.{}.qkv.*", ("layers.{}.q.*", "layers.{}.k.*", "layers.{}.v.*"), JOINED),
    Rule(("{}.q.*", "{}.k.*", "{}.v.*"), "{}.in_proj_*", JOINED),
    Rule("layers.{}.bias", "r_w_bias", SHARED),
    Rule("layers.{}.rows", "r_emb", STACKED),
    Rule(("embed.prefix", "embed.table"), "pos_embed", ROWS_WITH_PREFIX),
    Rule(("beit.table", "beit.query_prefix", "beit.key_prefix", "beit.both"), "rel_pos", TABLE_WITH_PREFIX),
    Rule("clip", "clip_flat", TABLE),
)


def test_every_turn_and_every_way_to_count():
    layout, shared = Layout("theirs", RULES), torch.randn(3)
    ours = {
        "stem.weight": torch.randn(2),
        "stages.2.blocks.11.norm.bias": torch.randn(2),
        "stages.0.merging": torch.randn(3),
        "layers.0.qkv.weight": torch.randn(9, 2),
        **{f"0.{name}.bias": torch.randn(2) for name in "qkv"},
        **{f"layers.{i}.bias": shared for i in range(11)},
        **{f"layers.{i}.rows": torch.randn(2, 2) for i in range(11)},
        "embed.prefix": torch.randn(2, 4),
        "embed.table": torch.randn(6, 4),
        "beit.table": torch.randn(2, 3, 5),
        **{f"beit.{name}": torch.randn(2) for name in ("query_prefix", "key_prefix", "both")},
        "clip": torch.randn(2, 3, 5, 7),
    }
    theirs = turned_out(ours, layout)
    assert {name: list(tensor.shape) for name, tensor in theirs.items()} == {
        "features.0.weight": [2], "features.5.11.norm.bias": [2], "stages.1.merging": [3],
        "layers.0.q.weight": [3, 2], "layers.0.k.weight": [3, 2], "layers.0.v.weight": [3, 2], "0.in_proj_bias": [6],
        "r_w_bias": [3], "r_emb": [11, 2, 2], "pos_embed": [1, 8, 4], "rel_pos": [18, 2], "clip_flat": [105, 2],
    }  # fmt: skip
    assert torch.equal(theirs["r_emb"][10], ours["layers.10.rows"]), "layers count as numbers, 10 after 9"
    assert torch.equal(
        theirs["rel_pos"][15:], torch.stack([ours[f"beit.{n}"] for n in ("query_prefix", "key_prefix", "both")])
    )
    assert theirs["clip_flat"][(1 * 5 + 3) * 7 + 6, 1] == ours["clip"][1, 1, 3, 6]
    assert same(turned_in(theirs, layout, {name: tuple(tensor.shape) for name, tensor in ours.items()}), ours)
    ours["layers.3.bias"] = shared + 1
    with pytest.raises(ValueError, match=r"needs one tensor that all layers share; got layers that differ"):
        turned_out(ours, layout)


def test_numbers_that_are_not_counted_that_way_do_not_fit():
    found = matched(
        ["features.2.0.norm", "features.01.0.norm", "stages.0.merging", "clip_flat.x"], Layout("", RULES), []
    )
    assert found.unknown == ["features.2.0.norm", "features.01.0.norm", "stages.0.merging", "clip_flat.x"]
    found = matched(["layers.0.q.w", "layers.0.k.w", "layers.1.q.w"], Layout("", RULES), ["layers.0.qkv.w", "1.q.w"])
    assert found.incomplete == dict.fromkeys(["layers.0.q.w", "layers.0.k.w"], ("layers.0.v.w",))
    assert found.absent == {"layers.1.q.w": ("layers.1.qkv.w",)}
    with pytest.raises(ValueError, match=r"needs 0.k.w, 0.v.w beside 0.q.w; got a state without"):
        turned_out({"0.q.w": torch.ones(1)}, Layout("theirs", RULES))


def test_what_another_shape_keeps_out_is_counted_as_left_out():
    """A published head of 1000 classes, read for 5: 2 tensors are not loaded, and the first line says so."""
    state = published.swin() | {"head.weight": torch.ones(1000, 16), "head.bias": torch.ones(1000)}
    state["layers.0.blocks.0.attn.qkv.bias"].fill_(math.nan)
    report = load(swin(), state, strict=False)
    assert str(report).splitlines()[0] == (
        "Swin from the layout 'official': 33 kept, 14 renamed, 4 dropped, 0 missing, 0 unexpected, 2 of another shape, "
        "1 with NaN or infinity"
    )


def test_a_report_is_its_table_wherever_it_is_shown():
    report = load(swin(), published.swin())
    assert repr(report) == str(report)
    assert len(repr(report)) < 1200


def test_reports_are_for_people_too():
    state = published.swin(window=7)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    first, second, *rest = str(load(swin(window=8, img_size=64), state)).splitlines()
    assert (
        first == "Swin from the layout 'official': 35 kept, 15 renamed, 3 resized, 4 dropped, 0 missing, 0 unexpected"
    )
    assert second == "  renamed"
    for line in (
        "    layers.0-1.blocks.0-1.attn.qkv.* → layers.0-1.blocks.0-1.attention.qkv.*  (6)",
        "  resized",
        "    layers.0-1.blocks.0-1.attention.position.table  13 × 13 → 15 × 15, bicubic  (3)",
        "  dropped, for the model does without",
        "    layers.0.blocks.1.attn_mask",
    ):
        assert line in rest
    assert folded(["a.0.b", "a.2.b", "c", "d.weight", "d.bias"]) == ["a.0-2.b  (2)", "c", "d.*  (2)"]
