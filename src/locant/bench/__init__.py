"""Which kernel is the fastest on my problem, here? The plan's choice against every other kernel that can run.

`run(...)` is what `locant bench` does, `write_costs(...)` what `locant bench --write-costs` does.
"""

from __future__ import annotations

from locant.bench.products import write_costs
from locant.bench.result import Result
from locant.bench.run import run

__all__ = ["Result", "run", "write_costs"]
