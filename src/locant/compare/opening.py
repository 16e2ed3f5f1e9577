"""The tasks of a run: the built-in ones, or the user's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from locant.compare import datasets, sizes, source
from locant.compare.budget import with_steps
from locant.compare.builders import find_builder
from locant.compare.placement import Placement
from locant.compare.published import patch_of
from locant.compare.schemes import find
from locant.compare.settings import Settings
from locant.tasks import augmentation, splits
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Refusal, Shift, Task


def settle(settings: Settings, tasks: dict[str, Task]) -> Settings:
    """The settings with what follows from the data: the steps of a trial, and how training examples are varied."""
    recipes = dict(settings.recipes)
    for kind, task in tasks.items():
        recipe = recipes[kind]
        examples = len(splits.share(task.train, recipe.share, settings.seeds[0]))
        recipe = _fitted(recipe, task, examples, settings)
        ways = augmentation.ways(recipe, KINDS[kind], task)
        recipes[kind] = replace(with_steps(recipe, examples, settings.quick), augment=ways)
    return replace(settings, recipes=recipes)


def _fitted(recipe: Recipe, task: Task, examples: int, settings: Settings) -> Recipe:
    """With what nobody gave: the size of the built-in transformer, or the rates of a builder's model by its size."""
    kind, item, left = KINDS[task.kind], task.train.shape, settings.left.get(task.kind, ())
    _check_weights(recipe)
    if recipe.model in sizes.SIZES:
        return sizes.check(sizes.fit(recipe, kind, item, examples, left, settings.quick))
    if recipe.model in sizes.DESIGNS:
        usual = kind.quick if settings.quick else kind.recipe  # what settings.toml has of them, for nobody gave any
        given = [name for name in ("dim", "depth", "heads") if getattr(recipe, name) != getattr(usual, name)]
        if given:
            raise Refusal(
                f"--model {recipe.model} has sizes of its own; --{given[0]} came as well. Leave it out, or take "
                "--model small."
            )
        recipe = replace(recipe, patch=patch_of(recipe.model)) if "patch" in left else recipe
    if "lr" not in left:
        return recipe
    if recipe.weights is not None:
        return replace(recipe, lr=sizes.TUNING_RATES[-1:] if settings.quick else sizes.TUNING_RATES)
    (plain,) = find(task.kind, ("none",))
    net = find_builder(recipe)(Placement(kind, plain, item, kind.patch(item, recipe.patch), len(task.classes)))
    return replace(recipe, lr=sizes.rates(sum(p.numel() for p in net.parameters()), recipe.lr, settings.quick))


def _check_weights(recipe: Recipe) -> None:
    """A file to start from is for designs that others have published, and freezing for what a file gave."""
    if recipe.weights is not None and recipe.model not in sizes.DESIGNS:
        raise Refusal(
            f"--weights needs a published design that the file is of; --model is {recipe.model}. "
            "Name one, as in --model vit_tiny; a builder of your own loads its weights itself."
        )
    if recipe.freeze and recipe.weights is None:
        raise Refusal(
            "--freeze needs --weights: weights that start at random and stay so learn nothing; none came. "
            "Name a file, or leave --freeze out."
        )


def with_shifts(tasks: dict[str, Task], settings: Settings) -> dict[str, Task]:
    """The tasks with the data that they were not trained for, as patches of these recipes are placed."""
    recipes = settings.recipes
    return {kind: replace(task, shifts=_shifts(task, recipes[kind])) for kind, task in tasks.items()}


def _shifts(task: Task, recipe: Recipe) -> tuple[Shift, ...]:
    kind = KINDS[task.kind]
    return kind.shifts(task.test, kind.patch(task.test.shape, recipe.patch))


def open_tasks(settings: Settings) -> dict[str, Task]:
    """Every task of the settings, by kind. Raises Refusal for data that can't be used."""
    if settings.data is not None:
        from locant.tasks.sources import open_task

        asked = settings.task[0] if settings.task else None
        if source.is_live(settings.data):
            task = datasets.open_task(source.find("data", settings.data), asked, 0, settings.axes)
            return {task.kind: _add_shifts(task, settings.recipes[task.kind])}
        recipe = next(iter(settings.recipes.values()))
        frames = next((r.frames for name, r in settings.recipes.items() if KINDS[name].timed), recipe.frames)
        size = sizes.side(recipe, settings.device) if Path(settings.data).is_dir() else recipe.size
        task = open_task(
            settings.data, asked, size=size, frames=frames, axes=settings.axes, strict=settings.strict, seed=0
        )
        _refuse_frames(settings, (task.kind,))
        return {task.kind: _add_shifts(task, settings.recipes[task.kind])}
    _refuse_frames(settings, settings.task)
    recipes = {kind: settings.recipes[kind] for kind in settings.task}
    return {kind: _add_shifts(_built_in(kind, recipe), recipe) for kind, recipe in recipes.items()}


def _refuse_frames(settings: Settings, kinds: tuple[str, ...]) -> None:
    """Frames are of clips: asked of anything else they would change nothing."""
    frames = [settings.recipes[kind].frames for kind in kinds]
    if any(frames) and not any(KINDS[kind].timed for kind in kinds):
        raise Refusal(
            f"--frames is for clips; the data are {' and '.join(kinds)}, and {next(filter(None, frames))} came. "
            "Leave it out, or say --task clips."
        )


def _add_shifts(task: Task, recipe: Recipe) -> Task:
    """The task with a note on its share, and with the data that it was not trained for, made of its test examples."""
    notes = task.notes
    if recipe.share < 1:
        count = len(splits.share(task.train, recipe.share, 0))
        notes += (
            f"each seed trains on a draw of its own of {count} of the {len(task.train)} training examples, each class "
            "alike and the same for every scheme; validation and test stay whole",
        )
    return replace(task, shifts=_shifts(task, recipe), notes=notes)


def _built_in(name: str, recipe: Recipe) -> Task:
    kind = KINDS[name]
    if kind.built_in is None:
        raise Refusal(f"{name} need data of your own; none were named. Name DATA, or leave {name} out of --task.")
    return kind.built_in(recipe)
