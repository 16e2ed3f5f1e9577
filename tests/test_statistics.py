"""Intervals cover, Holm is Holm, pairing pays, and nothing is ranked on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from locant.compare import statistics
from locant.compare.statistics import (
    Interval,
    above_chance,
    binomial_tail,
    compare,
    compare_over,
    difference,
    holm,
    interval,
    interval_over,
    resamples_needed,
)


def answers(
    rng: np.random.Generator, accuracy: list[float], seeds: int, examples: int, shared: float = 0.8, spread: float = 0.0
) -> np.ndarray:
    """Simulated right and wrong: examples are hard for all, seeds are better or worse, the rest is chance."""
    lift = np.quantile(rng.standard_normal(400_000), accuracy)[:, None, None]
    hard = shared * rng.standard_normal(examples)
    seed = spread * rng.standard_normal((len(accuracy), seeds, 1))
    chance = np.sqrt(1 - shared**2) * rng.standard_normal((len(accuracy), seeds, examples))
    return lift + hard + seed + chance > 0


def unpaired(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of a difference when each side is resampled on its own: what pairing saves us from."""
    sides = []
    for table in (a, b):
        index = rng.integers(table.shape[1], size=(4_000, table.shape[1]))
        sides.append(table.mean(axis=0)[index].mean(axis=1))
    low, high = np.quantile(sides[0] - sides[1], [0.025, 0.975])
    return float(low), float(high)


def test_interval_is_the_plain_crossed_bootstrap() -> None:
    """Against a double loop that draws seeds and examples by index."""
    table = answers(np.random.default_rng(3), [0.8], seeds=4, examples=60, spread=0.2)[0]
    rng = np.random.default_rng(9)
    slow = []
    for _ in range(6_000):
        seeds = rng.integers(4, size=3)
        examples = rng.integers(60, size=60)
        slow.append(np.mean([table[s][examples].mean() for s in seeds]))
    got = interval(table)
    # an end of the interval is itself a draw: its standard error is about 0.002 here for 6,000 resamples
    assert got.low == pytest.approx(np.quantile(slow, 0.025), abs=0.008)
    assert got.high == pytest.approx(np.quantile(slow, 0.975), abs=0.008)
    assert got.mean == pytest.approx(table.mean(), abs=1e-12)
    assert got.spread == pytest.approx(np.std([row.mean() for row in table], ddof=1), abs=1e-12)


def test_seed_variance_is_not_understated() -> None:
    """Seeds that answer all or nothing: the variance of the mean of n seeds is s^2 / n, with n - 1 below s^2."""
    table = np.zeros((4, 50), dtype=bool)
    table[2:] = True
    drawn = statistics._resample(table[None], 20_000)[:, 0]
    assert drawn.var() == pytest.approx(table.mean(axis=1).var(ddof=1) / 4, rel=0.03)  # n draws would give 0.75 of it


def test_intervals_cover_and_resampling_answers_one_by_one_would_not() -> None:
    rng = np.random.default_rng(11)
    covered = naive = 0
    runs = 120
    for _ in range(runs):
        table = answers(rng, [0.85], seeds=3, examples=150)[0]
        got = interval(table)
        covered += got.low <= 0.85 <= got.high
        wide = 1.96 * np.sqrt(table.mean() * (1 - table.mean()) / table.size)
        naive += abs(table.mean() - 0.85) <= wide
    assert covered / runs >= 0.92
    assert naive / runs < 0.88


def test_equal_schemes_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(40):
        tables = answers(rng, [0.9] * 3, seeds=3, examples=120, spread=0.05)
        found = compare(dict(zip("abc", tables, strict=True)))
        false += any(c.verdict != "no difference shown" for c in found)
    assert false <= 4  # family-wise level 0.05 of 40 runs is 2; more than 4 has probability 0.05


def test_holm_textbook() -> None:
    """0.005, 0.01, 0.03, 0.04 at 0.05: the first two stand; the third fails, and takes the fourth with it."""
    corrected, levels = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4], abs=1e-15)


def test_holm_reaches_the_plain_level_when_all_before_stand() -> None:
    corrected, levels = holm(np.array([0.001, 0.002, 0.04]))
    assert corrected == pytest.approx([0.003, 0.004, 0.04], abs=1e-15)
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05], abs=1e-15)


