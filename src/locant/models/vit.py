"""ViT: one grid of patches from the first block to the last, and tokens without a place in front of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.checks import check_types
from locant.grid import Grid
from locant.models.backbone import Backbone
from locant.models.placement import Wanted, added, built, check_wanted, in_layers, moved, on_tokens, one_or_several
from locant.models.rules import VIT, ViTRules, chosen
from locant.models.vision import Size, drop_path_rates, init_linears, pair, patch_grid
from locant.nn.arguments import check_probabilities
from locant.nn.block import Block
from locant.nn.patches import PatchEmbedding
from locant.nn.self_attention import Attention

POOLINGS = ("class", "mean")
FRESH = r"(^|\.)(pos_embed|position)\.|^head"  # what `freeze` leaves to learn


class ViT(Backbone, nn.Module):
    """logits = head(norm(x)[class token]), or head(fc_norm(mean of x over patches)),  x = blocks(tokens + pos_embed).

    Pictures [batch, channels, height, width] of one size; logits [batch, classes]. The tokens are [class token |
    registers | patch_embed of the patches], those in front being the prefix of Grid(height / patch, width / patch); the
    blocks are `Block(Attention)`.

    `position` says what tells patches apart: what embeds is added to the tokens once (`pos_embed`), all else acts in
    every block, each with its own (`blocks.{}.attention.position`). "learned" is the published vector per patch, and
    per token in front with `prefix_position`. Other words and functions: `placement`.

    Where it differs: JAX starts linear maps Xavier-uniform and the head at zero; here, as in timm, they start normal
    (0.02), class token and registers normal (1e-6).
    Source: ViT (arXiv 2010.11929, section 3.1 and table 1); registers (arXiv 2309.16588); timm 1.0.31
    `vision_transformer.py`.

    Args:
        img_size: of the pictures, one number or (height, width).
        patch: side of a patch.
        in_chans: channels of a picture.
        num_classes: of the head; 0 is no head, and `forward` gives what it would read.
        dim, depth, heads: of the blocks; published: dim = 64 · heads.
        mlp_ratio, layer_scale: as `Block` takes them.
        qkv_bias: whether the projections to q, k and v have a bias.
        position: a word, a function of (grid, dim, heads) that builds one scheme or several, or None.
        prefix_position: whether tokens without a place have rows of their own in what has such rows.
        pooling: "class", or "mean" over the patches, without a class token, the norm behind the mean (`fc_norm`).
        registers: how many learned tokens more.
        drop_path_rate, proj_drop_rate, attn_drop_rate: in training only; the first one of the last block, growing from
            0 at the first, the second one behind every projection and perceptron layer, the third one on the weights of
            attention.
        like: whose rules hold where none is named below: "timm", "transformers", "official", "torchvision"
            (`rules.VIT`).
        patch_border: as `PatchEmbedding` takes it; None is that of `like`, or "refuse".
        norm_eps: of every norm; None is that of `like`, or 1e-6.

    Raises:
        ValueError: for sizes that do not divide, an unknown pooling, library or position; at the call for pictures of
            another size than the positions are for.
    """

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    blocks: Any  # a ModuleList of Block
    LIBRARIES: ClassVar[Mapping[str, ViTRules]] = VIT

    @check_types
    def __init__(
        self,
        *,
        img_size: Size = 224,
        patch: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        position: Wanted = "learned",
        prefix_position: bool = True,
        pooling: str = "class",
        registers: int = 0,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        like: str | None = None,
        patch_border: str | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        rates = {"drop_path_rate": drop_path_rate, "proj_drop_rate": proj_drop_rate, "attn_drop_rate": attn_drop_rate}
        check_probabilities("ViT", **rates)
        check_wanted("ViT", position)
        _check_tokens(depth, num_classes, pooling, registers)
        self.rules = chosen("ViT", VIT, like, ViTRules(), patch_border=patch_border, norm_eps=norm_eps)
        self.patch, self.img_size, self.checkpointing = patch, pair("ViT", "img_size", img_size), False
        self.pooling, self.prefix_position = pooling, prefix_position
        # 1 tokens, and where they are
        self.patch_embed = PatchEmbedding(dim, (patch, patch), channels=in_chans, border=self.rules.patch_border)
        counts = {"cls_token": int(pooling == "class"), "reg_token": registers}
        for name, count in counts.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, count, dim)) if count else None)
        self.grid = self._grid(sum(counts.values()))
        # 2 positions, and blocks with theirs
        attention = {"qkv_bias": qkv_bias, "dropout": attn_drop_rate, "proj_dropout": proj_drop_rate}
        block = {"mlp_ratio": mlp_ratio, "dropout": proj_drop_rate, "layer_scale": layer_scale}
        paths = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(self._built_blocks(dim, heads, position, paths, attention, block))
        # 3 norm and head
        norm = nn.LayerNorm(dim, eps=self.rules.norm_eps)
        self.norm = norm if pooling == "class" else None
        self.fc_norm = norm if pooling == "mean" else None
        self.head = nn.Linear(dim, num_classes) if num_classes else None
        self._init_weights()

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or what the head would read."""
        x = self.forward_features(images)
        pooled = x[:, 0] if self.fc_norm is None else self.fc_norm(x[:, self.grid.prefix :].mean(1))
        return pooled if self.head is None else self.head(pooled)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """All tokens behind the last norm; a model with a mean has its norm behind that, and gives them as they are."""
        x = images
        for layer in self._layers(images):  # those before the last one are not held
            x = layer[0]
        return x if self.norm is None else self.norm(x)

    def resized(self, *, img_size: Size, method: str = "linear") -> ViT:
        """A copy for pictures of another size: what lies on the grid by a method of `locant.resizing`.

        Raises:
            ValueError: if the patch does not divide `img_size` (under "refuse"), or the method does not fit.
        """
        new = copy.deepcopy(self)
        new.img_size = pair("ViT", "img_size", img_size)
        new.settings["img_size"] = new.img_size
        new.grid = new._grid(self.grid.prefix)
        new.pos_embed = moved(new.pos_embed, new.grid.shape, method)
        for block in new.blocks:
            block.attention.position = moved(block.attention.position, new.grid.shape, method)
        return new

    def follow(self, library: str) -> None:
        """Take over the rules of a library (`LIBRARIES`), in place: borders, and the epsilon of every norm.

        Raises:
            ValueError: for a library without a record.
        """
        self.rules = chosen("ViT", VIT, library, ViTRules())
        self.settings.update(like=library, patch_border=None, norm_eps=None)
        self.patch_embed.border = self.rules.patch_border
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.rules.norm_eps

    def freeze(self) -> list[str]:
        """Freeze everything but positions and heads; the names that learn."""
        learns = [name for name, _ in self.named_parameters() if re.search(FRESH, name)]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in learns)
        return learns

    def no_weight_decay(self) -> set[str]:
        """Parameters that published training does not decay, besides biases and norms: positions and prefix tokens."""
        return {n for n, _ in self.named_parameters() if re.search(r"pos_embed|\.position\.|_token$", n)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters lie how deep, as timm's `param_groups_layer_decay` asks; blocks are as coarse as it gets."""
        return {
            "stem": r"^cls_token|^dist_token|^reg_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.checkpointing = enable

    def _layers(self, x: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        x, grid = self._embedded(x)
        for block in self.blocks:
            x = checkpoint(block, x, grid=grid, use_reentrant=False) if self.checkpointing else block(x, grid=grid)
            yield x, grid

    def _last_norm(self) -> nn.LayerNorm:
        norm = self.norm or self.fc_norm
        assert norm is not None, "as it is built"
        return norm

    def _embedded(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        """The tokens that the first block reads, and their grid."""
        x, grid = self.patch_embed(images)
        x = torch.cat([*(token.to(x.dtype).expand(x.shape[0], -1, -1) for token in self.front()), x], dim=1)
        grid = Grid(*grid.shape, prefix=self.grid.prefix)
        return added("ViT", x, self.pos_embed, grid), grid

    def _built_blocks(
        self,
        dim: int,
        heads: int,
        position: Wanted,
        paths: Sequence[float],
        attention: dict[str, Any],
        block: dict[str, Any],
    ) -> Iterator[Block]:
        """Every block with schemes of its own; what embeds is kept once, as `pos_embed`."""
        place = self.grid if self.prefix_position else Grid(*self.grid.shape)
        first = built("ViT", position, place, dim, heads)
        self.pos_embed = one_or_several(on_tokens(first))
        for index, rate in enumerate(paths):
            drawn = first if index == 0 or not in_layers(first) else built("ViT", position, place, dim, heads)
            attends = Attention(dim, heads, position=one_or_several(in_layers(drawn)), **attention)
            yield Block(dim, heads, attention=attends, drop_path=rate, norm_eps=self.rules.norm_eps, **block)

    def front(self) -> list[Float[Tensor, "1 count dim"]]:
        """What stands in front of the patches."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def _grid(self, prefix: int) -> Grid:
        """The patches of pictures of `img_size`."""
        if self.rules.patch_border == "refuse":
            return patch_grid("ViT", self.img_size, self.patch, prefix=prefix)
        cut = self.rules.patch_border == "cut"
        return Grid(*(side // self.patch if cut else -(-side // self.patch) for side in self.img_size), prefix=prefix)

    def _init_weights(self) -> None:
        init_linears(self)
        for token in self.front():
            nn.init.normal_(token, std=1e-6)

    def extra_repr(self) -> str:
        return f"{self.grid}, patch={self.patch}, pooling={self.pooling!r}"


def _check_tokens(depth: int, num_classes: int, pooling: str, registers: int) -> None:
    if depth < 1 or min(num_classes, registers) < 0 or pooling not in POOLINGS:
        raise ValueError(
            f'ViT needs a `depth` of at least 1, `num_classes` and `registers` of at least 0, and `pooling` "class" or '
            f'"mean"; got depth={depth}, num_classes={num_classes}, registers={registers}, pooling={pooling!r}. '
            "ViT-B has depth=12; DINOv2 has 4 registers."
        )


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
}


@check_types
def vit_tiny(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    pooling: str = "class",
    registers: int = 0,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> ViT:
    """ViT-Ti/16, of timm: 5.7 million parameters; patch=16 alone has weights. Arguments as `ViT`."""
    return ViT(**SIZES["tiny"], **locals())


@check_types
def vit_small(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    pooling: str = "class",
    registers: int = 0,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> ViT:
    """ViT-S/16: 22 million parameters; published with patch=8, 16 and 32. Arguments as `ViT`."""
    return ViT(**SIZES["small"], **locals())


@check_types
def vit_base(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    pooling: str = "class",
    registers: int = 0,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> ViT:
    """ViT-B/16: 86.6 million parameters; published with patch=8, 16 and 32. Arguments as `ViT`."""
    return ViT(**SIZES["base"], **locals())


@check_types
def vit_large(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    pooling: str = "class",
    registers: int = 0,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> ViT:
    """ViT-L/16: 304 million parameters; published with patch=14, 16 and 32. Arguments as `ViT`."""
    return ViT(**SIZES["large"], **locals())
