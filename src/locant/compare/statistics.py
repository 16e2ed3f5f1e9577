"""What the test answers of a few trials allow us to say: intervals, paired differences, and when to stay silent.

Input is which test example each trial got right: per scheme a table `correct[seeds, examples]`, the same seeds and
the same examples in the same order for every scheme. A metric of the user's gives a score from 0 to 1 in place of a
yes or no; "right" below then means that score, taken in steps of 2^-24, and accuracy its mean.

The resampling is *crossed*: one draw of seeds with replacement and one draw of examples with replacement, and a
resample is their product. The accuracy of a resample is the bilinear form

    accuracy*[scheme] = s^T correct[scheme] e / (sum(s) * examples)      s[seeds], e[examples]: how often drawn

Crossed, because the answers are not independent: one seed answers all examples, and a hard example is hard for every
seed. Resampling the answers one by one would take 3 seeds x 360 examples for 1,080 facts, and its intervals would be
far too short. Every scheme sees the same s and e, so the difference of two schemes is paired over both: whatever a
seed or an example does to both schemes cancels.

`seeds - 1` seeds are drawn, not `seeds`: the mean of n - 1 draws has the variance s^2/n that the mean of n seeds has,
where n draws give only (n-1)/n of it, a third too little for three seeds (Rao and Wu 1988; crossed resampling: Owen
2007, arXiv:0712.1111, who shows that it errs to the wide side for the rest).

What three seeds can and cannot say. Simulated with seven equal schemes of accuracy 0.96 and three seeds (60 to
300 runs each): with 360 examples, intervals of 95 % covered the truth in 95 to 99 % of runs, and the share of
runs that showed any difference where there is none was below 1 % while seeds spread an accuracy by 0.011 or less, and
8 % at a spread of 0.018. With 5,000 examples it was 5 % at a spread of 0.004, but 30 to 45 % at 0.008 (five seeds:
18 to 27 %): three seeds cannot speak of seeds worse than the worst of them, and resampling cannot invent one. So where
seeds differ by more than examples can explain, `seeds_dominate` says so, and more seeds are the cure. Nor can a
bootstrap see what no trial got wrong: all right gives [1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

ALPHA = 0.05  # intervals of 95 %, and the family-wise level that Holm keeps
RESAMPLES = 10_000
IN_TAIL = 50  # resamples beyond the end of a corrected interval, so that the end moves by about 14 % of its level
SEED = 0
STEPS = 2.0**24  # of a score between 0 and 1
CHUNK = 1_000  # resamples in memory at a time

Table = Shaped[np.ndarray, "seeds examples"]  # right or wrong, or float64 scores from 0 to 1
Verdict = Literal["higher", "lower", "no difference shown"]


@dataclass(frozen=True)
class Interval:
    """Accuracy of one scheme. `spread` is the standard deviation over seeds; with one seed only `mean` is known."""

    mean: float
    spread: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Scheme `a` against scheme `b`: `difference` = accuracy of a - accuracy of b.

    `low` and `high` end the interval at the level that Holm gives this comparison; `p` is two-sided and of this
    comparison alone, `p_holm` is corrected for all of them. The verdict says what `a` is, and these three agree:
    the verdict is not "no difference shown"; the interval leaves 0 out; p_holm <= 0.05.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True)
class Above:
    """Whether a scheme is shown to be above chance: `low` ends its one-sided interval at the level that Holm gives it,
    and these three agree: `shown`; `low` is above chance; `p_holm` <= 0.05."""

    shown: bool
    low: float
    p_holm: float


def interval(correct: Table) -> Interval:
    """Mean accuracy, its standard deviation over seeds, and the 95 % interval of the mean.

    One seed: no spread and no interval, because nothing is known of what another seed would do.

    Raises:
        ValueError: if `correct` is not a table of booleans with at least one seed and one example.
    """
    _check({"correct": correct})
    if len(correct) == 1:
        return Interval(float(correct.mean()), None, None, None)
    spread = float(correct.mean(axis=1).std(ddof=1))
    low, high = _ends(_resample(correct[None], RESAMPLES)[:, 0], ALPHA)
    return Interval(float(correct.mean()), spread, low, high)


def compare(correct: Mapping[str, Table]) -> list[Comparison]:
    """Every pair of schemes, paired over seeds and test examples, corrected for the number of pairs (Holm 1979).

    Pairs are in the order of the schemes given. With one seed the list is empty: one seed, no ranking.

    p = min(1, 2 (1 + c) / (1 + B)), where c of the B resampled differences lie on the rarer side of 0 or on it. So a
    difference that no resample contradicts has p = 2 / (1 + B), never 0: B resamples cannot show less. Ends of an
    interval at level alpha are the r-th smallest and r-th largest resample, r = floor(alpha (1 + B) / 2): it leaves
    0 out exactly when p <= alpha.

    Raises:
        ValueError: if the tables are not booleans of one shape, [seeds, examples].
    """
    _check(correct)
    return _pairs({name: table[None] for name, table in correct.items()})


def compare_over(correct: Mapping[str, Shaped[np.ndarray, "parts seeds examples"]]) -> list[Comparison]:
    """As `compare`, by the mean accuracy over several test sets that were made of the same examples.

    Part by part, `correct[name]` says what each seed answers rightly of one test set; an example has one place in all
    of them, so a resample draws it in all of them at once.

    Raises:
        ValueError: if the tables are not booleans of one shape, [parts, seeds, examples].
    """
    _check({name: np.concatenate(tables) for name, tables in correct.items()})
    return _pairs(correct)


def interval_over(correct: Shaped[np.ndarray, "parts seeds examples"]) -> Interval:
    """As `interval`, of the mean accuracy over several test sets that were made of the same examples."""
    _check({"correct": np.concatenate(correct)})
    seeds = correct.mean(axis=(0, 2))
    if len(seeds) == 1:
        return Interval(float(correct.mean()), None, None, None)
    low, high = _ends(_resample(correct, RESAMPLES).mean(axis=1), ALPHA)
    return Interval(float(correct.mean()), float(seeds.std(ddof=1)), low, high)


def above_chance(correct: Mapping[str, Table], level: float) -> dict[str, Above]:
    """Which schemes are shown to answer more than `level`, a share that needs no look at an example.

    One-sided, of one sample, corrected for the number of schemes (Holm 1979). p = (1 + c) / (1 + B), where c of the B
    resampled accuracies are `level` or less. With one seed nothing is known of seeds, and the test is of this one
    model on new examples: the exact binomial one, P(hits or more | examples, level), scores summed and rounded down.

    Raises:
        ValueError: if the tables are not booleans of one shape, [seeds, examples].
    """
    _check(correct)
    names = list(correct)
    if not names:
        return {}
    tables = np.stack([correct[name] for name in names])
    hits, (_, seeds, examples) = tables.sum(axis=(1, 2)), tables.shape
    drawn = _resample(tables, resamples_needed(len(names))) if seeds > 1 else np.empty((0, len(names)))
    if seeds > 1:
        p = (1 + (drawn <= level).sum(axis=0)) / (1 + len(drawn))
    else:
        p = np.array([binomial_tail(int(h), examples, level) for h in hits])
    p_holm, levels = holm(p)
    low = [
        float(np.sort(drawn[:, i])[max(1, math.floor(strict * (1 + len(drawn)))) - 1])
        if seeds > 1
        else _binomial_low(int(hits[i]), examples, strict)
        for i, strict in enumerate(levels)
    ]
    return {
        name: Above(bool(corrected <= ALPHA), end, float(corrected))
        for name, end, corrected in zip(names, low, p_holm, strict=True)
    }


def difference(a: Table, b: Table, level: float = ALPHA) -> tuple[float, float, float]:
    """Of accuracy of a - accuracy of b: the ends of its interval at 1 - level, and p, both as `compare` has them.

    For pairs that are compared run by run, such as one scheme against another on several shares of the data: give the
    level that `holm` gives the pair among all of them.

    Raises:
        ValueError: if the tables are not booleans of one shape, [seeds, examples], with two seeds or more.
    """
    _check({"a": a, "b": b})
    if len(a) == 1:
        raise ValueError("a difference needs two seeds or more; got one, which says nothing of another. Train more.")
    drawn = _resample(np.stack([a, b]), resamples_needed(math.ceil(ALPHA / level)))
    apart = drawn[:, 0] - drawn[:, 1]
    return *_ends(apart, level), _two_sided(apart)


def seeds_dominate(mean: int | float, spread: int | float | None, examples: int) -> bool:
    """Whether seeds differ by more than the test examples explain: spread^2 > 2 mean (1 - mean) / examples.

    Below that ratio false differences stayed under 5 % in the simulations above; beyond it three seeds are too few.
    """
    return spread is not None and spread**2 > 2 * mean * (1 - mean) / examples


def resamples_needed(comparisons: int) -> int:
    """Resamples so that the strictest level, 0.05 / comparisons, has `IN_TAIL` of them in each tail; 10,000 at least.

    21 comparisons (seven schemes) need 42,000, 15 need 30,000.
    """
    return max(RESAMPLES, math.ceil(2 * IN_TAIL * comparisons / ALPHA))


def holm(p: Float[np.ndarray, " tests"]) -> tuple[Float[np.ndarray, "tests"], Float[np.ndarray, "tests"]]:
    """Holm's step-down: corrected p, and the level at which each test is held against its own p.

        p_holm of rank i = max over ranks j <= i of (m - j + 1) p_j
        level  of rank i = alpha / (m - min(i, stop) + 1)          stop: the first rank that fails, and all after it

    so that `p <= level` and `p_holm <= alpha` always agree. Equal p share the first of their ranks: their order
    among themselves means nothing.
    """
    m = len(p)
    ranked = np.sort(p)
    left = m - np.searchsorted(ranked, ranked)  # m - rank + 1, with the first rank of those that are equal
    passed = np.minimum(1.0, np.maximum.accumulate(left * ranked))
    failed = ranked > ALPHA / left
    stop = int(failed.argmax()) if failed.any() else m - 1
    levels = ALPHA / np.maximum(left, left[stop])
    place = np.searchsorted(ranked, p)
    return passed[place], levels[place]


def binomial_tail(hits: int, count: int, share: float) -> float:
    """P(X >= hits) of `count` draws that each hit with probability `share`."""
    if hits <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    whole = math.lgamma(count + 1)
    logs = (
        whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(hits, count + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _binomial_low(hits: int, count: int, level: float) -> float:
    """The share under which `hits` or more have the probability `level` (Clopper and Pearson 1934), by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(hits, count, middle) <= level else (low, middle)
    return low


