"""How an answer is scored: right or wrong, or by a metric of the user's own.

    def top5(outputs, labels):                                  # [batch, classes], [batch] → [batch]
        return (outputs.topk(5).indices == labels[:, None]).any(1)

A metric gives every example a score from 0 to 1, higher is better; what is reported is their mean, in percent. It is
asked per example because the statistics resample examples: they need to know which ones a model is good at. What is no
mean over examples (F1, an area under a curve) has no such scores. The rate, the start and the weights that are kept are
chosen by the same metric on validation data. What is trained for stays the cross-entropy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from locant.checks import description
from locant.compare import source
from locant.tasks.task import Examples, Refusal

Scores = Float[Tensor, " batch"]
Metric = Callable[[Float[Tensor, "batch classes"], Int[Tensor, " batch"]], Tensor]


def find_metric(own: str | None) -> Metric:
    """The metric that a recipe names; None is accuracy. Raises Refusal."""
    if own is None:
        return _right
    return functools.partial(_checked, own)


def _right(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.argmax(1) == labels


def _checked(own: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """The user's scores, if they are that."""
    metric = source.find("metric", own)
    scores = source.call(metric, "--metric needs a function that works on (outputs, labels)", outputs, labels)
    fits = isinstance(scores, Tensor) and scores.shape == labels.shape
    if not fits or not bool(((scores >= 0) & (scores <= 1)).all()):
        came = description(scores) if not fits else f"scores from {float(scores.min()):g} to {float(scores.max()):g}"
        raise Refusal(
            f"--metric needs one score from 0 to 1 per example, {[*labels.shape]}, higher is better; "
            f"{source.name_of(own)} gave {came}. Leave out the mean, and scale errors as in 1 / (1 + error)."
        )
    return scores.double()


def score_of_constant(own: str | None, examples: Examples, classes: int, answer: int | None) -> float:
    """What a model scores that always answers with one class, or with all of them alike (None).

    The second is what a guess scores: for accuracy one in `classes`.
    """
    if own is None and answer is None:
        return 1 / classes
    labels = torch.from_numpy(np.asarray(examples.labels).astype(np.int64))
    outputs = torch.zeros(len(labels), classes)
    if answer is not None:
        outputs[:, answer] = 1.0
    return float(find_metric(own)(outputs, labels).double().mean())