def test_holm_treats_equal_p_alike_and_stays_below_one() -> None:
    corrected, levels = holm(np.array([0.01, 0.5, 0.01, 0.9]))
    assert corrected == pytest.approx([0.04, 1.0, 0.04, 1.0], abs=1e-15)
    assert levels == pytest.approx([0.05 / 4, 0.05 / 2, 0.05 / 4, 0.05 / 2], abs=1e-15)


def test_identical_schemes_never_differ() -> None:
    table = answers(np.random.default_rng(1), [0.7], seeds=3, examples=97)[0]
    [found] = compare({"a": table, "b": table.copy()})
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.p == found.p_holm == 1.0
    assert found.verdict == "no difference shown"


def test_pairing_sees_what_separate_intervals_cannot() -> None:
    """The better scheme gets 12 examples of 200 more right, on every seed, among examples of very mixed difficulty."""
    rng = np.random.default_rng(2)
    a = np.repeat(rng.random((1, 200)) < 0.7, 3, axis=0)
    b = a.copy()
    b[:, np.flatnonzero(a[0])[:12]] = False
    low, high = unpaired(a, b, rng)
    assert low < 0 < high
    [found] = compare({"a": a, "b": b})
    assert found.verdict == "higher"
    assert found.difference == pytest.approx(0.06, abs=1e-12)
    assert 0 < found.low < 0.06 < found.high


def test_a_difference_alone_is_that_of_a_comparison_and_wider_at_a_stricter_level() -> None:
    a, b = answers(np.random.default_rng(4), [0.85, 0.8], seeds=4, examples=200, spread=0.1)
    (pair,) = compare({"a": a, "b": b})
    assert difference(a, b) == (pair.low, pair.high, pair.p)
    low, high, p = difference(a, b, 0.05 / 4)
    assert low < pair.low < pair.difference < pair.high < high
    assert p == pair.p
    with pytest.raises(ValueError, match="two seeds or more; got one"):
        difference(a[:1], b[:1])


def test_the_order_of_a_pair_only_turns_the_sign() -> None:
    tables = answers(np.random.default_rng(8), [0.95, 0.7], seeds=3, examples=150)
    [ab] = compare({"a": tables[0], "b": tables[1]})
    [ba] = compare({"b": tables[1], "a": tables[0]})
    assert (ab.verdict, ba.verdict) == ("higher", "lower")
    assert (ab.low, ab.high) == pytest.approx((-ba.high, -ba.low), abs=1e-12)


def test_verdict_interval_and_corrected_p_agree() -> None:
    """Seven schemes from far apart to nearly equal, so that some pairs stand and some fall."""
    tables = answers(np.random.default_rng(4), [0.6, 0.8, 0.88, 0.9, 0.91, 0.93, 0.94], seeds=3, examples=200)
    found = compare({f"s{i}": table for i, table in enumerate(tables)})
    assert len(found) == 21
    assert {c.verdict for c in found} == {"lower", "no difference shown"}
    for c in found:
        shown = c.verdict != "no difference shown"
        assert shown == (not c.low <= 0 <= c.high) == (c.p_holm <= 0.05)
        assert c.p <= c.p_holm
    assert [(c.a, c.b) for c in found[:2]] == [("s0", "s1"), ("s0", "s2")]


def test_a_p_is_never_zero() -> None:
    right, wrong = np.ones((3, 100), dtype=bool), np.zeros((3, 100), dtype=bool)
    [found] = compare({"right": right, "wrong": wrong})
    assert found.p == pytest.approx(2 / 10_001, abs=1e-15)
    assert (found.low, found.high) == (1.0, 1.0)


def test_enough_resamples_for_the_smallest_level() -> None:
    assert resamples_needed(1) == 10_000
    assert resamples_needed(21) == 42_000
    assert 0.05 / 21 / 2 * resamples_needed(21) == pytest.approx(50)


def test_the_same_answers_give_the_same_numbers() -> None:
    tables = answers(np.random.default_rng(6), [0.8, 0.85], seeds=3, examples=80)
    correct = {"a": tables[0], "b": tables[1]}
    assert compare(correct) == compare(correct)
    assert interval(tables[0]) == interval(tables[0])


def test_one_seed_is_not_ranked() -> None:
    table = np.array([[True, False, True, True]])
    assert interval(table) == Interval(0.75, None, None, None)
    assert compare({"a": table, "b": ~table}) == []


def test_one_scheme_has_nothing_to_be_compared_with() -> None:
    assert compare({"a": np.ones((3, 4), dtype=bool)}) == []


