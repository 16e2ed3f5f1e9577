"""A pyramid of windows: what Swin and Swin v2 share, from a picture to one map per stage."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.checks import check_types
from locant.grid import Grid
from locant.models.backbone import Backbone
from locant.models.placement import Wanted, added, built, check_wanted, in_layers, moved, on_tokens, one_or_several
from locant.models.rules import Rules, chosen
from locant.models.vision import Size, drop_path_rates, init_linears, pair
from locant.nn.block import Block
from locant.nn.patches import PatchEmbedding, PatchMerging
from locant.nn.window import fitted
from locant.positions.learned import Learned
from locant.positions.position import Position
from locant.resizing import resize_embedding

PUBLISHED = "published"
LAST = 99999.0  # by which timm means: the same group as what comes before
Resize = Callable[[Any, Grid], Position]


class Stage(nn.Module):
    """Blocks on one grid, and the merging that leads to the next stage."""

    blocks: Any  # a ModuleList of Block, whose members torch types as bare modules

    def __init__(
        self, blocks: Sequence[Block], downsample: PatchMerging | None, pos_embed: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pos_embed = pos_embed
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointing = False

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch tokens dim"]:
        """What embeds in this stage, then every block in turn; what comes out is not merged yet."""
        x = added("a stage of windows", x, self.pos_embed, grid)
        for block in self.blocks:
            x = checkpoint(block, x, grid=grid, use_reentrant=False) if self.checkpointing else block(x, grid=grid)
        return x


class Pyramid(Backbone, nn.Module, ABC):
    """logits = head(mean(norm(x_S))),  x_s = blocks_s(merging_s(x_{s-1})),  x_0 = blocks_0(patch_embed(picture)).

    Abstract: a model says which block and which position stand on a grid, and which libraries have weights for it
    (`LIBRARIES`). Arguments are those of `Swin`.
    """

    LIBRARIES: ClassVar[Mapping[str, Rules]] = {}
    layers: Any  # a ModuleList of Stage

    @check_types
    def __init__(
        self,
        *,
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: Size = 7,
        img_size: Size | None = 224,
        patch: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        drop_path_rate: float | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        position: Wanted | tuple[Wanted, ...] = PUBLISHED,
        like: str | None = None,
        border: str | None = None,
        small: str | None = None,
        patch_border: str | None = None,
        fixed: bool | None = None,
        absolute: bool = False,
        stage_norms: bool | tuple[int, ...] = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_sizes(name, depths, heads, patch, num_classes)
        rules = chosen(
            name, self.LIBRARIES, like, Rules(),
            border=border, small=small, patch_border=patch_border, fixed=fixed, drop_path=drop_path_rate,
        )  # fmt: skip
        self.rules = rules if rules.drop_path is not None else replace(rules, drop_path=0.1)
        self.window = pair(name, "window", window)
        self.img_size = None if img_size is None else pair(name, "img_size", img_size)
        # 1 tokens and where they are
        self.patch_embed = PatchEmbedding(
            dim, (patch, patch), channels=in_chans, norm=True, border=self.rules.patch_border
        )
        self.absolute = absolute
        self.absolute_pos_embed = Learned(self._map(0, name), dim) if absolute else None
        # 2 stages
        attention = {"kernel": kernel, "dropout": attn_drop_rate, "proj_dropout": proj_drop_rate}
        block = {"mlp_ratio": mlp_ratio, "dropout": proj_drop_rate, "norm_eps": 1e-5}
        wanted = _per_stage(name, position, len(depths))
        self.published = tuple(one == PUBLISHED for one in wanted)
        self.layers = nn.ModuleList(self._built_stages(dim, depths, heads, wanted, attention, block))
        self._set_windows()
        # 3 norms and head
        self.stage_norms = _stages_named(name, stage_norms, len(depths))
        for s in self.stage_norms:
            self.add_module(f"norm{s}", nn.LayerNorm(dim * 2**s))
        width = dim * 2 ** (len(depths) - 1)
        self.norm = None if len(depths) - 1 in self.stage_norms else nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else None
        self._init_weights()

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or the mean of the features of a model without a head."""
        mean = self.forward_features(x).mean((2, 3))
        return mean if self.head is None else self.head(mean)

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """What the head averages: the last stage's map behind its norm."""
        x, grid = self._layers(x)[-1]
        return _map(self._last_norm()(x), grid)

    def features(
        self,
        x: Float[Tensor, "batch channels height width"],
        stages: Sequence[int] | None = None,
        *,
        norm: bool = False,
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """The map of each stage, or of those named (0 is the first), before merging.

        Args:
            x: pictures.
            stages: which ones; None is all of them.
            norm: whether each is behind its own norm, as detectors take them: the model needs `stage_norms` for it.

        Raises:
            ValueError: for a stage that there is not, or one without a norm.
        """
        count = len(self.layers)
        wanted = range(count) if stages is None else stages
        if not all(-count <= s < count for s in wanted):
            raise ValueError(
                f"{type(self).__name__} needs `stages` out of 0 to {count - 1}; got {list(wanted)}. "
                "Leave them out for all maps."
            )
        lacking = [s for s in wanted if s % count not in self.stage_norms] if norm else []
        if lacking:
            raise ValueError(
                f"{type(self).__name__} needs a norm of its own for every stage under norm=True; got none for "
                f"{lacking}. Build the model with stage_norms=True, or take the maps as they are."
            )
        found = self._layers(x)
        maps = ((s, *found[s]) for s in wanted)
        return [_map(self.get_submodule(f"norm{s % count}")(y) if norm else y, grid) for s, y, grid in maps]

    def follow(self, library: str) -> None:
        """Take over the rules of a library (`LIBRARIES`), in place: windows, borders, drop path.

        Tables that reach farther or less far by its rules keep the numbers of the offsets that stay. Do it before
        `checkpoints.load`, so that they have the sizes of that library's files.

        Raises:
            ValueError: for a library without a record.
        """
        own, theirs = self.rules.drop_path, chosen(type(self).__name__, self.LIBRARIES, library, Rules())
        self.rules = theirs if theirs.drop_path is not None else replace(theirs, drop_path=own)
        self.settings.update(
            like=library, border=None, small=None, patch_border=None, fixed=None, drop_path_rate=self.rules.drop_path
        )
        self.patch_embed.border = self.rules.patch_border
        blocks = [block for stage in self.layers for block in stage.blocks]
        for block, rate in zip(blocks, drop_path_rates(self.rules.drop_path or 0.0, len(blocks)), strict=True):
            block.drop_path, block.attention.border = rate, self.rules.border
        self._set_windows()
        for s, stage in enumerate(self.layers):
            for attention in (block.attention for block in stage.blocks):
                attention.position = self._cut(s, attention.position, self.reach(s))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that published training does not decay, besides biases and norms."""
        return {name for name, _ in self.named_parameters() if ".position." in name or "pos_embed" in name}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """From a parameter's name to its place in depth, for timm's `param_groups_layer_decay`.

        (0) what makes tokens; (1, stage, block), or (1, stage) if `coarse`, a merging being of the stage that it leads
        to; the norms with the last block; then the head.
        """

        def group(name: str) -> tuple[float, ...]:
            words = name.split(".")
            if words[0] == "layers":
                merging = words[2] == "downsample"
                stage = float(words[1]) + merging
                return (1.0, stage) if coarse else (1.0, stage, float(words[3]) if words[2] == "blocks" else 0.0)
            if words[0] in ("patch_embed", "absolute_pos_embed"):
                return (0.0,)
            return (1.0, LAST) if words[0].startswith("norm") and not coarse else (float("inf"),)

        return group

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        for stage in self.layers:
            stage.checkpointing = enable

    @abstractmethod
    def _attention(self, *args: Any, **options: Any) -> nn.Module: ...

    @abstractmethod
    def _block(self, dim: int, heads: int, **options: Any) -> Block: ...

    @abstractmethod
    def _merging(self, dim: int) -> PatchMerging: ...

    @abstractmethod
    def _position(self, reach: Grid, heads: int) -> Position: ...

    @abstractmethod
    def _cut_position(self, position: Any, reach: Grid) -> Position:
        """The same numbers for the same offsets, as far as `reach`."""

    def _built_stages(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        wanted: Sequence[Wanted],
        attention: dict[str, Any],
        block: dict[str, Any],
    ) -> Iterator[Stage]:
        """Stage by stage, each twice as wide on half the rows and columns."""
        rates = iter(drop_path_rates(self.rules.drop_path or 0.0, sum(depths)))
        rules = {"border": self.rules.border, "small": self.rules.small}
        for s, (depth, h) in enumerate(zip(depths, heads, strict=True)):
            width, blocks = dim * 2**s, []
            for _ in range(depth):
                position = self._drawn(wanted[s], self.reach(s), width, h)
                attends = self._attention(width, h, self.window, position=position, **attention, **rules)
                blocks.append(self._block(width, h, attention=attends, drop_path=next(rates), **block))
            merging = None if s == len(depths) - 1 else self._merging(width)
            yield Stage(blocks, merging, self._embeddings(wanted[s], s, width, h))

    def _drawn(self, wanted: Wanted, reach: Grid, dim: int, heads: int) -> Any:
        """What acts inside the windows of one block."""
        if wanted == PUBLISHED:
            return self._position(reach, heads)
        return one_or_several(in_layers(built(type(self).__name__, wanted, reach, dim, heads)))

    def _embeddings(self, wanted: Wanted, stage: int, dim: int, heads: int) -> Any:
        """What is added to the tokens of a stage, on its map."""
        name = type(self).__name__
        if wanted == PUBLISHED or not on_tokens(built(name, wanted, self.reach(stage), dim, heads)):
            return None
        return one_or_several(on_tokens(built(name, wanted, self._map(stage, name), dim, heads)))

    def _cut(self, stage: int, position: Any, reach: Grid) -> Any:
        """The same numbers for the same offsets, where they lie on a grid."""
        if not self.published[stage]:
            return moved(position, reach.shape, "clip")
        return position if position.grid == reach else self._cut_position(position, reach)

    def _init_weights(self) -> None:
        init_linears(self)

    def _resized(self, img_size: Size | None, window: Size | None, resize: Resize, rows: str, tables: str) -> Any:
        """A copy for other sizes: the published position by `resize`, others and vectors per place by these methods."""
        new, name = copy.deepcopy(self), type(self).__name__
        new.window = self.window if window is None else pair(name, "window", window)
        new.img_size = self.img_size if img_size is None else pair(name, "img_size", img_size)
        new.settings.update(img_size=new.img_size, window=new.window)
        new._set_windows()
        for s, stage in enumerate(new.layers):
            if stage.pos_embed is not None:
                stage.pos_embed = moved(stage.pos_embed, new._map(s, name).shape, rows)
            for attention in (block.attention for block in stage.blocks):
                own, reach = attention.position, new.reach(s)
                attention.position = resize(own, reach) if self.published[s] else moved(own, reach.shape, tables)
        if new.absolute_pos_embed is not None:
            new.absolute_pos_embed = new.absolute_pos_embed.resized(new._map(0, name), method=rows)
        return new

    def _layers(self, x: Tensor) -> list[tuple[Tensor, Grid]]:
        height, width = x.shape[-2:]
        x, grid = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            rows, own = self.absolute_pos_embed(), self.absolute_pos_embed.grid
            x = x + (rows if grid == own else resize_embedding(rows, own.shape, grid.shape, "bicubic")).to(x.dtype)
        found = []
        for s, stage in enumerate(self.layers):
            attention = stage.blocks[0].attention
            reach = getattr(getattr(attention, "position", None), "grid", None)  # None: it fits any map, or says so
            wanted = () if reach is None else fitted(attention.window, (0, 0), grid.shape, attention.small)[0]
            if reach is not None and any(a > b for a, b in zip(wanted, reach.shape, strict=True)):
                raise ValueError(
                    f"{type(self).__name__} on pictures of {height} × {width} needs tables for windows of "
                    f"{wanted} in stage {s}; those there reach {reach.shape}, made for img_size={self.img_size}. "
                    f"Use model.resized(img_size=({height}, {width})), or build it so and load the weights into it."
                )
            x = stage(x, grid)
            found.append((x, grid))
            if stage.downsample is not None:
                x, grid = stage.downsample(x, grid)
        return found

    def _last_norm(self) -> nn.LayerNorm:
        norm = self.get_submodule(f"norm{len(self.layers) - 1}") if self.norm is None else self.norm
        assert isinstance(norm, nn.LayerNorm), "as it is built"
        return norm

    def _map(self, stage: int, model: str) -> Grid:
        """The map of a stage on pictures of `img_size`."""
        if self.img_size is None:
            raise ValueError(
                f"{model} needs an `img_size` for vectors per place; got "
                f"{'absolute=True' if self.absolute else 'a position that embeds'} without one. "
                "Give the size of the pictures that they are learned on: 224."
            )
        cut, patch = self.patch_embed.border == "cut", self.patch_embed.patch
        sides = (side // p if cut else -(-side // p) for side, p in zip(self.img_size, patch, strict=True))
        return Grid(*(-(-side // 2**stage) for side in sides))

    def _window(self, stage: int, shift: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The window of a stage, moved by `shift`, on the map that it is made for."""
        if self.img_size is None:
            return self.window, shift
        return fitted(self.window, shift, self._map(stage, type(self).__name__).shape, self.rules.small)

    def reach(self, stage: int) -> Grid:
        """How far the tables of a stage reach: its window, fitted to the map that it is made for."""
        return Grid(*self._window(stage, (0, 0))[0])

    def _set_windows(self) -> None:
        """Windows and shifts of all blocks by the rules: the same for every map, or what each map makes of them."""
        fixed = self.rules.fixed and self.img_size is not None
        for s, stage in enumerate(self.layers):
            for b, block in enumerate(stage.blocks):
                attention, shift = block.attention, half(self.window, b)
                attention.window, attention.shift = self._window(s, shift) if fixed else (self.window, shift)
                attention.small = "keep" if fixed else self.rules.small

    def extra_repr(self) -> str:
        return f"window={self.window}, img_size={self.img_size}"


def half(window: tuple[int, int], block: int) -> tuple[int, int]:
    """The shift of a stage's blocks: none and half a window in turn."""
    return (window[0] // 2, window[1] // 2) if block % 2 else (0, 0)


def _check_sizes(name: str, depths: tuple[int, ...], heads: tuple[int, ...], patch: int, num_classes: int) -> None:
    if len(depths) != len(heads) or not depths or min(*depths, *heads) < 1 or num_classes < 0 or patch < 1:
        raise ValueError(
            f"{name} needs as many `depths` as `heads`, all at least 1, as `patch` is, and `num_classes` of at "
            f"least 0; got depths={depths}, heads={heads}, patch={patch}, num_classes={num_classes}. "
            "Swin-T has depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)."
        )


def _per_stage(model: str, position: Wanted | tuple[Wanted, ...], count: int) -> tuple[Wanted, ...]:
    """What is wanted in each stage."""
    several = tuple(position) if isinstance(position, tuple | list) else (position,) * count
    if len(several) != count:
        raise ValueError(
            f"{model} needs one `position` for all stages or one for each of {count}; got {len(several)}. "
            'Write position=("published", "published", "rotary", None), for example.'
        )
    for one in several:
        check_wanted(model, one, PUBLISHED)
    return several


def _stages_named(model: str, stage_norms: bool | tuple[int, ...], count: int) -> tuple[int, ...]:
    """The stages that have a norm of their own."""
    named = tuple(range(count)) if stage_norms is True else () if stage_norms is False else tuple(stage_norms)
    if len(set(named)) < len(named) or not all(0 <= s < count for s in named):
        raise ValueError(
            f"{model} needs `stage_norms` as True or False, or as different stages out of 0 to {count - 1}; "
            f"got {stage_norms}. Detectors have one for every map that they read."
        )
    return named


def _map(x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch dim rows columns"]:
    return x.transpose(1, 2).unflatten(2, grid.shape)
