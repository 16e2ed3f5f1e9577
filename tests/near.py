"""How far two tensors of one shape are apart."""

from __future__ import annotations

from torch import Tensor


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference between two numbers."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max())


def apart_by_size(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number that is wanted."""
    return apart(found, wanted) / (float(wanted.detach().abs().max()) or 1.0)


def close(found: Tensor, wanted: Tensor, most: float = 1e-10) -> None:
    """Asserts that they are nowhere further apart than `most`."""
    assert apart(found, wanted) <= most
