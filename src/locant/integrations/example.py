"""A model on its user's own example, before and after: outputs, gradients, errors against float64, times in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from locant.dispatch import map_tree, tree_leaves
from locant.integrations.predicted import record_rows
from locant.integrations.replacing import deep_copy, plain_copy
from locant.integrations.report import Checked
from locant.integrations.trying import allowed_error, difference, gpus
from locant.measuring.clock import synchronize

ROUNDS = 5  # of timing, before and after in turn


class Example:
    """The model before, and `compare` for after. All in evaluation mode, from one seed.

    Attributes:
        rows: of what each module was called with, by its path.
    """

    def __init__(self, model: nn.Module, example: Any, training: bool, only_sizes: bool = False) -> None:
        self.model, self.training = model, training
        named = isinstance(example, dict)
        self.named = dict(example) if named else {}
        self.arguments = () if named else tuple(example) if isinstance(example, tuple | list) else (example,)
        # called in its place: what a call leaves in a model (timm's TinyViT keeps a table with its graph, which no
        # deepcopy takes) stays out of it
        copied = deep_copy(model)
        try:
            with record_rows(copied) as self.rows:
                self.before = self._result(copied)
        except Exception as error:
            raise ValueError(
                f"accelerate needs an `example` that {type(model).__name__} takes, a tensor, a tuple of arguments or a "
                f"dictionary of named ones; the model raised {type(error).__name__} on it, which stands above. Call "
                "model(example) first."
            ) from error
        self.exact = [] if only_sizes else self._exact_result(copied)

    def _exact_result(self, copied: nn.Module) -> list[Tensor]:
        """The result in float64, which errors are told from."""
        name = type(copied).__name__
        if any(x.is_meta for x in self.before):
            raise ValueError(
                f"accelerate needs an `example` on which {name} gives numbers; on the meta device there are none. "
                "Leave example out, or give the model its weights first."
            )
        try:
            return self._result(copied.to(torch.float64), double=True)
        except Exception as error:
            raise ValueError(
                f"accelerate needs an `example` that {name} takes in float64 too, to tell errors from rounding; in "
                f"float64 it raised {type(error).__name__}, which stands above. Leave example out, and compare outputs "
                "before and after by yourself."
            ) from error

    def compare(self) -> Checked:
        """Differences and times. Raises ValueError where the outputs differ by more than rounding."""
        after = self._result(self.model)
        apart, size = difference(self.before, after)
        error, own_error = (difference(self.exact, result)[0] for result in (after, self.before))
        low = next((x.dtype for x in tree_leaves(self.before) if isinstance(x, Tensor) and x.is_floating_point()), None)
        if not error <= allowed_error(own_error, size, low or torch.float32):
            raise ValueError(
                "accelerate needs outputs that differ by rounding alone; on the example the largest error against "
                f"float64 is {error:.1e}, where the model's own is {own_error:.1e}. Everything is undone: leave the "
                "part that differs out with only=, and report its class and version."
            )
        seconds, own_seconds = self._times()
        return Checked(apart, size, error, own_error, seconds, own_seconds)

    def _result(self, model: nn.Module, double: bool = False) -> list[Tensor]:
        """The output's tensors and, with `training`, the gradients of all parameters for random ones of the output."""

        def as_double(x: Any) -> Any:
            return x.double() if double and isinstance(x, Tensor) and x.is_floating_point() else x

        with _evaluating(model), torch.set_grad_enabled(self.training):
            output = model(*map_tree(as_double, self.arguments), **map_tree(as_double, self.named))
            tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            if not self.training:
                return tensors
            torch.manual_seed(1)
            ends = [x for x in tensors if x.requires_grad]
            seeds = [torch.randn(x.shape, dtype=torch.float64).to(x) for x in ends]
            learned = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(ends, learned, seeds, allow_unused=True)
            return [*tensors, *(g for g in gradients if g is not None)]

    def _times(self) -> tuple[float, float]:
        """Medians of a call, replaced and as it was, in turn."""
        plain = plain_copy(self.model)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(ROUNDS):
            for model, seen in zip((self.model, plain), times, strict=True):
                start = time.perf_counter()
                for device in {str(x.device) for x in self._result(model)}:
                    synchronize(device)
                seen.append(time.perf_counter() - start)
        return statistics.median(times[0]), statistics.median(times[1])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and one seed; modes and the generator are as they were afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(devices=gpus(model)):
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
