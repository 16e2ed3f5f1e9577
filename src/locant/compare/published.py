"""A published design as `--model`: a model of locant.models by its name, with a scheme where its attention is.

The design's own position is taken out. What a scheme adds to tokens stands on the patches, what acts in layers in every
attention; in Swin inside its windows. From scratch that is all. With `--weights` the rest of the model comes from a
file of any library, its embeddings and tables brought to the size of the data; a scheme that is the file's own takes
them over, any other one starts fresh beside weights that were trained without it, and `Carried` says so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant.checkpoints.loading import prepared
from locant.checkpoints.names import fits
from locant.compare.placement import Handed, LayerPosition, Placement, TokenPosition
from locant.grid import Grid
from locant.masks import Windows
from locant.models.convit import ConViT
from locant.models.pyramid import Pyramid, half
from locant.models.vit import ViT
from locant.nn.gated import GatedAttention
from locant.nn.patches import PatchEmbedding
from locant.nn.self_attention import Attention
from locant.nn.window import fitted
from locant.positions.learned import Learned
from locant.positions.position import Position
from locant.registry import builder, family
from locant.tasks.kind import Recipe
from locant.tasks.task import Refusal

SWIN_PATCH = 4


class PlacedPatches(nn.Module):
    """The patches of a picture with what a scheme adds to them."""

    def __init__(self, patches: PatchEmbedding, tokens: TokenPosition) -> None:
        super().__init__()
        self.patches, self.tokens, self.patch, self.border = patches, tokens, patches.patch, patches.border

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.patches(x)
        return self.tokens(x, grid), grid


class PlacedAttention(nn.Module):
    """What stood in a block, attending as a scheme says: on the grid of the call, inside windows where it has them."""

    def __init__(self, attention: Attention, layer: LayerPosition) -> None:
        super().__init__()
        self.attention, self.layer = attention, layer

    def forward(self, x: Tensor, *, grid: Grid | None = None, position: Any = None, mask: Any = None) -> Tensor:
        (at,) = self.layer(grid)
        return Attention.forward(self.attention, x, **at)


@dataclass(frozen=True)
class Spot:
    """Where a layer attends: the block that holds its attention, channels, heads, tokens, and its windows."""

    block: Any
    dim: int
    heads: int
    grid: Grid
    window: Windows | None = None


@dataclass(frozen=True)
class Carried:
    """What a model has of a file: its layout, its head or a fresh one, and how many of its position's numbers.

    `position` and `fresh` count the scheme's numbers that come from the file and those that do not; `dropped` those
    that the file has of its own position and the model has no place for.
    """

    layout: str
    head: bool
    position: int
    fresh: int
    dropped: int
    notes: tuple[str, ...] = ()

    @property
    def fair(self) -> bool:
        """Whether all of the scheme and all of the file's position is there."""
        return not self.fresh and not self.dropped

    def sentence(self, label: str) -> str:
        """What is carried over, of one scheme."""
        if self.fair:
            return f"{label}: the file's own position, {self.position:,} numbers of it carried over"
        said = [f"{self.position:,} numbers carried over"] * bool(self.position)
        said += [f"{self.fresh:,} fresh beside weights that were trained without them"] * bool(self.fresh)
        said += [f"{self.dropped:,} of the file's own position dropped"] * bool(self.dropped)
        return f"{label}: {', '.join(said)}"


