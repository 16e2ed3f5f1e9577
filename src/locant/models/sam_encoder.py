"""The picture encoder of Segment Anything: ViTDet's blocks, most of them in windows, and a neck of two convolutions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.checks import check_types
from locant.grid import Grid
from locant.models.folders import InFolders
from locant.models.placement import added, moved
from locant.models.rules import SAM, ViTRules, chosen
from locant.models.vision import Size, drop_path_rates, init_linears, pair, patch_grid
from locant.nn.arguments import check_probabilities
from locant.nn.block import Block
from locant.nn.patches import PatchEmbedding
from locant.nn.self_attention import Attention
from locant.nn.window import WindowAttention
from locant.positions.decomposed import Decomposed
from locant.positions.learned import Learned


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [batch, channels, rows, columns]."""

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SAMEncoder(InFolders, nn.Module):
    """features = neck(blocks(patch_embed of the patches + pos_embed)),  neck = norm ∘ conv 3 × 3 ∘ norm ∘ conv 1 × 1.

    Pictures [batch, channels, height, width] of one size; features [batch, out_chans, height / patch, width / patch].
    Blocks are `Block`, those of `global_blocks` on the whole map, the others in windows without shift: zeros fill what
    windows do not divide, and take part. Every block has a `Decomposed` position of its own
    (`blocks.{}.attention.position.tables.{}`, rows and columns), and a learned vector per patch is added once.

    Where it differs: published code stretches the tables of whole maps at every call; here `resized` does it once, and
    for other pictures than those of `img_size` an error names it. Tables and `pos_embed` start normal (0.02); published
    they start from 0.
    Source: Segment Anything (arXiv 2304.02643, appendix A); ViTDet (arXiv 2203.16527);
    facebookresearch/segment-anything `image_encoder.py`; timm 1.0.31 `vision_transformer_sam.py`.

    Args:
        img_size: of the pictures, one number or (height, width).
        patch: side of a patch, which divides them.
        in_chans: channels of a picture.
        dim, depth, heads, mlp_ratio, qkv_bias: of the blocks.
        window: side of a window, in patches.
        global_blocks: the blocks that see the whole map, by their numbers from 0.
        out_chans: channels of the features.
        drop_path_rate: of the last block, growing from 0 at the first, in training only.
        like: whose rules hold: "official" (segment-anything), "timm", "transformers". They differ in `norm_eps`.
        norm_eps: of the norms of blocks; None is that of `like`, or 1e-6. The neck's are 1e-6 everywhere.

    Raises:
        ValueError: for sizes that do not divide, blocks that are not there, an unknown library; at the call for
            pictures of another size.
    """

    LIBRARIES: ClassVar[Mapping[str, ViTRules]] = SAM
    blocks: Any  # a ModuleList of Block

    @check_types
    def __init__(
        self,
        *,
        img_size: Size = 1024,
        patch: int = 16,
        in_chans: int = 3,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        window: int = 14,
        global_blocks: tuple[int, ...] = (2, 5, 8, 11),
        out_chans: int = 256,
        drop_path_rate: float = 0.0,
        like: str | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        check_probabilities("SAMEncoder", drop_path_rate=drop_path_rate)
        if depth < 1 or min(window, out_chans, heads) < 1 or not set(global_blocks) <= set(range(depth)):
            raise ValueError(
                "SAMEncoder needs `depth`, `heads`, `window` and `out_chans` of at least 1, and `global_blocks` out of "
                f"0 to depth - 1; got depth={depth}, heads={heads}, window={window}, out_chans={out_chans}, "
                f"global_blocks={tuple(global_blocks)}. SAM-B has depth=12 and global_blocks=(2, 5, 8, 11)."
            )
        self.rules = chosen("SAMEncoder", SAM, like, ViTRules(), norm_eps=norm_eps)
        self.patch, self.img_size, self.checkpointing = patch, pair("SAMEncoder", "img_size", img_size), False
        self.window, self.global_blocks = window, tuple(sorted(global_blocks))
        # 1 tokens, and where they are
        self.patch_embed = PatchEmbedding(dim, (patch, patch), channels=in_chans, border=self.rules.patch_border)
        self.grid = patch_grid("SAMEncoder", self.img_size, patch)
        self.pos_embed = Learned(self.grid, dim)
        # 2 blocks, in windows or on the whole map
        blocks = []
        for index, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            attention = self._attention(dim, heads, qkv_bias, index in self.global_blocks)
            eps = self.rules.norm_eps
            block = Block(dim, heads, mlp_ratio=mlp_ratio, attention=attention, norm_eps=eps, drop_path=rate)
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        # 3 the neck
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out_chans, 1, bias=False),
            ChannelNorm(out_chans, eps=1e-6),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            ChannelNorm(out_chans, eps=1e-6),
        )
        init_linears(self)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_chans rows columns"]:
        """The features of each patch."""
        x = self.forward_features(images)
        return self.neck(x.transpose(1, 2).unflatten(2, self.grid.shape))

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """What the neck reads, patch by patch."""
        x, grid = self.patch_embed(images)
        x = added("SAMEncoder", x, self.pos_embed, grid)
        for block in self.blocks:
            x = checkpoint(block, x, grid=grid, use_reentrant=False) if self.checkpointing else block(x, grid=grid)
        return x

    def resized(self, *, img_size: Size, method: str = "antialiased", table_method: str = "bilinear") -> SAMEncoder:
        """A copy for pictures of another size, by default as timm runs its own on them.

        Args:
            img_size: of the pictures.
            method: of `locant.resizing`, for `pos_embed`.
            table_method: for the tables of blocks that see the whole map; windows stay as they are.

        Raises:
            ValueError: if the patch does not divide `img_size`, or a method does not fit.
        """
        new = copy.deepcopy(self)
        new.img_size = pair("SAMEncoder", "img_size", img_size)
        new.settings["img_size"] = new.img_size
        new.grid = patch_grid("SAMEncoder", new.img_size, self.patch)
        new.pos_embed = moved(new.pos_embed, new.grid.shape, method)
        for index in self.global_blocks:
            attention = new.blocks[index].attention
            attention.position = moved(attention.position, new.grid.shape, table_method)
        return new

    def follow(self, library: str) -> None:
        """Take over the rules of a library (`LIBRARIES`), in place: borders, and the epsilon of the blocks' norms.

        Raises:
            ValueError: for a library without a record.
        """
        self.rules = chosen("SAMEncoder", SAM, library, ViTRules())
        self.settings.update(like=library, norm_eps=None)
        self.patch_embed.border = self.rules.patch_border
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.rules.norm_eps

    def no_weight_decay(self) -> set[str]:
        """Parameters that published training does not decay, besides biases and norms: positions."""
        return {name for name, _ in self.named_parameters() if "pos_embed" in name or ".position." in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters lie how deep, as timm's `param_groups_layer_decay` asks; blocks are as coarse as it gets."""
        return {"stem": r"^pos_embed|^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^neck", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.checkpointing = enable

    def _attention(self, dim: int, heads: int, qkv_bias: bool, whole: bool) -> Attention:
        grid = self.grid if whole else Grid(self.window, self.window)
        position = Decomposed(grid, heads, dim // heads)
        if whole:
            return Attention(dim, heads, position=position, qkv_bias=qkv_bias)
        return WindowAttention(
            dim,
            heads,
            (self.window, self.window),
            position=position,
            qkv_bias=qkv_bias,
            border="pad-roll",
            small="keep",
        )

    def extra_repr(self) -> str:
        return f"{self.grid}, patch={self.patch}, global_blocks={self.global_blocks}"


SIZES: dict[str, dict[str, Any]] = {
    "base": {"dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}


@check_types
def sam_encoder_base(
    *, img_size: Size = 1024, in_chans: int = 3, drop_path_rate: float = 0.0, like: str | None = None
) -> SAMEncoder:
    """SAM ViT-B: 89.7 million parameters. Arguments as `SAMEncoder`."""
    return SAMEncoder(**SIZES["base"], **locals())


@check_types
def sam_encoder_large(
    *, img_size: Size = 1024, in_chans: int = 3, drop_path_rate: float = 0.0, like: str | None = None
) -> SAMEncoder:
    """SAM ViT-L: 308 million parameters. Arguments as `SAMEncoder`."""
    return SAMEncoder(**SIZES["large"], **locals())


@check_types
def sam_encoder_huge(
    *, img_size: Size = 1024, in_chans: int = 3, drop_path_rate: float = 0.0, like: str | None = None
) -> SAMEncoder:
    """SAM ViT-H: 637 million parameters. Arguments as `SAMEncoder`."""
    return SAMEncoder(**SIZES["huge"], **locals())