def test_several_test_sets_of_the_same_examples_are_drawn_together() -> None:
    """One part is the plain comparison; two alike are no more than one; two that differ give their mean."""
    a, b = answers(np.random.default_rng(4), [0.85, 0.8], seeds=3, examples=200)
    (plain,) = compare({"a": a, "b": b})
    (once,) = compare_over({"a": a[None], "b": b[None]})
    (twice,) = compare_over({"a": np.stack([a, a]), "b": np.stack([b, b])})
    assert plain == once == twice
    (mixed,) = compare_over({"a": np.stack([a, ~a]), "b": np.stack([b, ~b])})
    assert mixed.difference == pytest.approx(0, abs=1e-12)
    assert interval_over(a[None]) == interval(a)
    assert interval_over(np.stack([a, b])).mean == pytest.approx((a.mean() + b.mean()) / 2, abs=1e-12)


def test_noise_is_rarely_above_chance() -> None:
    """Guesses in four classes, which agree with each other on half of the examples, as models trained alike do."""
    rng, false, runs = np.random.default_rng(12), 0, 30
    for _ in range(runs):
        labels, shared = np.arange(80) % 4, rng.integers(4, size=80)
        tables = {}
        for name in "abcd":
            own = rng.integers(4, size=(3, 80))
            tables[name] = np.where(rng.random((3, 80)) < 0.5, shared, own) == labels
        false += any(above.shown for above in above_chance(tables, 0.25).values())
    assert false <= 3  # of 30 at 0.05; more than 3 has probability 0.06


def test_what_is_above_chance_is_shown_and_the_three_agree() -> None:
    tables = answers(np.random.default_rng(3), [0.25, 0.34, 0.5], seeds=3, examples=400)
    found = above_chance(dict(zip("abc", tables, strict=True)), 0.25)
    assert [above.shown for above in found.values()] == [False, True, True]
    for above, table in zip(found.values(), tables, strict=True):
        assert above.shown == (above.low > 0.25) == (above.p_holm <= 0.05)
        assert above.low < table.mean()
    assert not above_chance({"a": tables[2]}, float(tables[2].mean()))["a"].shown


def test_one_seed_is_held_against_chance_by_the_binomial() -> None:
    """P(X >= 9 of 20 at 1/4) = 0.0409, summed from the binomial coefficients; of two schemes Holm doubles it."""
    tail = sum(math.comb(20, k) * 0.25**k * 0.75 ** (20 - k) for k in range(9, 21))
    assert binomial_tail(9, 20, 0.25) == pytest.approx(tail, abs=1e-12)
    nine = (np.arange(20) < 9)[None]
    alone = above_chance({"a": nine}, 0.25)["a"]
    assert alone.p_holm == pytest.approx(tail, abs=1e-12)
    assert alone.shown
    assert binomial_tail(9, 20, alone.low) == pytest.approx(0.05, abs=1e-9)  # Clopper and Pearson's lower end
    two = above_chance({"a": nine, "b": nine}, 0.25)
    assert two["a"].p_holm == pytest.approx(2 * tail, abs=1e-12)
    assert not two["a"].shown
    assert (binomial_tail(0, 20, 0.25), binomial_tail(3, 20, 0.0), binomial_tail(3, 20, 1.0)) == (1.0, 0.0, 1.0)


def test_seeds_that_differ_more_than_examples_explain_are_noticed() -> None:
    """One accuracy of 0.9 on 100 examples has a standard error of 0.03; 2 of its squares are 0.0018 = 0.0424^2."""
    assert statistics.seeds_dominate(0.9, 0.043, 100)
    assert not statistics.seeds_dominate(0.9, 0.042, 100)
    assert not statistics.seeds_dominate(0.9, None, 100)


@pytest.mark.plain
@pytest.mark.parametrize(
    "correct",
    [
        {"a": np.ones((3, 4), dtype=bool), "b": np.ones((3, 5), dtype=bool)},
        {"a": np.ones((3, 4), dtype=np.int64)},
        {"a": np.ones((3, 4), dtype=np.float32)},
        {"a": np.ones((3, 0), dtype=bool)},
        {"a": np.ones(4, dtype=bool)},
    ],
)
def test_wrong_tables_are_refused(correct: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"`correct` must hold boolean tables.*it got a: .*Pass for each scheme"):
        compare(correct)
