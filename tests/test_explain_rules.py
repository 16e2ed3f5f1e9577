"""The rules behind findings: heads just inside and just outside of each limit, and mistakes that must be noticed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mutation import function, replaced

from locant.explain import rules
from locant.explain.data import Finding, Head, Layer, Resizing, Row, Sight

NAN = float("nan")
Case = tuple[list[Layer], tuple[Resizing, ...]]


def layer(*heads: Head, **given: object) -> Layer:
    numbered = tuple(dataclasses.replace(head, index=i) for i, head in enumerate(heads))
    whole = Layer(0, "attn", "table", "bias", (3,), None, numbered)
    return dataclasses.replace(whole, **given)


def mapped(values: np.ndarray) -> Head:
    return Head(0, values.astype(np.float32))


def weighing(*weights: float) -> Head:
    """A head whose map gives a flat attention these weights."""
    return mapped(np.log(np.array(weights)))


def hiding(count: int) -> Sight:
    return Sight((20,), (20,), (0,), (1,), hidden=np.arange(20) < count)


def seeing(*first: float) -> Row:
    """A query of two heads that puts so much on its key."""
    both = np.array(first, np.float32)[:, None]
    return Row((0,), (0,), both, None, None, np.zeros((3, 2, 0), np.float32))


def resizing(changed: float) -> tuple[Resizing, ...]:
    small = np.zeros((1, 3), np.float32)
    return (Resizing("table", "linear", small, small, np.array([changed], np.float32)),)


def alike(correlation: float) -> Layer:
    """Two maps that correlate so much."""
    a, b = np.array([1.0, -1.0, 0.0, 0.5, -0.5]), np.array([0.5, 0.5, -2.0, 0.5, 0.5])
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    assert abs(a @ b) < 1e-12
    return layer(mapped(a), mapped(correlation * a + (1 - correlation**2) ** 0.5 * b))


def mirrored(uneven: float) -> Layer:
    return layer(mapped(np.array([0.0, 1.0, uneven])))


THIRD, CAUSAL = 1 / 3, Sight((3,), (3,), (0,), (1,), causal=(None,))
# what is given, and the kinds of findings that there are
CASES: dict[str, tuple[Case, set[str]]] = {
    "position of 55 %": (([layer(Head(0, position_share=0.55))], ()), {"positional"}),
    "position of 45 %": (([layer(Head(0, position_share=0.45))], ()), set()),
    "gate of 55 %": (([layer(Head(0, gate=0.55, position_share=NAN))], ()), {"positional"}),
    "a dead map": (([layer(dataclasses.replace(weighing(0.333, 0.334, 0.333), position_share=1.0))], ()),
                   {"dead", "mirror"}),
    "back": (([layer(Head(0, direction=(-0.55,)))], ()), {"before"}),
    "ahead": (([layer(Head(0, direction=(0.55,)))], ()), {"after"}),
    "back by 0.45 cells": (([layer(Head(0, direction=(-0.45,)))], ()), set()),
    "back, as an order has it": (([layer(Head(0, direction=(-0.55,)), sight=CAUSAL)], ()), set()),
    "down": (([layer(Head(0, direction=(0.55, 0.0)))], ()), {"down"}),
    "left, and up": (([layer(Head(0, direction=(-0.55, -0.55)))], ()), {"left", "up"}),
    "right, later": (([layer(Head(0, direction=(0.55, 0.0, 0.55)))], ()), {"after", "right"}),
    "a mirror image": (([mirrored(0.9e-5)], ()), {"mirror"}),
    "no mirror image": (([mirrored(1.1e-5)], ()), set()),
    "alike": (([alike(0.995)], ()), {"duplicate"}),
    "less alike": (([alike(0.985)], ()), set()),
    "opposite": (([alike(-1.0)], ()), set()),
    "dead": (([layer(weighing(THIRD + 0.009, THIRD, THIRD - 0.009))], ()), {"dead"}),
    "not dead": (([layer(weighing(THIRD + 0.011, THIRD, THIRD - 0.011))], ()), set()),
    "saturated": (([layer(weighing(0.992, 0.005, 0.003))], ()), {"saturated"}),
    "not saturated": (([layer(weighing(0.988, 0.007, 0.005))], ()), set()),
    "an open gate": (([layer(Head(0, gate=0.992))], ()), {"saturated", "positional"}),
    "a shut gate": (([layer(Head(0, gate=0.008))], ()), {"saturated"}),
    "a gate": (([layer(Head(0, gate=0.012))], ()), set()),
    "resized": (([], resizing(0.11)), {"resizing"}),
    "resized well": (([], resizing(0.09)), set()),
    "padding hides 55 %": (([layer(sight=hiding(11))], ()), {"mask"}),
    "padding hides 45 %": (([layer(sight=hiding(9))], ()), set()),
    "nothing is seen": (([layer(rows=(seeing(0.0, 0.0),))], ()), {"mask"}),
    "one head sees nothing": (([layer(rows=(seeing(0.0, 1.0),))], ()), set()),
    "not finite": (([layer(mapped(np.array([0.0, NAN, 1.0])))], ()), {"unknown"}),
}  # fmt: skip


def wrong() -> list[str]:
    """The cases in which other findings come out."""
    found = {name: rules.find(*case) for name, (case, _) in CASES.items()}
    return [name for name, (_, kinds) in CASES.items() if {one.kind for one in found[name]} != kinds]


def test_every_limit_holds_from_both_sides() -> None:
    assert wrong() == []


@pytest.mark.parametrize("factor", [0.85, 1.15])
@pytest.mark.parametrize(
    "limit", ["POSITIONAL", "HALF_CELL", "ALIKE", "DEAD", "SATURATED", "RESIZED", "HIDDEN", "MIRROR"]
)
def test_another_limit_is_noticed(monkeypatch: pytest.MonkeyPatch, limit: str, factor: float) -> None:
    monkeypatch.setattr(rules, limit, getattr(rules, limit) * factor)
    assert wrong()


MISTAKES = {
    "left is right": ("rules._direction", "mean > 0", "mean < 0"),
    "an order is forgotten": ("rules._direction", "not ordered", "True"),
    "small values are large": ("rules._several", "value >= limit", "value <= limit"),
    "a gate has no share": ("rules._positional", "h.position_share if h.gate is None else h.gate", "h.position_share"),
    "what is dead is positional": ("rules._positional", "h.index not in dead", "True"),
    "uneven is even": ("rules._mirror", "uneven <= MIRROR", "uneven > MIRROR"),
    "dead is alive": ("rules._dead_heads", "moved < DEAD", "moved > DEAD"),
    "a flat map is saturated": ("rules._saturated", "most >= SATURATED", "most <= SATURATED"),
    "shut gates are forgotten": ("rules._saturated", "max(head.gate, 1 - head.gate) >= SATURATED",
                                 "head.gate >= SATURATED"),
    "opposite is alike": ("rules._duplicate", "float(centred[i] @ centred[j]) >= ALIKE",
                          "abs(float(centred[i] @ centred[j])) >= ALIKE"),
    "little was moved": ("rules._resized", "most >= RESIZED", "most < RESIZED"),
    "padding leaves much": ("rules._mask", "hidden.mean() > HIDDEN", "hidden.mean() < HIDDEN"),
    "one head is all": ("rules._mask", "(total == 0).all()", "(total == 0).any()"),
    "NaN is a number": ("rules._unknown", "np.isnan(h.map).any()", "False"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed(name: str) -> None:
    where, old, new = MISTAKES[name]
    with replaced(function(where), old, new):
        assert wrong()
    assert not wrong()


def test_a_finding_says_its_number_and_its_limit() -> None:
    (found,) = rules.find([layer(Head(0, position_share=0.55))])
    assert found == Finding("positional", "Head 0 of layer 0 is 55 % position.", 0, 0, 0.55, 0.5)


def test_no_sentence_says_more_than_all() -> None:
    """Content that works against position: cov(position, logits) is more than var(logits)."""
    (found,) = rules.find([layer(Head(0, position_share=1.012), Head(0, position_share=0.67))])
    assert (found.text, found.value) == ("Heads 0 and 1 of layer 0 are 67 to 100 % position.", 1.012)


def test_the_same_heads_of_several_layers_are_one_sentence() -> None:
    shares = ((0.73, 0.2, 0.7), (0.71, 0.1, 0.76), (0.2, 0.9, 0.1), (0.8, 0.1, 0.7))
    layers = [dataclasses.replace(layer(*(Head(0, gate=x) for x in row)), index=i) for i, row in enumerate(shares)]
    first, second = rules.find(layers)
    assert (first.text, first.layer, first.head) == ("Head 1 of layer 2 is 90 % position.", 2, 1)
    assert second.text == "Heads 0 and 2 of layers 0 to 1 and 3 are 70 to 80 % position."
    assert (second.layer, second.head, second.value) == (3, 0, 0.8)


def test_heads_alike_in_several_layers_are_so_within_each() -> None:
    """Layer 0 and layer 1 have maps of their own: heads 0 and 1 are alike in each, and no further."""
    draw = np.random.default_rng(0)
    maps = [draw.normal(size=9) for _ in range(2)]
    layers = [dataclasses.replace(layer(mapped(one), mapped(2 * one)), index=i) for i, one in enumerate(maps)]
    said = [one.text for one in rules.find(layers) if one.kind == "duplicate"]
    assert said == [
        "Heads 0 and 1 of layers 0 to 1 have the same map of positions within each layer (correlation 1.000)."
    ]
    said = [one.text for one in rules.find(layers[:1]) if one.kind == "duplicate"]
    assert said == ["Heads 0 and 1 of layer 0 have the same map of positions (correlation 1.000)."]


@pytest.mark.parametrize(("size", "most"), [(1e-4, "even 0.1 %"), (1e-2, "more than 0.4 %")])
def test_layers_where_position_says_nothing_say_how_little(size: float, most: str) -> None:
    """A map of ±size moves size / 2 of a flat attention, to first order: 0.005 % and 0.5 %, less the odd offset."""
    maps = [mapped(size * np.array([1.0, -1.0, 1.0, -1.0, 0.0])) for _ in range(2)]
    (found,) = rules.find([layer(*maps)])[-1:]
    assert found.text == f"Position says nothing in layer 0: no head moves {most} of a flat attention."
