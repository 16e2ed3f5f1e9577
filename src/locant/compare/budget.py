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
from typing import Any

from locant.compare.settings import Settings
from locant.tasks import splits
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Task

LEAST = 1200  # steps: a model learns no faster from few examples
PASSES = 8  # over the training examples, where these are more steps than that
QUICK = 3  # under --quick a third of it
WARM, FALL = 0.1, 0.3  # shares of the steps in which the rate rises, and in which it falls
CHECKS, NEAREST = 20, 10  # looks at validation per trial, and the fewest steps between two of them
PATIENCE = 5  # looks in a row without a better one are a plateau,
EARLIEST = 0.5  # from this share of the steps on: many schemes stay at chance for long, and learn all at once


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
    """How long the rate falls at the end of a trial: whole looks, so that trials that end early are looked at at the
    same steps as others."""
    every = steps_between_checks(steps)
    return min(steps, every * max(1, round(FALL * steps / every)))


def on_plateau(validations: list[float], step: int, steps: int) -> bool:
    """Whether validation gets no better: it has no error, or, late enough, none of the last looks was better."""
    earlier, last = validations[:-PATIENCE], validations[-PATIENCE:]
    return last[-1] == 1.0 or (step >= EARLIEST * steps and bool(earlier) and max(last) <= max(earlier))


def rate_factor(step: int, steps: int, end: int) -> float:
    """The share of the peak learning rate in a trial of a budget of `steps` that ends after `end` of them."""
    warm, fall = max(1, int(WARM * steps)), steps_of_fall(steps)
    down = step - (end - fall)
    late = 1.0 if down < 0 else 0.5 * (1 + math.cos(math.pi * down / fall))
    return min((step + 1) / warm, late)


def of_task(task: Task, recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """The budget of a task's trials for results.json."""
    examples = len(splits.share(task.train, recipe.share, settings.seeds[0]))
    kind, built_in = KINDS[task.kind], settings.data is None
    fixed = (kind.quick if settings.quick else kind.recipe).steps if built_in else None
    usual = count_steps(replace(recipe, steps=fixed, epochs=None), examples, settings.quick)
    steps = count_steps(recipe, examples)
    if steps == usual:
        third = ", a third of it under --quick" if settings.quick else ""
        rule = f"{LEAST:,} steps, or {PASSES} passes over the training examples where those are more{third}"
        why = rule if fixed is None else "the number is fixed for this built-in task"
    elif settings.minutes is not None and steps < usual:
        asked = f"{settings.minutes:g} minute{'s' * (settings.minutes != 1)}"
        why = f"cut from {usual:,}, for every scheme alike, so that the run takes about {asked}"
    else:
        why = f"as asked for; unasked it would be {usual:,}"
    passes = steps / steps_per_pass(recipe, examples)
    return {
        "steps": steps,
        "epochs": round(passes, 2),
        "batch": recipe.batch,
        "rule": f"At most {steps:,} steps of {recipe.batch} examples, {passes:.3g} passes over {examples:,}: {why}.",
        "plateau": f"The rate falls to nothing over {steps_of_fall(steps):,} steps: at the end, or as soon as "
        f"validation, looked at every {steps_between_checks(steps)} steps, has no error, or, from half of the steps "
        f"on, is no better {PATIENCE} times in a row. The rule is the same for every scheme.",
        "minutes": settings.minutes,
    }
