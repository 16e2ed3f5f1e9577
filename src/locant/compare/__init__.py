"""Which position scheme should my model use? The same small transformer, trained with each, on real data.

`run(...)` is what `locant compare` does; `load(path)` rebuilds the best model that it saved, `lay_beside(a, b)` says
how two runs differ.
"""

from __future__ import annotations

from locant.compare.beside import Beside, lay_beside
from locant.compare.placement import Placement
from locant.compare.result import Result
from locant.compare.run import run
from locant.compare.summary import load
from locant.tasks.task import Refusal

__all__ = ["Beside", "Placement", "Refusal", "Result", "lay_beside", "load", "run"]
