"""What an explanation holds: plain values and arrays, from which pages, figures and programs draw.

Coordinates are (time, row, column), those axes that there are, and whole numbers. Offsets are query - key. Arrays of
maps are float32; NaN marks a number that is not known or not finite (a NaN weight), and is not to be drawn as a colour;
-inf never occurs: what a query may not see has the weight 0 and lies outside the box of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

Coordinates = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One sentence, made by a stated rule.

    Attributes:
        kind: the rule's name: positional, before, after, up, down, left, right, mirror, duplicate, dead, saturated,
            resizing, mask, unknown.
        text: the sentence, with its number.
        layer, head: whose it is; None where it is about more than one, or about the whole.
        value: the number that the rule compared with `limit`.
    """

    kind: str
    text: str
    layer: int | None = None
    head: int | None = None
    value: float = float("nan")
    limit: float = float("nan")


@dataclass(frozen=True)
class Profile:
    """What distance does, for a content that is flat: every key alike but for its offset.

    Attributes:
        radius: [n] rising Euclidean distances in cells.
        mean: [n] the mean of the map over the offsets at that distance (rounded to whole cells).
        mass: [n] the share of a flat softmax's weight within that distance, 0 to 1.
    """

    radius: Float32[np.ndarray, " n"]
    mean: Float32[np.ndarray, " n"]
    mass: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class Head:
    """One head of one layer.

    Attributes:
        index: among the layer's heads.
        map: [2 r + 1 per axis] over offsets query - key, the zero offset at the centre: logits for a bias and for a
            gate's own map, the mean cosine for a rotation; None where a scheme acts through the queries alone.
        lines: for schemes that act through queries: per axis [offsets] the length of the vector there.
        prefix: for a scheme with prefix rows: what is added to (query prefix, key prefix, both), in logits.
        profile: None without a map.
        locality: the mean distance, in cells, that a flat attention looks (ConViT's non-locality); small is local.
        anisotropy: 0 where it looks alike along all axes, to 1 where along one alone; NaN on one axis.
        direction: per axis the mean offset key - query, in cells, of a flat attention: below 0 it looks to the
            past, up, or left.
        gate: the share of attention that position alone gives, 0 to 1; None without a gate.
        content_share, position_share: of the variance of the logits over the keys, means over the queries of the input,
            NaN without an input. They add up to 1: cov(part, whole) / var(whole). For a gate: 1 - gate, gate.
        correlation: between the two parts, over keys.
        variation: total variation, 0 to 1, between the map by both and the map by content alone.
        nonlocality: the mean distance in cells that the input's attention looks; NaN without an input.
    """

    index: int
    map: Float32[np.ndarray, " *offsets"] | None = None
    lines: tuple[Float32[np.ndarray, " offsets"], ...] = ()
    prefix: tuple[float, float, float] | None = None
    profile: Profile | None = None
    locality: float = float("nan")
    anisotropy: float = float("nan")
    direction: tuple[float, ...] = ()
    gate: float | None = None
    content_share: float = float("nan")
    position_share: float = float("nan")
    correlation: float = float("nan")
    variation: float = float("nan")
    nonlocality: float = float("nan")


@dataclass(frozen=True)
class Sight:
    """What a query may see, said of coordinates, so that a page can draw it for any cell.

    Attributes:
        shape, key_shape: sizes of the grids of queries and keys.
        origin, stride: of the queries' grid against the keys', per axis: a query's cell c lies at origin + stride * c.
        prefix: tokens without a place, which see all and are seen by all; under an order they see only the prefix.
        windows: (size, shift) each; query and key must share floor((c - shift) / size) on every axis.
        causal: the axis of each order (0 time), None: row-major order of all cells; key <= query.
        hidden: [*key_shape] True where padding hides a key; None without padding.
        words: the same in one sentence.
    """

    shape: Coordinates
    key_shape: Coordinates
    origin: Coordinates
    stride: Coordinates
    prefix: int = 0
    windows: tuple[tuple[Coordinates, Coordinates], ...] = ()
    causal: tuple[int | None, ...] = ()
    hidden: Bool[np.ndarray, " *key_shape"] | None = None
    words: str = "Every query sees every key."


