"""How long a trial trains: a number of steps from the number of examples, the same for every scheme.

No clock decides anything, unless `--minutes` asked for it: then the steps are cut once, before the first of them, by
one factor for all schemes and tasks, and stand in settings.toml like any other number.

The rate warms up, stays, and falls. It begins to fall when validation has come to a plateau, or so that it ends with
the budget: the same rule for every scheme, and a function of what was computed, so that a trial that was killed goes
on as it would have.
"""

from __future__ import annotations

import math
from dataclasses import replace

from locant.tasks.kind import Recipe

LEAST = 1200  # steps: a model learns no faster from few examples
PASSES = 8  # over the training examples, where these are more steps than that
QUICK = 3  # under --quick a third of it
WARM, FALL = 0.1, 0.3  # shares of the steps in which the rate rises, and in which it falls
CHECKS, NEAREST = 20, 10  # looks at validation per trial, and the fewest steps between two of them
PATIENCE = 4  # looks in a row without a better one are a plateau


def steps_per_pass(recipe: Recipe, examples: int) -> int:
    """Batches that hold every training example once."""
    return -(-examples // recipe.batch)


def count_steps(recipe: Recipe, examples: int, quick: bool = False) -> int:
    """The budget of one trial on so many training examples: what was asked for, or what their number says."""
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return recipe.epochs * steps_per_pass(recipe, examples)
    whole = max(LEAST, PASSES * steps_per_pass(recipe, examples))
    return whole // QUICK if quick else whole


def with_steps(recipe: Recipe, examples: int, quick: bool = False) -> Recipe:
    """The recipe with its budget as a number of steps."""
    return replace(recipe, steps=count_steps(recipe, examples, quick), epochs=None)


def steps_between_checks(steps: int) -> int:
    """From one look at validation to the next."""
    return max(NEAREST, -(-steps // CHECKS))


def steps_of_fall(steps: int) -> int:
    """How long the rate falls at the end of a trial."""
    return max(1, round(FALL * steps))


def on_plateau(validations: list[float]) -> bool:
    """Whether none of the last looks was better than what came before them."""
    earlier = validations[:-PATIENCE]
    return bool(earlier) and max(validations[-PATIENCE:]) <= max(earlier)


def rate_factor(step: int, steps: int, end: int) -> float:
    """The share of the peak learning rate in a trial of a budget of `steps` that ends after `end` of them."""
    warm, fall = max(1, int(WARM * steps)), steps_of_fall(steps)
    down = step - (end - fall)
    late = 1.0 if down < 0 else 0.5 * (1 + math.cos(math.pi * down / fall))
    return min((step + 1) / warm, late)
