"""The tasks of a run: the built-in ones, or the user's data."""

from __future__ import annotations

from dataclasses import replace

from locant.compare.model import patch_of
from locant.compare.settings import Recipe, Settings
from locant.tasks import shifts, splits
from locant.tasks.task import Task


def open_tasks(settings: Settings) -> dict[str, Task]:
    """Every task of the settings, by kind. Raises Refusal for data that can't be used."""
    if settings.data is not None:
        from locant.tasks.sources import open_task

        asked = settings.task[0] if settings.task else None
        recipe = next(iter(settings.recipes.values()))
        frames = settings.recipes.get("clips", recipe).frames  # no other kind has frames
        task = open_task(settings.data, asked, size=recipe.size, frames=frames, strict=settings.strict, seed=0)
        return {task.kind: _shifted(task, settings.recipes[task.kind])}
    return {kind: _shifted(_built_in(kind, settings.recipes[kind]), settings.recipes[kind]) for kind in settings.task}


def _shifted(task: Task, recipe: Recipe) -> Task:
    """The task with a note on its share, and with the data that it was not trained for, made of its test examples."""
    patch = patch_of(task.kind, task.test.shape, recipe)
    notes = task.notes
    if recipe.share < 1:
        count = len(splits.share(task.train, recipe.share, 0))
        notes += (
            f"each seed trains on a draw of its own of {count} of the {len(task.train)} training examples, each class "
            "alike and the same for every scheme; validation and test stay whole",
        )
    return replace(task, shifts=shifts.of(task.kind, task.test, patch), notes=notes)


def _built_in(kind: str, recipe: Recipe) -> Task:
    from locant.tasks import digits

    if kind == "images":
        return digits.images(size=recipe.size)
    if kind == "clips":
        return digits.clips(size=recipe.size, frames=recipe.frames)
    return digits.sequences(size=recipe.size)