def _pairs(correct: Mapping[str, Shaped[np.ndarray, "parts seeds examples"]]) -> list[Comparison]:
    """Every pair, of resamples that all share."""
    names = list(correct)
    pairs = list(combinations(range(len(names)), 2))
    if not pairs or correct[names[0]].shape[1] == 1:
        return []
    tables = np.stack([correct[name] for name in names])
    means = tables.mean(axis=(1, 2, 3))
    drawn = _resample(np.concatenate(tables), resamples_needed(len(pairs)))
    drawn = drawn.reshape(len(drawn), *tables.shape[:2]).mean(axis=2)
    p = np.array([_two_sided(drawn[:, a] - drawn[:, b]) for a, b in pairs])
    p_holm, levels = holm(p)
    comparisons = []
    for (a, b), one, corrected, level in zip(pairs, p, p_holm, levels, strict=True):
        low, high = _ends(drawn[:, a] - drawn[:, b], level)
        verdict: Verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
        difference = float(means[a] - means[b])
        comparisons.append(Comparison(names[a], names[b], difference, low, high, float(one), float(corrected), verdict))
    return comparisons


def _resample(tables: Shaped[np.ndarray, "schemes seeds examples"], count: int) -> Float[np.ndarray, "count schemes"]:
    """Accuracy of every scheme in `count` crossed resamples.

    Examples that all trials answer alike are interchangeable, so draws are over distinct answers, weighted by how
    often they occur: the same distribution, with fewer columns. Counts are whole numbers in float64, hence exact,
    and schemes that answer alike get differences of exactly 0.
    """
    schemes, seeds, examples = tables.shape
    answers, often = np.unique(tables.reshape(-1, examples), axis=1, return_counts=True)
    answers = np.round(answers.T * STEPS) / STEPS  # so that every sum below is exact, of scores too
    rng = np.random.default_rng(SEED)
    parts: list[Int[np.ndarray, "chunk schemes"]] = []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        e = rng.multinomial(examples, often / examples, size=size).astype(np.float64)
        s = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=size)
        hits = (e @ answers).reshape(size, schemes, seeds)
        parts.append((hits * s[:, None]).sum(axis=-1))
    return np.concatenate(parts) / ((seeds - 1) * examples)


def _two_sided(differences: Float[np.ndarray, " count"]) -> float:
    against = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (1 + int(against)) / (1 + len(differences)))


def _ends(values: Float[np.ndarray, " count"], level: float) -> tuple[float, float]:
    rank = max(1, math.floor(level * (1 + len(values)) / 2))
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _check(correct: Mapping[str, np.ndarray]) -> None:
    shapes = {name: np.shape(table) for name, table in correct.items()}
    kinds = {name: getattr(table, "dtype", type(table)) for name, table in correct.items()}
    tables = all(len(shape) == 2 and min(shape) > 0 for shape in shapes.values())
    if len(set(shapes.values())) <= 1 and tables and set(kinds.values()) <= {np.dtype(bool), np.dtype(np.float64)}:
        return
    came = ", ".join(f"{name}: {kinds[name]} {list(shapes[name])}" for name in shapes)
    raise ValueError(
        "`correct` must hold boolean tables [seeds, examples] of one shape, or float64 scores, with at least one seed "
        f"and one example; it got {came}. Pass for each scheme which test example each seed got right, in the same "
        "order."
    )
