"""DeiT: ViT with a token that learns from a teacher; DeiT III: ViT with LayerScale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.models.placement import Wanted
from locant.models.vision import Size
from locant.models.vit import SIZES, ViT


class DeiT(ViT):
    """logits = (head(norm(x)[class token]) + head_dist(norm(x)[distillation token])) / 2,  or the first alone.

    All else is as in `ViT`: pictures [batch, channels, height, width], logits [batch, classes]. With `distilled` the
    tokens are [class token | distillation token | patches], and the mean of both heads comes out in training too;
    `both` gives the two apart, which a loss against a teacher needs. DeiT III has no such token, but LayerScale, and no
    row of the embedding for the class token.

    Where it differs: in distilled training timm returns both logits in place of their mean. The class token starts
    normal (1e-6) as in timm, the distillation token normal (0.02); the original has 0.02 for both, transformers zeros.
    Source: DeiT (arXiv 2012.12877, section 4, table 1); DeiT III (arXiv 2204.07118); facebookresearch/deit; timm 1.0.31
    `deit.py`.

    Args:
        distilled: whether there is a distillation token.
        head_dist: whether it has a head (not in transformers' `DeiTForImageClassification`).
        The others: as `ViT`.

    Raises:
        ValueError: as `ViT`.
    """

    dist_token: nn.Parameter | None

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
        position: Wanted = "learned",
        prefix_position: bool = True,
        layer_scale: float | None = None,
        distilled: bool = False,
        head_dist: bool = True,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        like: str | None = None,
        patch_border: str | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__(
            img_size=img_size, patch=patch, in_chans=in_chans, num_classes=num_classes, dim=dim, depth=depth,
            heads=heads, mlp_ratio=mlp_ratio, position=position, prefix_position=prefix_position,
            registers=int(distilled), layer_scale=layer_scale, drop_path_rate=drop_path_rate,
            proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate, like=like, patch_border=patch_border,
            norm_eps=norm_eps,
        )  # fmt: skip
        # a distillation token is a register that is read
        self.dist_token, self.reg_token = self.reg_token, None
        self.head_dist = nn.Linear(dim, num_classes) if num_classes and distilled and head_dist else None
        if self.dist_token is not None:
            nn.init.trunc_normal_(self.dist_token, std=0.02)
        if self.head_dist is not None:
            nn.init.trunc_normal_(self.head_dist.weight, std=0.02)
            nn.init.zeros_(self.head_dist.bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or the class token of a model without a head."""
        return super().forward(images) if self.head_dist is None else torch.stack(self.both(images)).mean(0)

    def both(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """The logits of the class token, for the labels, and those of the distillation token, for a teacher's.

        Raises:
            ValueError: for a model without both heads.
        """
        if self.head is None or self.head_dist is None:
            raise ValueError(
                "both needs a DeiT with a distillation token and a head for it; got one without. "
                "Build it with distilled=True and num_classes of at least 1, or call the model itself."
            )
        x = self.forward_features(images)
        return self.head(x[:, 0]), self.head_dist(x[:, 1])

    def _heads(self) -> tuple[str, ...]:
        read = self.dist_token is not None and self.settings.get("head_dist", True)
        return ("head", "head_dist") if read else ("head",)

    def front(self) -> list[Float[Tensor, "1 count dim"]]:
        more = getattr(self, "dist_token", None)
        return super().front() if more is None else [*super().front(), more]


@check_types
def deit_tiny(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    distilled: bool = False,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> DeiT:
    """DeiT-Ti: 5.7 million parameters, 5.9 with `distilled`. Arguments as `DeiT`."""
    return DeiT(**SIZES["tiny"], **locals())


@check_types
def deit_small(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    distilled: bool = False,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> DeiT:
    """DeiT-S: 22 million parameters. Arguments as `DeiT`."""
    return DeiT(**SIZES["small"], **locals())


@check_types
def deit_base(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    distilled: bool = False,
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> DeiT:
    """DeiT-B: 86.6 million parameters, 87.3 with `distilled`. Arguments as `DeiT`."""
    return DeiT(**SIZES["base"], **locals())


@check_types
def deit3_small(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> DeiT:
    """DeiT III, small: LayerScale from 1e-6, and no row for the class token. Arguments as `DeiT`."""
    return DeiT(**SIZES["small"], layer_scale=1e-6, prefix_position=False, **locals())


@check_types
def deit3_base(
    *,
    img_size: Size = 224,
    patch: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    position: Wanted = "learned",
    drop_path_rate: float = 0.0,
    like: str | None = None,
    patch_border: str | None = None,
) -> DeiT:
    """DeiT III, base: LayerScale from 1e-6, and no row for the class token. Arguments as `DeiT`."""
    return DeiT(**SIZES["base"], layer_scale=1e-6, prefix_position=False, **locals())