class PublishedBuilder:
    """Builds a published design for a placement.

    Args:
        recipe: `model` is one of `sizes.DESIGNS`; `weights` a file or None; `freeze` whether only position, the last
            norm and the head learn.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.name, self.weights, self.freeze = recipe.model, recipe.weights, recipe.freeze

    def __call__(self, position: Placement) -> nn.Module:
        self._check(position)
        # 1 the design as published, with the weights of a file
        model: Any = self._built(position)
        first = position.trained is None  # a model that was trained already has weights of its own
        loaded = load_weights(model, Path(self.weights), self.name) if first and self.weights is not None else None
        # 2 its own position out, the scheme in
        own = take_out(model)
        place(model, position)
        # 3 what of the file's position the scheme has a place for
        if loaded is not None:
            model.carried = Carried(*loaded[:2], *carry(own, position.handed), loaded[2])
            keep_rows(model, own[0], position.handed)
        if self.freeze:
            freeze(model, position.handed)
        return model

    def _built(self, position: Placement) -> nn.Module:
        _, height, width = position.item
        given: dict[str, Any] = {"img_size": (height, width), "in_chans": position.channels}
        make = builder(self.name)
        if "patch" in inspect.signature(make).parameters:
            given["patch"] = position.patch[0]
        try:
            return make(**given, num_classes=position.classes)
        except ValueError as error:
            raise Refusal(f"{error} In `locant compare`: --size and --patch.") from None

    def _check(self, position: Placement) -> None:
        scheme, sides = position.design, position.patch
        if position.kind != "images":
            raise Refusal(
                f"--model {self.name} needs pictures; the task is {position.kind}. "
                "Take the built-in transformer, or a builder of your own: my_model.py:build."
            )
        windows = scheme.name == "swin" and patch_of(self.name) == SWIN_PATCH
        if scheme.adapted or scheme.local or scheme.ordered or windows:
            raise Refusal(
                f"--model {self.name} needs schemes that differ in position alone; {scheme.name!r} is a whole design: "
                f"{scheme.beside.rstrip('.')}. Leave {scheme.name!r} out of --positions."
            )
        if len(set(sides)) > 1 or (patch_of(self.name) == SWIN_PATCH != sides[0]):
            raise Refusal(
                f"--model {self.name} needs square patches{' of 4' * (patch_of(self.name) == SWIN_PATCH)}; "
                f"got {' × '.join(map(str, sides))}. Leave --patch out."
            )


def patch_of(name: str) -> int:
    """The side of a published design's patches."""
    given = inspect.signature(builder(name)).parameters.get("patch")
    return SWIN_PATCH if given is None else int(given.default)


def load_weights(model: Any, path: Path, name: str) -> tuple[str, bool, tuple[str, ...]]:
    """A file's weights into a design, in place: its layout, whether its head fits, and what else differs.

    A head for another number of classes stays as it starts.

    Raises:
        Refusal: for a file that is no checkpoint of this design.
    """
    own = family(model)
    head = () if own is None else own.head
    try:
        _, report = prepared(model, path, strict=False)
        unfit = {one for one, *_ in report.unfit} | set(report.missing)
        fresh = head if any(fits(one, head) for one in unfit) else ()
        state, report = prepared(model, path, fresh=fresh)
    except (ValueError, OSError) as error:
        raise Refusal(f"--weights needs a checkpoint of {name}: {error}") from None
    model.load_state_dict(state, strict=False)
    return report.layout, not fresh, tuple(note.partition(". For them")[0] for note in report.notes)


def take_out(model: Any) -> tuple[Position | None, list[Position | None]]:
    """The design's own position: on its tokens, and in each of its layers, which are left without.

    ConViT's gated layers become plain ones with the same projections.
    """
    name = "absolute_pos_embed" if isinstance(model, Pyramid) else "pos_embed"
    tokens = getattr(model, name)
    setattr(model, name, None)
    layers: list[Position | None] = []
    for block in blocks_of(model):
        layers.append(block.attention.position)
        if isinstance(block.attention, GatedAttention):
            block.attention = _plain(block.attention)
        block.attention.position = None
    return tokens, layers


def place(model: Any, position: Placement) -> None:
    """The scheme onto the patches, and into every attention."""
    spots = list(spots_of(model))
    tokens = position.tokens(spots[0].dim, spots[0].grid)
    if isinstance(model, ViT):  # behind the class token, which may have a row
        model.pos_embed = tokens
    else:
        model.patch_embed = PlacedPatches(model.patch_embed, tokens)
    for index, spot in enumerate(spots):
        layer = position.layer(
            index, spot.dim, spot.heads, depth=len(spots), grid=spot.grid, window=spot.window
        )  # fmt: skip
        spot.block.attention = PlacedAttention(spot.block.attention, layer)


def blocks_of(model: Any) -> list[Any]:
    """Every block, from the first to the last."""
    return [b for stage in model.layers for b in stage.blocks] if isinstance(model, Pyramid) else list(model.blocks)


def spots_of(model: Any) -> Iterator[Spot]:
    """Where its layers attend."""
    if not isinstance(model, Pyramid):
        for index, block in enumerate(model.blocks):
            late = isinstance(model, ConViT) and index >= model.local_up_to_layer
            yield Spot(
                block, block.dim, block.attention.heads, Grid(*model.grid.shape, prefix=1) if late else model.grid
            )
        return
    assert model.img_size is not None, "as it is built here"
    for s, stage in enumerate(model.layers):
        grid = Grid(*(math.ceil(side / SWIN_PATCH / 2**s) for side in model.img_size))
        for b, block in enumerate(stage.blocks):
            window, shift = fitted(model.window, half(model.window, b), grid.shape, "joint")
            yield Spot(block, block.dim, block.attention.heads, grid, Windows(window, shift))


