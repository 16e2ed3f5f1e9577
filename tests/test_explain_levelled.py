"""Vectors of places that were added to tokens: told from content by a run without places, exactly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import small
import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.explain.levelled import without_places
from locant.explain.recording import Recorder
from locant.explain.run import ADDED, run
from locant.grid import Grid
from locant.positions.learned import Learned
from locant.positions.slopes import ALiBi

CELLS, WORDS, PLACES = 6, 4, 4  # channels of what tokens say, and of where they are


class Encoder(nn.Module):
    """Tokens and vectors of places, and two layers of two heads. In float64."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        dim = WORDS + PLACES
        self.grid = Grid(CELLS, prefix=prefix)
        self.pos_embed = nn.Parameter(torch.randn(1, CELLS + prefix, dim))
        self.layers = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(2))
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            x = x + attention(q, k, v, grid=self.grid).transpose(1, 2).flatten(2)
        return x


def tokens(model: Encoder) -> Tensor:
    return torch.randn(1, model.grid.tokens, WORDS + PLACES, dtype=torch.float64)


def logits(layer: nn.Module, x: Tensor) -> Tensor:
    """[heads, queries, keys] of one layer."""
    q, k, _ = layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return (q[0] @ k[0].transpose(-1, -2)) * q.shape[-1] ** -0.5


@pytest.mark.parametrize("prefix", [0, 1])
def test_content_is_what_a_model_without_places_gives(prefix: int) -> None:
    model = Encoder(prefix)
    x = tokens(model)
    before = copy.deepcopy(model.state_dict())
    level = without_places(model, model.grid)
    recorders = Recorder(level, [(0.4,)]), None
    with recorders[0].recording():
        level(x)
    recorder = Recorder(model, [(0.4,)], alike=recorders[0])
    with recorder.recording():
        model(x)
    # 1 the same by hand: rows of the prefix stay, all others are their mean
    mean = model.pos_embed.clone()
    mean[:, prefix:] = mean[:, prefix:].mean(1, keepdim=True)
    query = prefix + 2
    for seen, layer, whole, alike in zip(
        recorder.seen, model.layers, _states(model, x, model.pos_embed), _states(model, x, mean), strict=True
    ):
        content, both = logits(layer, alike)[:, query], logits(layer, whole)[:, query]
        row = seen.rows[0]
        for found, first, expected in (
            (row.both, row.prefix[0], both), (row.content, row.prefix[1], content),
            (row.position, row.prefix[2], both - content),
        ):  # fmt: skip
            weights = expected.softmax(-1).numpy()
            assert np.allclose(np.concatenate([first, found], -1), weights, atol=1e-6)  # rows are float32
        shares = seen.measures[0][:2]
        assert np.allclose(shares.sum(0), 1)
        assert np.allclose(shares[1], _share(both - content, both))
    # 2 the model is as it was
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def _states(model: Encoder, x: Tensor, places: Tensor) -> list[Tensor]:
    """What each layer reads."""
    x, found = x + places, []
    for layer in model.layers:
        found.append(x)
        v = layer(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)[2]
        x = x + (logits(layer, x).softmax(-1) @ v[0]).transpose(0, 1).flatten(1)[None]
    return found


def _share(part: Tensor, whole: Tensor) -> np.ndarray:
    part, whole = (y - y.mean(-1, keepdim=True) for y in (part, whole))
    return ((part * whole).sum(-1) / (whole * whole).sum(-1)).numpy()


def test_heads_that_read_places_alone_and_words_alone() -> None:
    """Head 0 reads the channels of places, head 1 those of words: all position, and none."""
    model = Encoder()
    x = tokens(model)
    with torch.no_grad():
        x[..., WORDS:], model.pos_embed[..., :WORDS] = 0, 0
        weight = model.layers[0].weight.unflatten(0, (3, 2, -1))
        weight[:2, 0, :, :WORDS] = weight[:2, 1, :, WORDS:] = 0
    found = run(model, x).data
    first, second = found.layers[0].heads
    assert first.position_share == pytest.approx(1)
    assert second.position_share == pytest.approx(0, abs=1e-12)
    assert found.layers[0].entrance == "embed"
    assert found.layers[0].scheme == "embeddings added to the tokens"
    assert ADDED["embed"] in found.notes
    assert any(f.kind == "positional" and (f.layer, f.head) == (0, 0) for f in found.findings)


def test_tables_of_texts_are_levelled_over_the_rows_in_use() -> None:
    class Text(nn.Module):
        def __init__(self, padding: int | None) -> None:
            super().__init__()
            self.position_embeddings = nn.Embedding(20, 3, padding_idx=padding)

    for padding, rows in ((None, slice(0, 5)), (1, slice(2, 7))):
        model = Text(padding)
        table = model.position_embeddings.weight.detach()
        level = without_places(model, Grid(5)).position_embeddings.weight
        assert torch.allclose(level, table[rows].mean(0).expand_as(level))


def test_modules_of_places_are_levelled_and_schemes_of_attention_kept() -> None:
    grid = Grid(2, 3, prefix=1)
    model = nn.ModuleDict({"embed": Learned(grid, 4, init_std=1.0), "bias": ALiBi(2)})
    level = without_places(model, grid)
    rows = model["embed"](grid).detach()
    assert torch.allclose(level["embed"](grid)[1:], rows[1:].mean(0).expand(6, 4))
    assert torch.equal(level["embed"](grid)[:1], rows[:1])
    assert torch.equal(model["embed"](grid), rows)
    assert without_places(nn.ModuleDict({"bias": ALiBi(2)}), grid) is None


def test_a_model_that_can_not_be_copied_says_so() -> None:
    model = Encoder().float()
    model.doubled = nn.Parameter(torch.ones(2)) * 2  # computed from another
    found = run(model, tokens(model).float()).data
    assert "so they are not told from content" in found.notes[1]
    assert all(row.position is None for layer in found.layers for row in layer.rows)


@pytest.mark.parametrize("name", ["models.vit.ViT", "models.deit.DeiT"])
def test_vision_transformers_are_split(name: str) -> None:
    torch.manual_seed(0)
    model = small.MODELS[name]().eval()
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    found = run(model, x).data
    assert all(layer.entrance == "embed" for layer in found.layers)
    assert all(np.isclose(h.position_share + h.content_share, 1) for layer in found.layers for h in layer.heads)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(before), _tensors(model(x)), strict=True))


def _tensors(out: object) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)  # type: ignore[return-value]
