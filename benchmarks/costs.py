"""The constants by which the planner tells which kernel is the faster one: measured here, written to src/locant/costs.py.

    python benchmarks/costs.py [--threads 1] [--seconds 0.3] [--write] [--check]

A kernel's seconds are a sum of non-negative parts: a call, its work items, its FLOPs, its scores, the bytes that it
moves, and those that it holds. Each part's constant is fitted to timed problems, by the least relative error; the
problems that --check predicts are others.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat

import numpy as np
import torch

from locant import ALiBi, Causal, Grid, Padding, RelativeTable, Rotary, Windows, planner
from locant.bench import machine
from locant.bench.clock import Gate, interleaved
from locant.bench.costing import MODES, mode_of, parts
from locant.bench.workload import Workload

TARGET = Path(__file__).parents[1] / "src" / "locant" / "costs.py"
DTYPES = ("float32", "float64", "bfloat16", "float16")
KERNELS = ("native", "sdpa")
HEAD = '''"""How long a part of a kernel's work takes, in seconds: for comparing kernels, not for telling the time.

Written by benchmarks/costs.py; not edited by hand. A row is (call, work item, FLOP, score, byte moved, byte held), by
kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (the same, with the gradient of a bias).
"""

from __future__ import annotations

'''
'''


'''
