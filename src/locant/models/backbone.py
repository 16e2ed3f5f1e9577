"""What timm's models offer beside their logits: `num_features`, `reset_classifier`, maps of what lies in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_types, check_whole
from locant.grid import Grid
from locant.models.folders import InFolders


class Backbone(InFolders):
    """A model of pictures whose layers end with tokens on a grid, and whose head may be another one.

    A layer is a block, or a stage where maps shrink from stage to stage.
    """

    @property
    def num_features(self) -> int:
        """Channels that the head reads."""
        return int(self._last_norm().normalized_shape[0])

    @check_types
    def reset_classifier(self, num_classes: int) -> None:
        """Another head, drawn anew, on the device and in the dtype of the model; 0 is none.

        Raises:
            ValueError: for a number below 0.
        """
        check_whole("reset_classifier", "num_classes", num_classes, least=0)
        for name in self._heads():
            head = None
            if num_classes:
                like = self._last_norm().weight
                head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
                nn.init.trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
            setattr(self, name, head)
        self.settings["num_classes"] = num_classes

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "batch channels *size"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> tuple[Any, ...]:
        """What layers end with, [batch, tokens, dim] each, as timm's method of that name gives it.

        Args:
            x: pictures.
            n: how many of the last layers, or which ones, from 0.
            reshape: whether to give maps [batch, dim, rows, columns].
            return_prefix_tokens: whether to give pairs (patches, tokens in front) instead of patches alone.
            norm: whether each is behind the last norm.

        Raises:
            ValueError: for a layer that there is not, or norm=True where layers are of other widths than the norm.
        """
        layers = list(self._layers(x))
        wanted = range(len(layers) - n, len(layers)) if isinstance(n, int) else n
        if not wanted or not all(0 <= layer < len(layers) for layer in wanted):
            raise ValueError(
                f"get_intermediate_layers needs `n` from 1 to {len(layers)}, or layers out of 0 to {len(layers) - 1}; "
                f"got {n}. n=1 is the last one."
            )
        found = []
        for tokens, grid in (layers[layer] for layer in wanted):
            tokens = self._apply_norm(tokens) if norm else tokens
            patches = tokens[:, grid.prefix :]
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, grid.shape)
            found.append((patches, tokens[:, : grid.prefix]) if return_prefix_tokens else patches)
        return tuple(found)

    def features_only(self, out_indices: Sequence[int] | None = None) -> FeaturesOnly:
        """A module that gives the maps of layers as a list, as timm.create_model(features_only=True) does.

        It holds this model, whose head is not called.

        Args:
            out_indices: which layers, from 0; None is all of them.
        """
        return FeaturesOnly(self, out_indices)

    def _apply_norm(self, tokens: Tensor) -> Tensor:
        norm = self._last_norm()
        if tokens.shape[-1] != self.num_features:
            raise ValueError(
                f"norm=True needs layers of {self.num_features} channels, which the last norm is for; got one of "
                f"{tokens.shape[-1]}. Take layers as they are, or a Swin with stage_norms=True and features(norm=True)."
            )
        found: Tensor = norm(tokens)
        return found

    def _heads(self) -> tuple[str, ...]:
        return ("head",)

    @abstractmethod
    def _last_norm(self) -> nn.LayerNorm: ...

    @abstractmethod
    def _layers(self, x: Tensor) -> Iterable[tuple[Tensor, Grid]]:
        """The tokens that each layer ends with, and where they are."""


class FeaturesOnly(nn.Module):
    """maps = [layer(picture) for the layers asked for], [batch, dim, rows, columns] each, tokens in front left out."""

    def __init__(self, model: Backbone, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.out_indices = None if out_indices is None else tuple(out_indices)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> list[Float[Tensor, "batch dim *map"]]:
        """The maps, in the order that they were asked for."""
        if self.out_indices is not None:
            return list(self.model.get_intermediate_layers(x, self.out_indices, reshape=True))
        maps = ((t[:, g.prefix :].transpose(1, 2), g.shape) for t, g in self.model._layers(x))
        return [tokens.unflatten(2, shape) for tokens, shape in maps]
