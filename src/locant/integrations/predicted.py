"""How many times as fast linear layers, perceptrons and residual halves are, by constants (locant.products.speed)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from locant.integrations.replacing import Replacement
from locant.integrations.report import Row
from locant.products import constants, speed
from locant.products.operators import DTYPES, SMALL, able, chosen

ROWS = 1568  # without an example: tokens of eight pictures on a grid of 14 × 14
Found = tuple[Row, nn.Module, Replacement | None]


def predict(found: Sequence[Found], rows: Mapping[str, int] | None, training: bool) -> list[Row]:
    """The rows with their ratios.

    Args:
        rows: of the input of each module in an example, by path; None: there is no example, and `ROWS` stands for all.
        training: forward and backward.
    """
    given = {
        row.path: sizes for row, module, replacement in found if (sizes := _sizes(row, module, replacement)) is not None
    }

    def ratio(row: Row) -> float | None:
        if row.kernel != "packed":
            return row.predicted
        inside = [row.path] if row.kind != "block" else _products_below(row.path, given)
        counts = [ROWS if rows is None else rows.get(path, 0) for path in inside]
        if not inside or 0 in counts:
            return None
        kind = "half" if row.kind == "block" and not training else row.kind
        work = [
            one for path, n in zip(inside, counts, strict=True) for one in _operations(kind, n, given[path], training)
        ]
        return _gain(dtypes[row.path], work)

    dtypes = {row.path: next((p.dtype for p in module.parameters()), torch.float32) for row, module, _ in found}
    return [replace(row, predicted=ratio(row)) for row, _, _ in found]


def said(rows: Sequence[Row], example: bool) -> str:
    """What the ratios of products are for, and where their constants come from, as a sentence; "" without ratios."""
    if not any(row.kernel == "packed" and row.predicted is not None for row in rows):
        return ""
    threads = torch.get_num_threads()
    return (
        f"× of packed products: predicted for {'the example' if example else f'{ROWS:,} rows'} on {threads} "
        f"thread{'s' * (threads > 1)}, by constants {constants.here().said}."
    )


def _sizes(row: Row, module: Any, replacement: Replacement | None) -> tuple[int, ...] | None:
    if row.kernel != "packed":
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    names = getattr(None if replacement is None else replacement.state, "parts", None)
    if names is None:
        return None
    one, _, two = (getattr(module, name) for name in names)
    return one.in_features, one.out_features, two.out_features


def _products_below(path: str, given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A block's perceptrons, and its linear layers beside them; attention between them is a row of its own."""
    below = [other for other in given if other.startswith(f"{path}.")]
    perceptrons = [other for other in below if len(given[other]) == 3]
    return [other for other in below if not any(other.startswith(f"{one}.") for one in perceptrons)]


def _operations(kind: str, rows: int, sizes: tuple[int, ...], training: bool) -> list[tuple[str, int, tuple[int, ...]]]:
    """What is timed (locant.products.speed), of which a call consists."""
    if len(sizes) == 3:
        return [("training" if training else "half" if kind == "half" else "perceptron", rows, sizes)]
    if not training:
        return [("linear", rows, sizes)]
    return [("repacked", rows, sizes), ("repacked", rows, sizes[::-1]), ("weights", rows, sizes)]


def _gain(dtype: torch.dtype, work: list[tuple[str, int, tuple[int, ...]]]) -> float | None:
    name, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    if dtype not in DTYPES:
        return None
    own = ours = 0.0
    for operation, rows, sizes in work:
        if rows * sizes[0] * sizes[1] < SMALL:  # torch's own product runs
            return 1.0
        if not able(dtype):
            return None
        kept = operation in speed.TYPICAL
        library = chosen(operation, dtype) if kept else speed.fastest(operation, name, rows, sizes, able(dtype))
        times = [speed.seconds(operation, one, name, rows, sizes, threads) for one in ("torch", library)]
        if times[0] is None or times[1] is None:
            return None
        own, ours = own + times[0], ours + times[1]
    return own / ours


@contextmanager
def record_rows(model: nn.Module) -> Iterator[dict[str, int]]:
    """Rows of the first tensor that each module is called with, by its path: the most of its calls."""
    rows: dict[str, int] = {}
    paths = {id(module): path for path, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
        if x is not None and x.ndim and x.shape[-1]:
            path = paths[id(module)]
            rows[path] = max(rows.get(path, 0), x.numel() // x.shape[-1])

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
