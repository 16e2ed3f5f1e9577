"""Which kernel is the fastest on my problem, here? The plan's choice against every other kernel that can run.

`run(...)` is what `locant bench` does.
"""

from __future__ import annotations

from locant.bench.result import Result
from locant.bench.run import run

__all__ = ["Result", "run"]
