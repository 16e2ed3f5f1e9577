"""What a layout says, on the device, once: caches, filled at the first call, so that a CUDA graph can hold a call."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from locant import places
from locant.frames import Frames, frames
from locant.gpu.chips import processors
from locant.layout import read

Numbers = tuple[int, ...]


def _tensor(x: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)


@lru_cache(maxsize=64)
def on_device(numbers: Numbers, device: str) -> tuple[Tensor | None, Tensor, Tensor, tuple[Tensor, ...]]:
    """What an order forbids, key places, query places; lists of queries and keys, exchanged, and where cells start."""
    own, (there, back) = places.places(numbers), places.both_ways(numbers)
    lists = (there.query, there.key, back.query, back.key, there.query_start, there.key_start)
    forbidden = None if own.forbidden is None else _tensor(own.forbidden, device)
    return forbidden, _tensor(own.key, device), _tensor(own.query, device), tuple(_tensor(x, device) for x in lists)


@lru_cache(maxsize=64)
def living(numbers: Numbers, device: str) -> Tensor | None:
    found = places.lives(places.both_ways(numbers)[0])
    return None if found is None else _tensor(found, device)


@lru_cache(maxsize=256)
def tiles(numbers: Numbers, device: str, rows: int, columns: int, key_major: bool) -> Tensor:
    own = places.both_ways(numbers)[key_major]
    return _tensor(places.tiles(own, rows, columns, key_major=key_major), device)


@lru_cache(maxsize=64)
def words(numbers: Numbers, device: str, block: int, key_major: bool) -> tuple[Tensor, Tensor]:
    own = places.places(numbers)
    place, other = places.words(own, own.query if key_major else own.key, block, key_major=key_major)
    return _tensor(place, device), _tensor(other, device)


@lru_cache(maxsize=64)
def groups(numbers: Numbers, device: str, rows: int, columns: int, batch: int, heads: int) -> tuple[Tensor, int]:
    """Groups of pairs of tiles, and into how many parts their samples are cut: four programs for each processor."""
    found = places.alike(places.both_ways(numbers)[0], rows, columns, whole=not read(numbers)[2])
    each = max(1, -(-int(found[:, 5].sum()) * batch * heads // (4 * processors(device))))
    return _tensor(places.cut_groups(found, max(1, each // batch)), device), max(1, min(batch, -(-batch // each)))


@lru_cache(maxsize=64)
def frames_on_device(numbers: Numbers, device: str) -> tuple[Tensor, ...]:
    """place, region, tokens, start, and the pairs of slots of each offset."""
    made = frames(numbers)
    assert isinstance(made, Frames)
    return tuple(_tensor(x, device) for x in (made.place, made.region, made.tokens, made.start, made.pairs))


@lru_cache(maxsize=64)
def windows_work(numbers: Numbers, device: str, batch: int, heads: int) -> Tensor:
    """[programs, 3]: a kind, and which of how many parts of its windows: eight programs for each processor in all."""
    made = frames(numbers)
    assert made is not None
    items = np.diff(made.start).astype(np.int64) * batch
    share = np.maximum(1, items * -(-8 * processors(device) // heads) // items.sum())
    parts = [(kind, part, n) for kind, n in enumerate(np.minimum(items, share).tolist()) for part in range(n)]
    return _tensor(np.array(parts, dtype=np.int32), device)
