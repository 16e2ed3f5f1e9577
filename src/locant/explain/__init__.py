"""What position does in a model, computed exactly: from weights alone, and with an input.

`run(...)` is what `locant explain` does.
"""

from __future__ import annotations

from locant.explain.explanation import Explanation
from locant.explain.opening import names_a_model
from locant.explain.run import run

__all__ = ["Explanation", "names_a_model", "run"]
