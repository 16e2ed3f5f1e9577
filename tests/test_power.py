"""What a run could have shown, and what it asks for, held against simulated runs that do as they are told."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from locant.compare.finding import of_power
from locant.compare.power import APART, Power, Spread, chi_square, power, spread_of
from locant.compare.statistics import compare


def answers(
    rng: np.random.Generator, accuracy: tuple[float, ...], seeds: int, examples: int, by_seed: float, own: float
) -> np.ndarray:
    """Right and wrong from sums of normals: hard examples (0.8), a scheme's seeds, its own taste, chance."""
    lift = np.array([NormalDist().inv_cdf(a) for a in accuracy])[:, None, None]
    shape = (len(accuracy), seeds, examples)
    rest = np.sqrt(1 - 0.8**2 - by_seed**2 - own**2)
    noise = 0.8 * rng.standard_normal(examples) + by_seed * rng.standard_normal((*shape[:2], 1))
    return lift + noise + own * rng.standard_normal((shape[0], 1, examples)) + rest * rng.standard_normal(shape) > 0


def named(tables: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): table for i, table in enumerate(tables)}


def shown_when_asked(
    accuracy: tuple[float, ...], first: int, examples: int, by_seed: float, own: float, ask: str, pilots: int = 10
) -> float:
    """The share of true differences of 3 points that are shown by runs of as many seeds, or examples, as were asked
    for by a run of `first` seeds."""
    rng, shown = np.random.default_rng(1), []
    pairs = len(accuracy) * (len(accuracy) - 1) // 2
    for _ in range(pilots):
        price = power(named(answers(rng, accuracy, first, examples, by_seed, own)), pairs)
        assert price is not None
        asked = getattr(price, ask)
        if asked is None or asked > {"seeds": 200, "examples": 20_000}[ask]:
            continue  # nothing to try: it says that this alone won't do
        seeds, count = (asked, examples) if ask == "seeds" else (first, asked)
        for _ in range(3):
            found = compare(named(answers(rng, accuracy, seeds, count, by_seed, own)))
            shown += [c.verdict != "no difference shown" for c in found if accuracy[int(c.a)] != accuracy[int(c.b)]]
    assert len(shown) >= 2 * pilots  # most of the first runs asked for something that can be tried
    return float(np.mean(shown))


@pytest.mark.parametrize(
    ("accuracy", "first", "examples", "by_seed", "own", "ask"),
    [
        ((0.9, 0.87), 3, 360, 0.0, 0.0, "seeds"),
        ((0.9, 0.87), 3, 360, 0.1, 0.2, "seeds"),
        ((0.95, 0.92, 0.92, 0.92), 3, 360, 0.1, 0.2, "seeds"),
        ((0.9, 0.87, 0.87, 0.87), 5, 360, 0.0, 0.2, "examples"),
    ],
)
def test_what_it_asks_for_shows_the_difference_in_four_of_five_runs(
    accuracy: tuple[float, ...], first: int, examples: int, by_seed: float, own: float, ask: str
) -> None:
    assert shown_when_asked(accuracy, first, examples, by_seed, own, ask) >= 0.8


def test_variances_are_those_that_were_put_in() -> None:
    """Differences of two schemes made of known effects, one hundred draws of 8 seeds x 60 examples."""
    rng, found = np.random.default_rng(2), []
    for _ in range(100):
        seed, example = 0.1 * rng.standard_normal((2, 8, 1)), 0.3 * rng.standard_normal((2, 1, 60))
        found.append(spread_of(seed + example + 0.5 * rng.standard_normal((2, 8, 60))))
    means = [np.mean([getattr(s, name) for s in found]) for name in ("seed", "example", "both")]
    # the standard error of a mean variance is below a tenth of it here: 7 x 100 and 59 x 100 squares
    assert means == pytest.approx([2 * 0.01, 2 * 0.09, 2 * 0.25], rel=0.15)


def test_scores_between_right_and_wrong_have_a_price_as_well() -> None:
    """Half of every answer: differences are half as large, so 3 points of them cost what 6 points of answers do."""
    tables = answers(np.random.default_rng(6), (0.9, 0.87, 0.88), 4, 360, 0.1, 0.1)
    whole, half = power(named(tables), 3), power(named(tables / 2), 3)
    assert whole is not None
    assert half is not None
    assert half.shown == pytest.approx(whole.shown / 2, rel=1e-12)


def test_the_formula_by_hand() -> None:
    """z(0.975) = 1.959964, z(0.8) = 0.841621; believed² = 0.0002/4 + 0.1/400 + 3 · 0.08/1600, true² without the 3."""
    spread = Spread(0.0002, 0.1, 0.08)
    believed, true = np.sqrt(0.00005 + 0.00025 + 0.00015), np.sqrt(0.00005 + 0.00025 + 0.00005)
    assert spread.least(4, 400, 0.05) == pytest.approx(1.959964 * believed + 0.841621 * true, abs=1e-6)


def test_as_many_as_there_are_is_enough_where_three_points_are_shown_already() -> None:
    tables = named(answers(np.random.default_rng(3), (0.9, 0.9), 5, 20_000, 0.0, 0.0))
    price = power(tables, 1)
    assert price is not None
    assert price.shown < APART
    assert (price.seeds, price.examples) == (5, 20_000)
    assert of_power(price, (5, 20_000))["sentence"].endswith("in four of five runs.")


def test_what_no_number_buys_is_said() -> None:
    """Schemes that answer other examples rightly whatever the seed: more seeds can't help; and the other way round."""
    rng = np.random.default_rng(4)
    stubborn = np.repeat(rng.random((2, 1, 100)) < 0.7, 4, axis=1)
    price = power(named(stubborn), 1)
    assert price is not None
    assert price.seeds is None
    assert price.examples is not None
    moody = np.repeat(rng.random((2, 4, 1)) < 0.5, 100, axis=2)
    price = power(named(moody), 1)
    assert price is not None
    assert price.examples is None
    assert price.seeds is not None


def test_one_seed_knows_nothing_and_two_of_two_schemes_no_price() -> None:
    tables = answers(np.random.default_rng(5), (0.9, 0.87), 2, 360, 0.1, 0.1)
    assert power(named(tables[:, :1]), 1) is None
    price = power(named(tables), 1)
    assert price is not None
    assert (price.seeds, price.examples) == (None, None)
    assert of_power(price, (2, 360))["sentence"].endswith("three seeds would tell what 3 points need.")


def test_the_sentence_has_both_prices() -> None:
    said = of_power(Power(0.052, 9, 1_080), (3, 360))
    assert said["sentence"] == (
        "3 seeds and 360 test examples show a difference of 5.2 points in four of five runs; 3 points need 9 seeds or "
        "1,080 test examples."
    )
    assert of_power(Power(1.4, None, None), (3, 9))["sentence"] == (
        "3 seeds and 9 test examples show no difference at all in four of five runs; 3 points need more of both: "
        "neither more seeds nor more examples alone would do."
    )


def test_chi_square_is_near_the_tables() -> None:
    """0.2 quantiles from tables: 2 · -ln 0.8 for two degrees of freedom, exactly."""
    assert chi_square(0.2, 2) == pytest.approx(2 * -np.log(0.8), abs=0.015)
    assert chi_square(0.2, 12) == pytest.approx(7.807, abs=0.015)
