"""Runs the compiled core of an installed wheel by its integers, without torch: `python tests/wheel.py`.

`--tag v0.1.0` asks instead whether a tag is that of the version that stands in the package. Exit code 1: it is not.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path


def operands(names: tuple[tuple[str, str], ...], **values: float) -> tuple[float, ...]:
    """In the order that the core reads them; what is not named is 0."""
    return tuple(values.pop(name, 0) for name, _ in names)


def linear() -> float:
    """x Wᵀ + b on arrays of numpy; how far it is from numpy's own in float64."""
    import numpy as np

    core = import_module("locant._native")
    draw = np.random.default_rng(0)
    x, weight, bias = (draw.standard_normal(shape, dtype=np.float32) for shape in ((37, 48), (29, 48), (29,)))
    at = [array.ctypes.data for array in (x, weight, bias)]
    weight_of = {"inputs": 48, "outputs": 29, "input_step": 1, "output_step": 48, "packed_from": at[1]}
    packed = np.zeros(core.packed_numbers(operands(core.WEIGHT, **weight_of)), dtype=np.float32)
    core.pack(operands(core.WEIGHT, packed=packed.ctypes.data, **weight_of), 1)
    y = np.zeros((37, 29), dtype=np.float32)
    core.linear(
        operands(
            core.LINEAR, rows=37, inputs=48, outputs=29, x=at[0], weight=packed.ctypes.data, bias=at[2], y=y.ctypes.data
        ),
        2,
    )
    truth = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    return float(abs(y - truth).max())


def version() -> str:
    text = (Path(__file__).parents[1] / "src" / "locant" / "__init__.py").read_text()
    return re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)[0]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--tag"]:
        wanted = f"v{version()}"
        if arguments[1].startswith("v") and arguments[1] != wanted:
            print(f"the tag has to be {wanted}, of the version in the package; it is {arguments[1]}", file=sys.stderr)
            return 1
        return 0
    sets, apart = import_module("locant._native").isas(), linear()
    print(f"Python {sys.version.split()[0]}, {' '.join(sets)}: a linear layer is {apart:.1e} from float64")
    return int(apart > 1e-5 or "torch" in sys.modules)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