@dataclass(frozen=True)
class Waves:
    """Sinusoids and rotary, frequency by frequency.

    Attributes:
        name: where they act.
        axis: [n] the axis that each wave runs along.
        frequency: [n] radians per cell, falling within an axis.
    """

    name: str
    axis: tuple[int, ...]
    frequency: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class Row:
    """What one query attends to in one layer: softmax over the keys that it may see.

    Attributes:
        query: its coordinates on the layer's grid; () for a token of the prefix.
        origin: coordinates of the first key of the box that holds all that it sees.
        both: [heads, *box] the weights as the model uses them; keys that are not seen have 0.
        content, position: [heads, *box] with that part of the logits alone; None where they can't be told apart.
        prefix: [3, heads, prefix] the weights on the prefix by both, content, position; their sum with the box is 1.
            Where the parts can't be told apart, rows 1 and 2 are NaN.
    """

    query: Coordinates
    origin: Coordinates
    both: Float32[np.ndarray, "heads *box"]
    content: Float32[np.ndarray, "heads *box"] | None
    position: Float32[np.ndarray, "heads *box"] | None
    prefix: Float32[np.ndarray, "3 heads prefix"]


@dataclass(frozen=True)
class Layer:
    """One attention of the model, in the order that it runs.

    Attributes:
        index: among the layers.
        name: of the module, as in `named_modules`.
        scheme: its position in words: "relative table of 7 x 7", "no position in attention".
        entrance: embed, rotate, bias, content, gate; several joined by " + "; "" for none.
        shape: of the grid of queries.
        sight: None where the layer was not reached.
        heads: empty for a layer that is not known.
        waves: of a rotary.
        rows: one per query of the input, in their order; empty without an input.
        reason: why something is not drawn, one sentence; "" where all is.
    """

    index: int
    name: str
    scheme: str
    entrance: str
    shape: Coordinates
    sight: Sight | None
    heads: tuple[Head, ...]
    waves: Waves | None = None
    rows: tuple[Row, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Embedded:
    """An embedding of positions: how alike one place is to all others.

    Attributes:
        name: of the tensor or module.
        shape: of its grid.
        places: the chosen places, coordinates.
        similarity: [places, *shape] cosines, -1 to 1.
        prefix_norms: [prefix] lengths of the rows of tokens without a place.
        norms: [*shape] lengths of the vectors.
        waves: of a sinusoid.
    """

    name: str
    shape: Coordinates
    places: tuple[Coordinates, ...]
    similarity: Float32[np.ndarray, "places *shape"]
    prefix_norms: Float32[np.ndarray, " prefix"]
    norms: Float32[np.ndarray, " *shape"]
    waves: Waves | None = None


@dataclass(frozen=True)
class Resizing:
    """A table or embedding before and after it was resized.

    Attributes:
        name: of the tensor; `method` as in locant.resizing.
        old, new: [heads, *offsets] of a table; [1, *shape], norms, of an embedding.
        changed: [heads] total variation, 0 to 1, between the flat attention of the old table, stretched over the new
            reach, and that of the new one.
    """

    name: str
    method: str
    old: Float32[np.ndarray, "heads *old"]
    new: Float32[np.ndarray, "heads *new"]
    changed: Float32[np.ndarray, " heads"]


@dataclass(frozen=True)
class Query:
    """A query of the input.

    Attributes:
        where: its place as fractions 0 to 1 of each axis of the input (centres of cells); () for the prefix token.
        label: "row 5, column 9" on the first layer's grid, or the word.
    """

    where: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class Rollout:
    """How far the input's tokens reach the output: the product over layers of (mean over heads + identity) / 2.

    Attributes:
        maps: [queries, *shape] of the first layer's grid; a row and its prefix add up to 1, less what ends in a class
            token that joins late, or in cells that windows were filled up with.
        prefix: [queries, prefix].
        reason: why there is none; then both are empty.
    """

    maps: Float32[np.ndarray, "queries *shape"]
    prefix: Float32[np.ndarray, "queries prefix"]
    reason: str = ""


@dataclass(frozen=True)
class Input:
    """What the model was shown.

    Attributes:
        kind: picture, film, array, text.
        pixels: [rows, columns, 3] or [frames, rows, columns, 3]; for an array of other meaning, scaled to 0..255; None
            for a text.
        words: the tokens of a text, the prefix left out.
        note: what was done to it: "resized from 640 x 480 by the model's rule".
        queries: those whose weights are in the layers' rows.
    """

    kind: str
    pixels: UInt8[np.ndarray, "*frames rows columns 3"] | None
    words: tuple[str, ...]
    note: str
    queries: tuple[Query, ...]
    rollout: Rollout


@dataclass(frozen=True)
class Data:
    """All of an explanation.

    Attributes:
        title: the model's name, or the scheme.
        notes: the first one says where the weights are from.
        findings: in the order that they are worth reading.
    """

    title: str
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    layers: tuple[Layer, ...]
    embeddings: tuple[Embedded, ...] = ()
    resizings: tuple[Resizing, ...] = ()
    input: Input | None = None


@dataclass(frozen=True)
class _Random:
    """Numbers for the example, always the same."""

    source: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def normal(self, *shape: int) -> Float[np.ndarray, "..."]:
        return self.source.normal(size=shape).astype(np.float32)

    def shares(self, *shape: int, axes: int) -> Float[np.ndarray, "..."]:
        """Positive numbers that add up to 1 over the last `axes`."""
        raw = np.exp(self.normal(*shape))
        return raw / raw.sum(axis=tuple(range(-axes, 0)), keepdims=True)


def example(with_input: bool = True) -> Data:
    """A small filled `Data` of invented numbers: two layers of two heads on 4 x 4 cells in windows of 2 x 2, the second
    shifted; then one on a sequence with order and a gate. For trying pages."""
    random = _Random()
    queries = (Query((0.125, 0.125), "row 0, column 0"), Query((0.625, 0.375), "row 2, column 1"))
    sights = [
        Sight((4, 4), (4, 4), (0, 0), (1, 1), 1, (((2, 2), shift),), (), None, f"Windows of 2 x 2, shifted by {shift}.")
        for shift in ((0, 0), (1, 1))
    ]
    sights.append(Sight((6,), (6,), (0,), (1,), 0, (), (None,), None, "Keys up to the query."))
    layers = []
    for index, sight in enumerate(sights):
        rows = []
        for place in ((0, 0), (2, 1)) if with_input and len(sight.shape) == 2 else ():
            both, content, position = (random.shares(2, 2, 2, axes=2) * 0.9 for _ in range(3))
            origin = tuple(c - (c - s) % 2 for c, s in zip(place, sight.windows[0][1], strict=True))
            rows.append(Row(place, origin, both, content, position, np.full((3, 2, 1), 0.1, np.float32)))
        heads = tuple(_example_head(random, index, head, sight, bool(rows)) for head in range(2))
        scheme, entrance = ("gated position", "gate") if len(sight.shape) == 1 else ("relative table of 2 x 2", "bias")
        layers.append(
            Layer(index, f"layers.{index}.attn", scheme, entrance, sight.shape, sight, heads, None, tuple(rows))
        )
    waves = Waves("rotary", (0, 0, 1, 1), np.array([1.0, 0.1, 1.0, 0.1], np.float32))
    layers.append(Layer(3, "layers.3.attn", "rotary", "rotate", (4, 4), None, (), waves, (), "This layer was not run."))
    embedded = Embedded(
        "pos_embed", (4, 4), ((0, 0), (1, 2)), np.clip(random.normal(2, 4, 4), -1, 1), random.normal(1) ** 2,
        random.normal(4, 4) ** 2,
    )  # fmt: skip
    resizing = Resizing(
        "layers.0.attn.table",
        "bicubic",
        random.normal(2, 3, 3),
        random.normal(2, 5, 5),
        np.array([0.1, 0.4], np.float32),
    )
    pixels = random.source.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    rollout = Rollout(random.shares(2, 4, 4, axes=2) * 0.9, np.full((2, 1), 0.1, np.float32))
    shown = Input("picture", pixels, (), "resized from 40 x 40 by the model's rule", queries, rollout)
    findings = (
        Finding("positional", "Head 1 of layer 0 is 93 % position.", 0, 1, 0.93, 0.5),
        Finding("left", "Head 0 of layer 1 looks left: by 0.8 cells on average.", 1, 0, 0.8, 0.5),
    )
    return Data(
        "example", ("The weights are invented.",), findings, tuple(layers), (embedded,), (resizing,),
        shown if with_input else None,
    )  # fmt: skip


def _example_head(random: _Random, layer: int, index: int, sight: Sight, shown: bool) -> Head:
    reach = tuple(2 * (w - 1) + 1 for w in (sight.windows[0][0] if sight.windows else sight.shape))
    profile = Profile(np.arange(3, dtype=np.float32), random.normal(3), np.array([0.4, 0.8, 1.0], np.float32))
    share = float(random.source.uniform()) if shown else float("nan")
    return Head(
        index, random.normal(*reach), (), (0.1, -0.2, 0.3) if sight.prefix else None, profile, 0.7 + index, 0.2,
        tuple(0.1 * layer for _ in sight.shape), None if sight.windows else 0.7, 1 - share, share, 0.1 * shown, 0.3,
        0.9,
    )  # fmt: skip
