"""Who builds the models of a run."""

from __future__ import annotations

from locant.compare.candidate import Builder
from locant.compare.model import Classifier
from locant.tasks.kind import Recipe


def find_builder(recipe: Recipe) -> Builder:
    """The builder that a recipe names."""
    return lambda position: Classifier(position, recipe.dim, recipe.depth, recipe.heads)
