"""Position-aware attention for sequences, images and video.

Say where tokens are (`Grid`), how position should act (`RelativeTable`, `Rotary`, ...) and who may attend
(`Windows`, `Causal`, ...): `attention` runs the cheapest exact way to compute it, and `plan` says which and why.

Names are resolved when they are first used (PEP 562): importing this package loads nothing, torch included.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "Causal",
    "Decomposed",
    "GatedPosition",
    "Grid",
    "Learned",
    "LearnedAxial",
    "LogCPB",
    "MaskedSine",
    "Padding",
    "Pairs",
    "RelativeTable",
    "Rotary",
    "Segments",
    "Shaw",
    "Sinusoid",
    "T5Buckets",
    "TransformerXL",
    "Windows",
    "accelerate",
    "attention",
    "attention_packed",
    "plan",
    "weights",
]

# used as locant.nn; left out of `from locant import *`, which would take torch's nn and others' names away
_PACKAGES = ("bench", "checkpoints", "compare", "explain", "flops", "models", "nn")

_MODULES = {
    "ALiBi": "locant.positions.slopes",
    "Causal": "locant.masks",
    "Decomposed": "locant.positions.decomposed",
    "GatedPosition": "locant.positions.gate",
    "Grid": "locant.grid",
    "Learned": "locant.positions.learned",
    "LearnedAxial": "locant.positions.learned_axes",
    "LogCPB": "locant.positions.field",
    "MaskedSine": "locant.positions.masked_sine",
    "Padding": "locant.masks",
    "Pairs": "locant.masks",
    "RelativeTable": "locant.positions.table",
    "Rotary": "locant.positions.rotary",
    "Segments": "locant.masks",
    "Shaw": "locant.positions.shaw",
    "Sinusoid": "locant.positions.sinusoid",
    "T5Buckets": "locant.positions.buckets",
    "TransformerXL": "locant.positions.transformer_xl",
    "Windows": "locant.masks",
    "accelerate": "locant.integrations.model",
    "attention": "locant.attend",
    "attention_packed": "locant.attend",
    "plan": "locant.attend",
    "weights": "locant.attend",
}

if TYPE_CHECKING:
    from locant import bench as bench
    from locant import checkpoints as checkpoints
    from locant import compare as compare
    from locant import explain as explain
    from locant import flops as flops
    from locant import models as models
    from locant import nn as nn
    from locant.attend import attention, attention_packed, plan, weights
    from locant.grid import Grid
    from locant.integrations.model import accelerate
    from locant.masks import Causal, Padding, Pairs, Segments, Windows
    from locant.positions.buckets import T5Buckets
    from locant.positions.decomposed import Decomposed
    from locant.positions.field import LogCPB
    from locant.positions.gate import GatedPosition
    from locant.positions.learned import Learned
    from locant.positions.learned_axes import LearnedAxial
    from locant.positions.masked_sine import MaskedSine
    from locant.positions.rotary import Rotary
    from locant.positions.shaw import Shaw
    from locant.positions.sinusoid import Sinusoid
    from locant.positions.slopes import ALiBi
    from locant.positions.table import RelativeTable
    from locant.positions.transformer_xl import TransformerXL


def __getattr__(name: str) -> Any:
    if name not in _MODULES and name not in _PACKAGES:
        raise AttributeError(f"module 'locant' has no attribute {name!r}")
    module = import_module(_MODULES.get(name, f"locant.{name}"))
    found = getattr(module, name) if name in _MODULES else module
    globals()[name] = found  # the next look-up finds it at once
    return found


def __dir__() -> list[str]:
    return sorted((*__all__, *_PACKAGES))