def carry(own: tuple[Position | None, list[Position | None]], handed: Handed) -> tuple[int, int, int]:
    """The file's position into the scheme's, where they are alike: how many numbers came, are fresh, are dropped."""
    pairs = [(own[0], list(handed.tokens[0])), *zip(own[1], map(list, handed.layers), strict=True)]
    carried = fresh = dropped = 0
    for theirs, ours in pairs:
        state = {} if theirs is None else theirs.state_dict()
        whole = sum(tensor.numel() for tensor in state.values())
        found = [one for one in ours if type(one) is type(theirs) and _alike(one, state)]
        for one in ours:
            fresh += 0 if one in found else sum(tensor.numel() for tensor in one.state_dict().values())
        for one in found:
            one.load_state_dict({**_rows_of_nobody(one, state), **state})
        carried += whole if found else 0
        dropped += 0 if found else whole
    return carried, fresh, dropped


def keep_rows(model: Any, theirs: Position | None, handed: Handed) -> None:
    """Rows of the file's embedding for tokens without a place, where the scheme has none: added to these tokens."""
    rows = theirs.prefix if isinstance(theirs, Learned) else None
    if rows is not None and not any(isinstance(one, Learned) for one in handed.tokens[0]):
        with torch.no_grad():
            for token, row in zip(model.front(), rows.split([t.shape[1] for t in model.front()]), strict=True):
                token.add_(row)


def freeze(model: nn.Module, handed: Handed) -> None:
    """Everything stays as it is but position, the last norm and the head, as AIM has it beside its adapters."""
    learns = {id(p) for module in (*handed.tokens, *handed.layers) for p in module.parameters()}
    ends = (getattr(model, name, None) for name in ("norm", "fc_norm", "head", "head_dist"))
    learns |= {id(p) for module in ends if isinstance(module, nn.Module) for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learns)


def told(starts: dict[str, tuple[str, Carried]], recipe: Recipe) -> dict[str, Any]:
    """For results.json: what each scheme has of a file, in numbers and in sentences.

    Args:
        starts: label and start of each scheme, by name.
        recipe: names the file and the design.
    """
    first = next(carried for _, carried in starts.values())
    file = Path(str(recipe.weights)).name
    fair = [label for label, carried in starts.values() if carried.fair]
    sentences = [
        f"Weights of {recipe.model} come from {file} (names of {first.layout}); "
        + ("its head is kept. " if first.head else "the head starts fresh, for other classes. ")
        + ("Position, the last norm and the head learn, the rest is frozen." if recipe.freeze else "All of it learns.")
    ]
    if len(fair) < len(starts):
        whole = f"only {' and '.join(fair)} has all that it learned" if fair else "no scheme here is the file's own"
        sentences.append(f"This is no fair fight: {whole}. A fair one starts from scratch.")
    sentences += [carried.sentence(label) + "." for label, carried in starts.values()]
    sentences += [f"{note[0].upper()}{note[1:]}." for note in first.notes]
    return {
        "file": file,
        "layout": first.layout,
        "head": first.head,
        "frozen": recipe.freeze,
        "fair": len(fair) == len(starts),
        "schemes": {name: {**asdict(carried), "fair": carried.fair} for name, (_, carried) in starts.items()},
        "sentences": sentences,
    }


def _rows_of_nobody(one: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for tokens without a place, where the file's embedding has no rows for them (DeiT III)."""
    return {n: torch.zeros_like(t) for n, t in one.state_dict().items() if n == "prefix" and n not in state}


def _alike(one: nn.Module, state: dict[str, Tensor]) -> bool:
    mine, state = one.state_dict(), {**_rows_of_nobody(one, state), **state}
    return mine.keys() == state.keys() and all(mine[name].shape == state[name].shape for name in mine)


def _plain(gated: GatedAttention) -> Attention:
    """The same projections without a gate."""
    plain = Attention(gated.dim, gated.heads, qkv_bias=gated.qk.bias is not None)
    plain.qkv.weight = nn.Parameter(torch.cat([gated.qk.weight, gated.v.weight]).detach())
    if gated.qk.bias is not None:
        plain.qkv.bias = nn.Parameter(torch.cat([gated.qk.bias, gated.v.bias]).detach())
    plain.proj = gated.proj
    plain.position = gated.position
    return plain
