"""Who builds the models of a run: the built-in transformer, or a builder of the user's own, which is watched.

A builder that does not place what it was handed would give every scheme the same model, to the last bit. So before
training every model answers once with what it was handed and once without, its weights set to noise: the answers must
differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from locant.checks import description
from locant.compare import source
from locant.compare.candidate import Builder, Candidate
from locant.compare.model import Classifier
from locant.compare.placement import Placement
from locant.compare.published import PublishedBuilder
from locant.compare.sizes import DESIGNS, SIZES
from locant.tasks.kind import Recipe
from locant.tasks.task import Refusal

NOISE = 0.05  # weights in the check: none is 0, none large
SEEN = 2  # examples in the check
HOW = {
    "tokens": "the tokens: x = position.tokens(dim)(x), the module kept on the model",
    "layer": "each layer: for at in position.layer(l, dim, heads)(): y = attention(q, k, v, **at), the module kept "
    "on the model",
}


def find_builder(recipe: Recipe) -> Builder:
    """The builder that a recipe names. Raises Refusal."""
    if recipe.model in SIZES:
        return lambda position: Classifier(position, recipe.dim, recipe.depth, recipe.heads)
    return PublishedBuilder(recipe) if recipe.model in DESIGNS else OwnBuilder(recipe.model)


class OwnBuilder:
    """A builder of the user's: what goes wrong in it is said with file and line.

    Args:
        reference: what names it (`source.reference`).
    """

    def __init__(self, reference: str) -> None:
        self.name = source.name_of(reference)
        self.function = source.find("model", reference)
        self.file = source.file_of(self.function)

    def __call__(self, position: Placement) -> nn.Module:
        scheme = position.design
        if scheme.adapted or scheme.local or scheme.ordered:
            raise Refusal(
                f"a builder of your own needs schemes that differ in position alone; {scheme.name!r} is a whole "
                f"design: {scheme.beside.rstrip('.')}. Leave {scheme.name!r} out of --positions."
            )
        random.seed(position.seed)
        np.random.seed(position.seed % 2**32)  # a builder may draw from any of the three
        net = source.call(self.function, f"--model needs a builder that works with {scheme.name!r}", position)
        if not isinstance(net, nn.Module):
            raise Refusal(
                f"--model needs a builder that returns a torch.nn.Module; {self.name} returned {description(net)}. "
                "End it with return model."
            )
        return net

    @contextmanager
    def blame(self, what: str) -> Iterator[None]:
        """An error inside becomes a sentence: it needs a builder that `what`."""
        with source.blame(self.file, f"--model needs a builder that {what}"):
            yield


def check(candidate: Candidate, device: str = "cpu") -> None:
    """Whether a model answers as it must, and whether what its builder was handed matters. Its weights stay.

    Raises:
        Refusal: a sentence with what to do.
    """
    position, handed = candidate.placement, candidate.placement.handed
    name = getattr(candidate.build, "name", "the builder")
    # 1 one answer: its shape, and who was asked
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(SEEN, *position.item, device=device)
        answer = _answer(candidate, x)
    if not isinstance(answer, Tensor) or answer.shape != (SEEN, position.classes) or not answer.is_floating_point():
        raise Refusal(
            f"--model needs logits [batch, {position.classes}] for examples {[SEEN, *position.item]}; {name} answers "
            f"with {description(answer)}. End forward with a linear layer to position.classes."
        )
    # 2 every part of the scheme is asked for, kept, used
    own = {id(module) for module in candidate.net.modules()}
    parts: dict[str, tuple[bool, list[Any]]] = {
        "tokens": (position.design.adds_to_tokens, handed.tokens),
        "layer": (position.design.acts_in_layers, [layer for layer in handed.layers if layer.acts]),
    }
    for part, (says, modules) in parts.items():
        if not says:
            continue
        if not modules:
            _refuse(name, position, f"it never asks for position.{part}", part)
        if any(id(module) not in own for module in modules):
            _refuse(name, position, f"what position.{part} gave is not kept on the model, so it would not learn", part)
        if any(not module.calls for module in modules):
            _refuse(name, position, f"forward never calls what position.{part} gave", part)
        if not _matters(candidate, x, modules):
            _refuse(name, position, f"its answers do not depend on what position.{part} gave", part)


def _refuse(name: str, position: Placement, why: str, part: str) -> None:
    raise Refusal(
        f"--model needs a builder that places the position it is handed; {name} does not: {why}. With "
        f"{position.scheme!r} it would train the model of every other scheme, to the last bit. Place it on {HOW[part]}."
    )


def _answer(candidate: Candidate, x: Tensor) -> Any:
    """In evaluation, without gradients."""
    training = candidate.net.training
    candidate.net.eval()
    try:
        with torch.no_grad():
            return candidate(x)
    finally:
        candidate.net.train(training)


def _matters(candidate: Candidate, x: Tensor, modules: list[Any]) -> bool:
    """Whether these modules change an answer, with noise on all weights: heads that start at 0 hide it."""
    kept = {name: t.clone() for name, t in candidate.net.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in candidate.net.parameters():
                weight.add_(torch.randn_like(weight), alpha=NOISE)
        answers = []
        try:
            for silent in (False, True):
                torch.manual_seed(2)  # for a model that draws
                for module in modules:
                    module.silent = silent
                answers.append(_answer(candidate, x))
        finally:
            for module in modules:
                module.silent = False
    candidate.net.load_state_dict(kept)
    return not torch.equal(*answers)
