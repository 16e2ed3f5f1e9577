"""What is static about a mask, in hashable numbers: a planner reads this, and never a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from locant.masks.causal import Causal
from locant.masks.mask import Mask
from locant.masks.padding import Padding
from locant.masks.pairs import Pairs
from locant.masks.segments import Segments
from locant.masks.windows import Windows


@dataclass(frozen=True)
class Structure:
    """What is static about a mask: all that a planner may read."""

    causal: tuple[Causal, ...] = ()
    windows: tuple[Windows, ...] = ()
    padding: bool = False
    segments: int = 0  # how many
    pairs: bool = False

    @staticmethod
    def of(mask: Mask | None) -> Structure:
        members = () if mask is None else tuple(mask.members())
        return Structure(
            causal=tuple(m for m in members if isinstance(m, Causal)),
            windows=tuple(m for m in members if isinstance(m, Windows)),
            padding=any(isinstance(m, Padding) for m in members),
            segments=sum(isinstance(m, Segments) for m in members),
            pairs=any(isinstance(m, Pairs) for m in members),
        )

    def names(self) -> str | None:
        """What kinds of masks there are, in words; None is none at all."""
        return " and ".join(filter(None, ("windows" if self.windows else None, self.beyond_windows()))) or None

    def beyond_windows(self) -> str | None:
        """The names of what is not windows, or None."""
        named = {"causal": self.causal, "padding": self.padding, "segments": self.segments, "pairs": self.pairs}
        return " and ".join(name for name, there in named.items() if there) or None
