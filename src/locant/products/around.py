"""What stands around a product and goes with it: norms in front and behind, units, a gain, a residual.

y = N(units(act(n(x) Wᵀ + b))) ∘ gain + residual. Here by torch's operators, as compiled kernels do it in one pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Norm(NamedTuple):
    """A LayerNorm over the last axis, or, not centred, a RMSNorm."""

    scale: Tensor
    shift: Tensor | None
    epsilon: float
    centred: bool = True


class Around(NamedTuple):
    """What goes with a product, as operators take it.

    Attributes:
        gain: [out] (LayerScale).
        residual: [*batch, out].
        scale, shift, epsilon, centred: a `Norm` of x in front, [in].
        scale_behind, shift_behind, epsilon_behind: a LayerNorm of what comes out, [out]; no activation then.
        unit, united: the first `united` outputs are brought to length 1, `unit` at a time.
    """

    gain: Tensor | None = None
    residual: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    epsilon: float = 0.0
    centred: bool = True
    scale_behind: Tensor | None = None
    shift_behind: Tensor | None = None
    epsilon_behind: float = 0.0
    unit: int = 0
    united: int = 0

    def is_nothing(self) -> bool:
        return not self.united and all(t is None for t in self.tensors())

    def in_front(self) -> Around:
        """What of it belongs to the first of two layers."""
        return Around(scale=self.scale, shift=self.shift, epsilon=self.epsilon, centred=self.centred)

    def behind(self) -> Around:
        """What of it belongs to the last of two layers."""
        return self._replace(scale=None, shift=None, epsilon=0.0, centred=True)

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.gain, self.residual, self.scale, self.shift, self.scale_behind, self.shift_behind


NOTHING = Around()
SCHEMA = (
    "Tensor? gain, Tensor? residual, Tensor? scale, Tensor? shift, float epsilon, bool centred, "
    "Tensor? scale_behind, Tensor? shift_behind, float epsilon_behind, int unit, int united"
)  # of its fields, for operators


def around_of(
    gain: Tensor | None, residual: Tensor | None, norm: Norm | None, behind: Norm | None, units: tuple[int, int] | None
) -> Around:
    if all(part is None for part in (gain, residual, norm, behind, units)):
        return NOTHING
    scale, shift, epsilon, centred = norm or (None, None, 0.0, True)
    scale_behind, shift_behind, epsilon_behind, _ = behind or (None, None, 0.0, True)
    unit, united = units or (0, 0)
    return Around(
        gain, residual, scale, shift, epsilon, centred, scale_behind, shift_behind, epsilon_behind, unit, united
    )


def normalise_in_front(x: Tensor, around: Around) -> Tensor:
    if around.scale is None:
        return x
    scale, shift = _like(around.scale, x), _like(around.shift, x)
    if around.centred:
        return F.layer_norm(x, x.shape[-1:], scale, shift, around.epsilon)
    y = F.rms_norm(x, x.shape[-1:], scale, around.epsilon)
    return y if shift is None else y + shift


def finish(y: Tensor, around: Around, owned: bool = False) -> Tensor:
    """What comes behind a product; written into y where that is `owned`."""
    if around.united:
        head, rest = y[..., : around.united], y[..., around.united :]
        units = to_unit_length(head.unflatten(-1, (-1, around.unit))).flatten(-2)
        y = torch.cat((units.to(y.dtype), rest), dim=-1)
    if around.scale_behind is not None:
        scale, shift = _like(around.scale_behind, y), _like(around.shift_behind, y)
        y = F.layer_norm(y, y.shape[-1:], scale, shift, around.epsilon_behind)
    gain = _like(around.gain, y)
    if gain is not None:
        y = y.mul_(gain.detach()) if owned else y * gain
    if around.residual is not None:
        y = y.add_(around.residual) if owned else around.residual + y
    return y


def to_unit_length(x: Tensor) -> Tensor:
    """x / ‖x‖ over the last axis, halves in float32; a vector of zeros stays one, and its gradient is that of x."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


def _like(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return vector if vector is None or vector.dtype == x.dtype else vector.to(x.dtype)
