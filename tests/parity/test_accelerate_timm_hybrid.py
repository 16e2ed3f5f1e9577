"""timm's hybrids of convolutions and attention, accelerated: MaxViT, CoAtNet, GC ViT, TinyViT, LeViT."""

from __future__ import annotations

import copy

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.timm_hybrid import FAMILIES

MODELS = {  # name: how it is made, and how many attentions it has
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}, 22),  # log-CPB, windows and grids, channels last
    "maxvit_tiny_tf_224": (64, {"img_size": 64}, 22),  # a table [heads, 2H-1, 2W-1] over key - query
    "coatnet_pico_rw_224": (64, {"img_size": 64}, 7),  # the whole map, channels first
    "coatnet_rmlp_nano_rw_224": (64, {"img_size": 64}, 9),
    "gcvit_xxtiny": (224, {}, 12),  # queries of the whole picture in every other block
    "tiny_vit_5m_224": (224, {}, 10),
    "levit_128s": (224, {}, 11),  # of these two pool their queries
}


def _model(timm, name: str) -> nn.Module:
    torch.manual_seed(0)
    return _drawn(timm.create_model(name, num_classes=10, **MODELS[name][1]))


def _drawn(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "attention_biases" in name:
                p.normal_()
    return accelerated.randomised(model)


@pytest.mark.parametrize("name", MODELS)
def test_hybrids(timm, name: str) -> None:
    size, _, count = MODELS[name]
    model = _model(timm, name)
    report = locant.accelerate(model, example=torch.randn(2, 3, size, size), strict=True, training=True)
    attention = [row for row in report.rows if row.kind == "attention"]
    assert [row.kernel for row in attention].count("native") == len(attention) == count


def _attentions(timm) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Each class by itself, on maps that are not square, where it takes any."""
    m, relative = timm.models, timm.layers
    table, field = (lambda **k: relative.RelPosBias((3, 5), **k)), (lambda **k: relative.RelPosMlp((3, 5), **k))
    backwards = lambda **k: relative.RelPosBiasTf((3, 5), **k)  # noqa: E731
    last, first = m.maxxvit.AttentionCl, m.maxxvit.Attention2d
    tokens, picture = torch.randn(4, 15, 16), torch.randn(4, 16, 3, 5)
    return {
        "last, table": (last(16, dim_head=8, rel_pos_cls=table), (torch.randn(4, 3, 5, 16),)),
        "last, log-CPB, heads inside": (last(16, dim_head=8, head_first=False, rel_pos_cls=field), (tokens,)),
        "last, backwards": (last(16, dim_head=8, rel_pos_cls=backwards), (torch.randn(4, 3, 5, 16),)),
        "first, table": (first(16, 24, dim_head=8, rel_pos_cls=table), (picture,)),
        "first, backwards": (first(16, dim_head=8, head_first=False, rel_pos_cls=backwards), (picture,)),
        "windows": (m.gcvit.WindowAttentionGlobal(16, 2, (3, 5), use_global=False), (tokens,)),
        "queries of the picture": (m.gcvit.WindowAttentionGlobal(16, 2, (3, 5)), (tokens, torch.randn(2, 15, 16))),
        "distances": (m.tiny_vit.Attention(16, 4, 2, 2, (3, 5)), (tokens,)),
        "levit": (m.levit.Attention(16, 4, 2, 3.0, (3, 5)), (tokens,)),
        "levit, pooled": (m.levit.AttentionDownsample(16, 24, 4, 2, 3.0, 2, (3, 5)), (tokens,)),
        "levit, pooled, means": (m.levit.AttentionDownsample(16, 24, 4, 2, 3.0, 2, (3, 5), use_pool=True), (tokens,)),
    }  # fmt: skip


NAMES = (
    "last, table", "last, log-CPB, heads inside", "last, backwards", "first, table", "first, backwards", "windows",
    "queries of the picture", "distances", "levit", "levit, pooled", "levit, pooled, means",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_exactness(timm, name: str) -> None:
    """Outputs and the gradient of every parameter and input, in float64."""
    torch.manual_seed(0)
    module, inputs = _attentions(timm)[name]
    plain = _drawn(module).double()
    ours = copy.deepcopy(plain)
    assert sum(row.kind == "attention" for row in locant.accelerate(ours, strict=True).replaced) == 1
    numbers = []
    for model in (plain, ours):
        given = [x.double().requires_grad_() for x in inputs]
        out = model(*given)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape, dtype=torch.float64))
        numbers.append([out.detach(), *(x.grad for x in (*given, *model.parameters()))])
    for theirs, mine in zip(*numbers, strict=True):
        assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


def test_a_table_is_read_at_each_call(timm) -> None:
    """timm keeps an expanded table in evaluation, and goes on with it when the table was written to."""
    torch.manual_seed(0)
    module, (x,) = _attentions(timm)["distances"]
    module = _drawn(module)
    with torch.no_grad():
        module(x)  # kept from here on
        locant.accelerate(module)
        module.attention_biases.normal_()
        module(x)
        fresh = timm.models.tiny_vit.Attention(16, 4, 2, 2, (3, 5))
        fresh.eval()
        fresh.load_state_dict(module.state_dict())
        assert torch.allclose(module(x), fresh(x), atol=1e-6)


def test_a_bias_that_comes_in_goes_the_library_s_way(timm) -> None:
    torch.manual_seed(0)
    for name, x in (("last, table", torch.randn(4, 15, 16)), ("first, table", torch.randn(4, 16, 3, 5))):
        plain = _drawn(_attentions(timm)[name][0])
        ours, shared = copy.deepcopy(plain), torch.randn(1, 1, 15, 15)
        locant.accelerate(ours, pack=False)
        with torch.no_grad():
            assert torch.equal(ours(x, shared), plain(x, shared))


def test_without_a_position_of_its_own_the_row_says_so(timm) -> None:
    module = timm.models.maxxvit.AttentionCl(16, dim_head=8).eval()
    assert "it has no position of its own" in str(locant.accelerate(module))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_sources_are_tried(timm, monkeypatch, name: str) -> None:
    accelerated.check_tried(_attentions(timm)[name][0], monkeypatch)


def test_the_classes_are_known_by_source(timm) -> None:
    accelerated.check_known(FAMILIES)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["coatnet_pico_rw_224", "tiny_vit_5m_224"])
def test_graphs(timm, name: str) -> None:
    size = MODELS[name][0]
    accelerated.check_graphs(_model(timm, name), [torch.randn(1, 3, size, size)])
