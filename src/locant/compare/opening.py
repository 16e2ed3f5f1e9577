"""The tasks of a run: the built-in ones, or the user's data."""

from __future__ import annotations

from dataclasses import replace

from locant.compare.budget import with_steps
from locant.compare.settings import Settings
from locant.tasks import splits
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Refusal, Task


def settle(settings: Settings, tasks: dict[str, Task]) -> Settings:
    """The settings with what follows from the data: the steps of a trial, and how training examples are varied."""
    recipes = dict(settings.recipes)
    for kind, task in tasks.items():
        recipe = recipes[kind]
        examples = len(splits.share(task.train, recipe.share, settings.seeds[0]))
        ways = tuple(way for way in task.augments if way in KINDS[kind].augments)
        augment = ways if recipe.augment is None else recipe.augment
        recipes[kind] = replace(with_steps(recipe, examples, settings.quick), augment=augment)
    return replace(settings, recipes=recipes)


def open_tasks(settings: Settings) -> dict[str, Task]:
    """Every task of the settings, by kind. Raises Refusal for data that can't be used."""
    if settings.data is not None:
        from locant.tasks.sources import open_task

        asked = settings.task[0] if settings.task else None
        recipe = next(iter(settings.recipes.values()))
        frames = next((r.frames for name, r in settings.recipes.items() if KINDS[name].timed), recipe.frames)
        task = open_task(settings.data, asked, size=recipe.size, frames=frames, strict=settings.strict, seed=0)
        return {task.kind: _add_shifts(task, settings.recipes[task.kind])}
    recipes = {kind: settings.recipes[kind] for kind in settings.task}
    return {kind: _add_shifts(_built_in(kind, recipe), recipe) for kind, recipe in recipes.items()}


def _add_shifts(task: Task, recipe: Recipe) -> Task:
    """The task with a note on its share, and with the data that it was not trained for, made of its test examples."""
    patch = KINDS[task.kind].patch(task.test.shape, recipe.patch)
    notes = task.notes
    if recipe.share < 1:
        count = len(splits.share(task.train, recipe.share, 0))
        notes += (
            f"each seed trains on a draw of its own of {count} of the {len(task.train)} training examples, each class "
            "alike and the same for every scheme; validation and test stay whole",
        )
    return replace(task, shifts=KINDS[task.kind].shifts(task.test, patch), notes=notes)


def _built_in(name: str, recipe: Recipe) -> Task:
    kind = KINDS[name]
    if kind.built_in is None:
        raise Refusal(f"{name} need data of your own; none were named. Name DATA, or leave {name} out of --task.")
    return kind.built_in(recipe)
