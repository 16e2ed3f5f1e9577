"""Which processor this is: constants that were measured on one are no others' constants."""

from __future__ import annotations

import platform
from pathlib import Path


def _name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


NAME = _name()  # that it gives itself
MAKER = next((maker for maker in ("AMD", "Intel", "ARM", "Apple") if maker.lower() in NAME.lower()), "other")
