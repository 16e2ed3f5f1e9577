"""An explanation as one block of bytes: JSON, and the maps that it points into. A page carries it deflated.

A map is signed bytes on the scale of the largest value of its head, so that a value is off by 1/254 of that at most,
and by the fourth figure that scales are written with. 0 stays exactly 0, and what is no number is `LOST`.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from locant.explain.data import Data
from locant.page.pictures import quantise

FEW = ("radius", "mean", "mass", "frequency", "prefix", "prefix_norms", "changed")  # written out: they are few
EACH = ("both", "content", "position", "old", "new")  # a scale per head


def pack(data: Sequence[Data]) -> str:
    """Base64 of a raw deflate stream: the length of the JSON in four bytes, lowest first; the JSON; the bytes."""
    parts = bytearray()
    meta = json.dumps([_plain(one, parts) for one in data], separators=(",", ":"), ensure_ascii=False).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = len(meta).to_bytes(4, "little") + meta + bytes(parts)
    return base64.b64encode(packer.compress(whole) + packer.flush()).decode()


def _plain(value: Any, parts: bytearray, name: str = "") -> Any:
    """A value of `data.py` as JSON: NaN is null, and pixels are left to the page."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), parts, f.name) for f in fields(value) if f.name != "pixels"}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), parts) if name in FEW else _stored(value, parts, name in EACH)
    if isinstance(value, tuple | list):
        return [_plain(one, parts, name) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # halves of surrogate pairs have no place in a page
    return value.item() if isinstance(value, np.generic) else value


def _stored(values: np.ndarray, parts: bytearray, each: bool) -> dict[str, Any]:
    """Puts levels behind the others. `at` counts from the first byte behind the JSON."""
    at = len(parts)
    heads = [quantise(np.asarray(one, dtype=np.float64)) for one in (values if each else values[None])]
    parts += b"".join(levels.tobytes() for levels, _ in heads)
    return {"at": at, "shape": list(values.shape[each:]), "scale": [float(f"{scale:.4g}") for _, scale in heads]}
