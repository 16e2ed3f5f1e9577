"""What is searched on validation data: a rate, and a start of what the scheme learns. As many tries for every scheme.

A scheme that learns nothing, or whose start is not to be chosen, spends the tries that others spend on starts on rates.
"""

from __future__ import annotations

from typing import Any

from locant.compare.schemes import Scheme
from locant.compare.sensitivity import FACTORS
from locant.compare.settings import Settings
from locant.compare.trial import Job
from locant.tasks.kind import Recipe

Try = tuple[float, float | None]  # rate and start


def tries(scheme: Scheme, recipe: Recipe) -> tuple[Try, ...]:
    """What the first seed tries, in the order in which equals win: small rates before large, published starts first."""
    starts: tuple[float | None, ...] = scheme.starts[: recipe.starts] or (None,)
    rates = list(recipe.lr)
    missing = len(recipe.lr) * (recipe.starts - len(starts))
    for index in range(missing):  # beside the rates asked for: by turns half the smallest and double the largest
        rates.append(max(rates) * 2 if index % 2 else min(rates) / 2)
    first = [(rate, starts[0]) for rate in rates]
    return tuple(sorted(first + [(rate, start) for start in starts[1:] for rate in recipe.lr], key=lambda t: t[0]))


def jobs(kind: str, scheme: Scheme, recipe: Recipe, seed: int) -> list[Job]:
    """The trials of one seed that search."""
    return [Job(kind, scheme.name, seed, rate, start) for rate, start in tries(scheme, recipe)]


def count(scheme: Scheme, recipe: Recipe, settings: Settings) -> int:
    """Trials of a scheme, at most: tries, further seeds, and what is varied to see whether the order hangs on it."""
    varied = len(FACTORS) * (2 if scheme.starts else 1) if settings.sensitivity else 0
    return len(tries(scheme, recipe)) + len(settings.seeds) - 1 + varied


def best(sweep: list[dict[str, Any]]) -> Try:
    """The try that validates best; of equals the first."""
    job = max(sweep, key=lambda about: about["validation"])["job"]
    return float(job["lr"]), job["start"]


def start_of(scheme: Scheme, recipe: Recipe, taken: float | None) -> dict[str, Any] | None:
    """What is said of a scheme's start; None where it has none."""
    if taken is None:
        return None
    return {"published": scheme.starts[0], "taken": taken, "tried": list(scheme.starts[: recipe.starts])}
