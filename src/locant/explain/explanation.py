"""Explanation: what was found, as values and in words."""

from __future__ import annotations

from dataclasses import dataclass

from locant.explain.data import Data


@dataclass(frozen=True)
class Explanation:
    """What position does in a model.

    Attributes:
        data: all of it, as plain values and arrays (locant.explain.data).
    """

    data: Data

    def __str__(self) -> str:
        said = [self.data.title, *self.data.notes, *(f"- {finding.text}" for finding in self.data.findings)]
        return "\n".join(said)
