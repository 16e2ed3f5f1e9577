"""What AIM's two models share: clips of unequal length, the head, and what is frozen."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from locant.grid import Grid
from locant.masks import Padding
from locant.models.folders import InFolders
from locant.models.vision import init_linears
from locant.nn.adapter import Adapter

GROUPS = {
    "adapters": r"Adapter",
    "temporal": r"temporal",  # the tables of Swin, the embedding of the ViT
    "norm": r"^(norm|ln_post)\.",
    "head": r"^cls_head\.",
}
PUBLISHED = r"temporal_embedding|ln_post|cls_head|Adapter"


class AIM(InFolders, nn.Module):
    """logits = fc_cls(mean of features over real frames and places),  features [batch, dim, time, height, width].

    An image model whose weights stay frozen, and what is trained beside them to read clips
    [batch, channels, time, height, width]. Clips may be shorter than the model's `frames`; clips of unequal length
    share a batch with `mask=Padding.from_lengths(lengths, frames)`: what lies in padding is set to zero, nobody sees
    it over time, and the head leaves it out, so that each clip gets what it gets alone.

    Where it differs: the published models fold time into the batch, and a batch whose frames happen to divide by the
    number they were built for mixes clips in silence; here time is an axis of its own, and longer clips are refused.
    Source: AIM (arXiv 2302.03024); taoyang1122/adapt-image-models; its head is mmaction's `I3DHead`.

    Args:
        frames: the longest clip.
        together: frames per token.
        dim: channels of the features.
        num_classes: of the head; 0 is no head, and features come out.
        head_dropout: in front of the head, in training only.
    """

    def __init__(self, frames: int, together: int, dim: int, num_classes: int, head_dropout: float) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(
                f"{type(self).__name__} needs `num_classes` of at least 0; got {num_classes}. 0 leaves the head out."
            )
        self.together, self.checkpointing = together, False
        self.frames = self._length(frames)
        self.cls_head = _head(dim, num_classes, head_dropout) if num_classes else None

    def forward(
        self, x: Float[Tensor, "batch channels time height width"], *, mask: Padding | None = None
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim steps rows columns"]:
        """Logits, or the features of a model without a head.

        Args:
            x: clips.
            mask: which frames are real, [batch, time]; None is all of them.

        Raises:
            ValueError: for clips of another shape or longer than `frames`, and a mask that is not one of frames.
        """
        x, real = self._real(x, mask)
        features = self._features(x, real)
        if self.cls_head is None:
            return features
        return self.cls_head(features.mean((2, 3, 4)) if real is None else _mean(features, real))

    def forward_features(
        self, x: Float[Tensor, "batch channels time height width"], *, mask: Padding | None = None
    ) -> Float[Tensor, "batch dim steps rows columns"]:
        """What the head averages; in frames that are padding the numbers mean nothing."""
        return self._features(*self._real(x, mask))

    @abstractmethod
    def _features(self, x: Tensor, real: Bool[Tensor, "batch steps"] | None) -> Tensor: ...

    def _through(
        self,
        blocks: Iterable[nn.Module],
        x: Float[Tensor, "batch tokens dim"],
        grid: Grid,
        real: Bool[Tensor, "batch steps"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Block after block, on a grid whose first axis is time."""
        mask = None
        if real is not None:
            mask = Padding(real.reshape(*real.shape, *(1,) * (grid.axes - 1)).expand(-1, *grid.shape))
        for block in blocks:
            if self.checkpointing:
                x = checkpoint(block, x, grid=grid, mask=mask, use_reentrant=False)
            else:
                x = block(x, grid=grid, mask=mask)
        return x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that published training does not decay, besides biases and norms: tables, what belongs to time."""
        return {name for name, _ in self.named_parameters() if ".position." in name or "temporal" in name}

    def groups(self) -> dict[str, list[str]]:
        """The names of all parameters: "adapters", "temporal", "norm" (the last one), "head", and "image", the rest."""
        found: dict[str, list[str]] = {group: [] for group in (*GROUPS, "image")}
        for name, _ in self.named_parameters():
            found[next((g for g, pattern in GROUPS.items() if re.search(pattern, name)), "image")].append(name)
        return found

    def freeze(self, train: str | tuple[str, ...] = tuple(GROUPS)) -> list[str]:
        """Freeze everything but the groups named in `train`; the names that learn.

        "published" trains what the published script does. It goes by names, of which Swin's temporal tables and its
        last norm have none that it knows: the tables stay as they were drawn, noise on every logit over time. By
        default they learn here.

        Raises:
            ValueError: for an unknown group.
        """
        groups = self.groups()
        if train == "published":
            names = [name for name, _ in self.named_parameters() if re.search(PUBLISHED, name)]
        elif isinstance(train, str) or not set(train) <= set(groups):
            raise ValueError(
                f'freeze needs `train` to be "published" or a tuple of groups out of {", ".join(map(repr, groups))}; '
                f"got {train!r}. Leave it out for all but the image model."
            )
        else:
            names = [name for name, _ in self.named_parameters() if any(name in groups[group] for group in train)]
        chosen = set(names)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        return names

    def _length(self, frames: int) -> int:
        if frames < 1 or frames % self.together:
            raise ValueError(
                f"{type(self).__name__} needs `frames` of at least 1 that {self.together} divides; got {frames}. "
                f"Use frames={max(1, round(frames / self.together)) * self.together}; a clip may be shorter than that."
            )
        return frames

    def _freeze_as(self, old: AIM) -> None:
        """What is frozen in `old` is frozen here."""
        learns = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(learns[name])

    def _real(self, x: Tensor, mask: Padding | None) -> tuple[Tensor, Bool[Tensor, "batch steps"] | None]:
        """The clip with zeros in its padding, and which steps of time hold a real frame."""
        name = type(self).__name__
        if x.ndim != 5 or not 1 <= x.shape[2] <= self.frames:
            raise ValueError(
                f"{name} needs clips [batch, channels, time, height, width] of 1 to {self.frames} frames; "
                f"got {list(x.shape)}. Cut the clips, or make a model for longer ones: model.resized(frames=...)."
            )
        if mask is None:
            return x, None
        batch, frames = x.shape[0], x.shape[2]
        if not isinstance(mask, Padding) or tuple(mask.valid.shape) not in ((batch, frames), (1, frames)):
            came = list(mask.valid.shape) if isinstance(mask, Padding) else type(mask).__name__
            raise ValueError(
                f"{name} needs a `mask` of real frames, Padding of shape [{batch}, {frames}]; got {came}. "
                f"Write Padding.from_lengths(lengths, {frames}); order in time is causal=True of the model."
            )
        valid = mask.valid.expand(batch, frames)
        steps = F.pad(valid, (0, -frames % self.together)).unflatten(1, (-1, self.together)).any(-1)
        return x.masked_fill(~valid[:, None, :, None, None], 0), steps


def init_as_published(model: AIM) -> None:
    """Start in place: linear maps normal (0.02) with biases of zero, adapters as nothing, the head 0.01."""
    init_linears(model)
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.zeros_(module.D_fc2.weight)
    if model.cls_head is not None:
        nn.init.normal_(model.cls_head.get_parameter("fc_cls.weight"), std=0.01)


def _head(dim: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(OrderedDict({"dropout": nn.Dropout(dropout), "fc_cls": nn.Linear(dim, num_classes)}))


def _mean(
    features: Float[Tensor, "batch dim steps rows columns"], real: Bool[Tensor, "batch steps"]
) -> Float[Tensor, "batch dim"]:
    """Over real steps and all places; zeros for a clip without a real step."""
    frames = torch.where(real[:, None], features.mean((3, 4)), 0)
    return frames.sum(2) / real.sum(1, keepdim=True).clamp(min=1)
