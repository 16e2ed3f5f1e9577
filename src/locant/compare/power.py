"""What a comparison could have shown, and what it would take to show less.

The difference of two schemes on example n under seed s is d + u_s + v_n + w_sn: what a seed, an example, and both
together do to it. Their variances are estimated from the schemes compared (the interactions of a two-way analysis of
variance per scheme: what seeds or examples do to all schemes alike cancels in a difference). With S seeds and N test
examples the mean difference then varies, and the crossed bootstrap of `statistics.py` believes that it varies, by

    true²     = σ_u²/S + σ_v²/N +   σ_w²/(S N)
    believed² = σ_u²/S + σ_v²/N + 3 σ_w²/(S N)          (crossed resampling errs to the wide side: Owen 2007)

A difference d is shown when it exceeds z(1 - α/2) · believed, so it is shown in 4 of 5 runs if

    d >= z(1 - α/2) · believed + z(0.8) · true          α = 0.05 / comparisons: the first of Holm's steps

σ_u² is known from few seeds only. Where a number is asked for, its upper end is taken, which it stays below in 4 of 5
runs: rather a seed too many than a run that shows nothing again. Two seeds of two schemes tell nothing of that end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Shaped

from locant.compare.statistics import ALPHA, Table

APART = 0.03  # the difference whose price is named
SHOWN_IN = 0.8  # of runs
MOST = 1_000_000  # seeds or examples beyond which nobody goes


@dataclass(frozen=True)
class Power:
    """`shown`: the least difference that 4 of 5 such runs show. `seeds`, `examples`: how many of the one, with as many
    of the other as there are, show `APART`; None: no number does, or none can be told."""

    shown: float
    seeds: int | None
    examples: int | None


@dataclass(frozen=True)
class Spread:
    """Variances of the difference of two schemes on one example: by seed, by example, by both."""

    seed: float
    example: float
    both: float

    def least(self, seeds: int, examples: int, level: float) -> float:
        """The least difference that is shown at this level in 4 of 5 runs."""
        common = self.seed / seeds + self.example / examples
        both = self.both / (seeds * examples)
        normal = NormalDist()
        tail = normal.inv_cdf(1 - level / 2)
        return tail * math.sqrt(common + 3 * both) + normal.inv_cdf(SHOWN_IN) * math.sqrt(common + both)


def power(correct: Mapping[str, Table], comparisons: int) -> Power | None:
    """What these answers could have shown; None with one seed, or one scheme, of which no difference is known.

    Args:
        correct: of the schemes whose differences are asked for, two at least.
        comparisons: how many Holm's method corrects for.
    """
    tables = np.stack(list(correct.values()))
    schemes, seeds, examples = tables.shape
    if schemes < 2 or seeds < 2 or examples < 2:
        return None
    level, free = ALPHA / comparisons, (schemes - 1) * (seeds - 1)
    shown = spread_of(tables).least(seeds, examples, level)
    if shown <= APART:
        return Power(shown, seeds, examples)
    if free < 2:
        return Power(shown, None, None)
    spread = spread_of(tables, free / chi_square(1 - SHOWN_IN, free))
    return Power(
        shown,
        _fewest(lambda n: spread.least(n, examples, level) <= APART, seeds),
        _fewest(lambda n: spread.least(seeds, n, level) <= APART, examples),
    )


def spread_of(tables: Shaped[np.ndarray, "schemes seeds examples"], upper: float = 1.0) -> Spread:
    """The variances of differences, by the analysis of variance; the mean square of seeds `upper` times as large."""
    schemes, seeds, examples = tables.shape
    apart = tables - tables.mean(axis=0)  # what all schemes share cancels in a difference
    by_seed, by_example = apart.mean(axis=2, keepdims=True), apart.mean(axis=1, keepdims=True)
    mean = by_seed.mean(axis=1, keepdims=True)
    free = schemes - 1
    seed_square = examples * float(((by_seed - mean) ** 2).sum()) / (free * (seeds - 1))
    example_square = seeds * float(((by_example - mean) ** 2).sum()) / (free * (examples - 1))
    rest = float(((apart - by_seed - by_example + mean) ** 2).sum()) / (free * (seeds - 1) * (examples - 1))
    return Spread(
        2 * max(0.0, (upper * seed_square - rest) / examples), 2 * max(0.0, (example_square - rest) / seeds), 2 * rest
    )


def chi_square(share: float, free: int) -> float:
    """The value that chi-square with `free` degrees of freedom stays below with probability `share`: Wilson and
    Hilferty's cube (1931), within 0.015 of the true one at the share asked for here."""
    return float(free * max(0.05, 1 - 2 / (9 * free) + NormalDist().inv_cdf(share) * math.sqrt(2 / (9 * free))) ** 3)


def _fewest(enough: Callable[[int], bool], first: int) -> int | None:
    """The smallest number that is enough, by doubling and halving; None if `MOST` is not."""
    if enough(first):
        return first
    if not enough(MOST):
        return None
    low, high = first, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
