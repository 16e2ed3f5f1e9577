"""ConViT: layers that may start as convolutions, then plain ones, which a class token joins."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.checks import check_types
from locant.grid import Grid
from locant.models.backbone import Backbone
from locant.models.nonlocality import attention_map, non_locality
from locant.models.vision import Size, drop_path_rates, init_linears, patch_grid
from locant.nn.arguments import check_probabilities
from locant.nn.block import Block
from locant.nn.gated import GatedAttention
from locant.nn.patches import PatchEmbedding
from locant.nn.self_attention import Attention
from locant.positions.learned import Learned


class ConViT(Backbone, nn.Module):
    """logits = head(norm(x)[class token]),  x = blocks(patch_embed(images) + pos_embed).

    images [batch, channels, height, width]; logits [batch, classes]. Blocks 0 to local_up_to_layer - 1 attend by
    `GatedAttention` on Grid(height / patch, width / patch). In front of block local_up_to_layer the class token joins,
    as the prefix of that grid; it has no position. It and the blocks behind attend by `Attention` without a bias.

    Where it differs: sides are those of the image, not the root of the number of patches, so that any rectangle works;
    `resized` makes a model of another size. Published code with local_up_to_layer = depth never appends the class
    token and classifies by the first patch; here that is an error, for a token that joins at the end has seen nothing.
    The published `pos_proj.bias` cancels in a softmax: it has no counterpart, and counts no parameter here.
    Source: ConViT (arXiv 2103.10697, section 3 and table 1); timm 1.0.31 `convit.py`.

    Args:
        img_size: of the images, one number or (height, width).
        patch: side of a patch, which divides it.
        in_chans: channels of an image.
        num_classes: of the head; 0 is no head, and `forward` gives the class token.
        dim, depth, heads: of the blocks; published: dim = 48 · heads.
        mlp_ratio: hidden channels of the perceptrons over dim.
        qkv_bias: whether the projections to q, k and v have a bias.
        local_up_to_layer: how many blocks are gated, 0 to depth - 1.
        locality: α, how narrow the local start is.
        local_init: whether gated layers start as convolutions would.
        pos_embed: whether a learned vector per patch is added to it.
        drop_path_rate, proj_drop_rate, attn_drop_rate: in training only; the first one of the last block, growing from
            0 at the first block, the second one behind every projection and perceptron layer, the third one on the
            weights of attention, where gated layers then take the dense form.

    Raises:
        ValueError: for sizes that do not divide, a local_up_to_layer that leaves no plain block, and probabilities out
            of range; at the call for images of another size than pos_embed is for.
    """

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
        heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        local_up_to_layer: int = 10,
        locality: float = 1.0,
        local_init: bool = True,
        pos_embed: bool = True,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1 or not 0 <= local_up_to_layer < depth:
            raise ValueError(
                "ConViT needs a `local_up_to_layer` of at least 0 and below `depth`, so that the class token joins in "
                f"front of a plain block; got local_up_to_layer={local_up_to_layer}, depth={depth}. "
                f"Use local_up_to_layer={max(0, depth - 2)}."
            )
        check_probabilities(
            "ConViT", drop_path_rate=drop_path_rate, proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate
        )
        self.patch, self.local_up_to_layer, self.checkpointing = patch, local_up_to_layer, False
        self.grid = patch_grid("ConViT", img_size, patch)
        self.patch_embed = PatchEmbedding(dim, (patch, patch), channels=in_chans)
        self.pos_embed = Learned(self.grid, dim) if pos_embed else None
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))

        def attention(index: int) -> nn.Module:
            shared: dict[str, Any] = {"qkv_bias": qkv_bias, "dropout": attn_drop_rate, "proj_dropout": proj_drop_rate}
            if index >= local_up_to_layer:
                return Attention(dim, heads, **shared)
            return GatedAttention(dim, heads, grid=self.grid, locality=locality, local_init=local_init, **shared)

        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, attention=attention(i), dropout=proj_drop_rate, drop_path=rate)
            for i, rate in enumerate(drop_path_rates(drop_path_rate, depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else None
        self._init_weights(local_init)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or the class token of a model without a head."""
        token = self.forward_features(images)[:, 0]
        return token if self.head is None else self.head(token)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The class token and the patches behind the last norm."""
        x = images
        for layer in self._layers(images):  # those before the last one are not held
            x = layer[0]
        return self.norm(x)

    @torch.no_grad()
    def non_locality(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "depth heads"]:
        """How far every head of every block looks, in patches (`non_locality`), at what that block really sees.

        Where it differs: the published script feeds the bare patch embeddings of a batch to every layer.
        """
        x, grid = self._embedded(images)
        found = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block), "as they are built"
            assert isinstance(block.attention, Attention | GatedAttention), "as they are built"
            x, grid = self._joined(index, x, grid)
            found.append(non_locality(attention_map(block.attention, block.norm1(x), grid), grid))
            x = block(x, grid=grid)
        return torch.stack(found)

    def resized(self, *, img_size: Size, method: str = "linear") -> ConViT:
        """A new model for images of another size, with the trained values; pos_embed by a method of `locant.resizing`.

        All else serves any size as it is: gated layers know offsets in patches, which stay what they were.

        Raises:
            ValueError: if the patch does not divide `img_size`, or the method is unknown.
        """
        new = copy.deepcopy(self)
        new.grid = patch_grid("ConViT", img_size, self.patch)
        new.settings["img_size"] = img_size
        if new.pos_embed is not None:
            new.pos_embed = new.pos_embed.resized(new.grid, method=method)
        for module in new.modules():
            if isinstance(module, GatedAttention):
                module.grid = new.grid
        return new

    def no_weight_decay(self) -> set[str]:
        """Parameters that published training does not decay, besides biases and norms."""
        return {"pos_embed.table", "cls_token"} & {name for name, _ in self.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters lie how deep, as timm's `param_groups_layer_decay` asks; blocks are as coarse as it gets."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.checkpointing = enable

    def _layers(self, x: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        x, grid = self._embedded(x)
        for index, block in enumerate(self.blocks):
            x, grid = self._joined(index, x, grid)
            x = checkpoint(block, x, grid=grid, use_reentrant=False) if self.checkpointing else block(x, grid=grid)
            yield x, grid

    def _last_norm(self) -> nn.LayerNorm:
        return self.norm

    def _embedded(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Grid]:
        x, grid = self.patch_embed(images)
        if self.pos_embed is not None:
            if grid.shape != self.grid.shape:  # of whole grids, torch.compile cannot ask it where sizes are symbols
                rows, columns = (n * self.patch for n in self.grid.shape)
                raise ValueError(
                    f"ConViT has positions for images of {rows} × {columns}; got {images.shape[2]} × "
                    f"{images.shape[3]}. Make a model for them: model.resized(img_size={tuple(images.shape[2:])})."
                )
            x = x + self.pos_embed()
        return x, grid

    def _joined(
        self, index: int, x: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> tuple[Float[Tensor, "batch joined dim"], Grid]:
        """What block `index` sees: in front of the first plain one the class token joins."""
        if index != self.local_up_to_layer:
            return x, grid
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        return x, Grid(*grid.shape, prefix=1)

    def _init_weights(self, local_init: bool) -> None:
        init_linears(self)
        for module in self.modules():
            if isinstance(module, GatedAttention) and local_init:
                nn.init.eye_(module.v.weight)

    def extra_repr(self) -> str:
        return f"{self.grid}, patch={self.patch}, local_up_to_layer={self.local_up_to_layer}"


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "heads": 4},
    "small": {"dim": 432, "heads": 9},
    "base": {"dim": 768, "heads": 16},
}


@check_types
def convit_tiny(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    local_up_to_layer: int = 10,
    locality: float = 1.0,
    local_init: bool = True,
    pos_embed: bool = True,
    drop_path_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
) -> ConViT:
    """ConViT-Ti: 4 heads of 48 channels; 5.7 million parameters."""
    return ConViT(**SIZES["tiny"], **locals())


@check_types
def convit_small(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    local_up_to_layer: int = 10,
    locality: float = 1.0,
    local_init: bool = True,
    pos_embed: bool = True,
    drop_path_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
) -> ConViT:
    """ConViT-S: 9 heads of 48 channels; 27.8 million parameters."""
    return ConViT(**SIZES["small"], **locals())


@check_types
def convit_base(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    local_up_to_layer: int = 10,
    locality: float = 1.0,
    local_init: bool = True,
    pos_embed: bool = True,
    drop_path_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
) -> ConViT:
    """ConViT-B: 16 heads of 48 channels; 86.5 million parameters."""
    return ConViT(**SIZES["base"], **locals())
