"""The tasks of a run: the built-in ones, or the user's data."""

from __future__ import annotations

from dataclasses import replace

from locant.compare import shifts
from locant.compare.model import patch_of
from locant.compare.settings import Recipe, Settings
from locant.compare.task import Task


def open_tasks(settings: Settings) -> dict[str, Task]:
    """Every task of the settings, by kind. Raises Refusal for data that can't be used."""
    if settings.data is not None:
        from locant.compare.sources import open_task

        asked = settings.task[0] if settings.task else None
        recipe = next(iter(settings.recipes.values()))
        frames = settings.recipes.get("clips", recipe).frames  # no other kind has frames
        task = open_task(settings.data, asked, size=recipe.size, frames=frames, strict=settings.strict, seed=0)
        return {task.kind: _shifted(task, settings.recipes[task.kind])}
    return {kind: _shifted(_built_in(kind, settings.recipes[kind]), settings.recipes[kind]) for kind in settings.task}


def _shifted(task: Task, recipe: Recipe) -> Task:
    """The task with the data that it was not trained for, made of its test examples."""
    patch = patch_of(task.kind, task.test.shape, recipe)
    return replace(task, shifts=shifts.of(task.kind, task.test, patch))


def _built_in(kind: str, recipe: Recipe) -> Task:
    from locant.compare import digits

    if kind == "images":
        return digits.images(size=recipe.size)
    if kind == "clips":
        return digits.clips(size=recipe.size, frames=recipe.frames)
    return digits.sequences(size=recipe.size)
