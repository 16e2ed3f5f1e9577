"""Words and numbers as they stand on a page: what users named is escaped and isolated, numbers have one style."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

NOTHING = "–"
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # direction marks: file names are disguised by them
Number = int | float


def text(value: object) -> str:
    """Escaped for HTML, quotes included.

    Line breaks show as ⏎. What no page may hold (controls, halves of surrogate pairs, as odd file names have them)
    and what would turn the direction of writing by force shows as the replacement sign.
    """
    return html.escape("".join(_visible(letter) for letter in str(value)), quote=True)


def user(value: object) -> str:
    """A name that a user gave: escaped, and isolated, so that its writing direction stays its own."""
    return f"<bdi>{text(value)}</bdi>"


def code(value: object) -> str:
    """Program text: escaped, its line breaks kept."""
    return "\n".join(text(line) for line in str(value).splitlines())


def percent(value: Number | None) -> str:
    """0.9722 -> 97.2"""
    return NOTHING if value is None else f"{100 * value:.1f}"


def share(value: Number) -> str:
    """0.9722 -> 97.2 %, which no line breaks apart"""
    return f"{percent(value)}\u00a0%"


def points(value: Number) -> str:
    """A difference of accuracies, in percentage points with its sign: 0.183 -> +18.3"""
    shown = f"{100 * value:+.1f}".replace("-", "−")
    return shown[1:] if shown[1:] == "0.0" else shown


def whole(value: Number | None) -> str:
    """1257 -> 1,257"""
    return NOTHING if value is None else f"{value:,.0f}"


def amount(value: Number | None, units: tuple[str, ...], step: float = 1000.0) -> str:
    """Three figures and the unit that fits: amount(3.1e6, ("", "k", "M")) -> 3.1 M"""
    if value is None:
        return NOTHING
    left = 0
    while abs(value) >= step * 0.9995 and left < len(units) - 1:
        value, left = value / step, left + 1
    shown = f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{shown} {units[left]}".strip()


def flops(value: Number | None) -> str:
    return amount(value, ("", "k", "M", "G", "T"))


def memory(value: Number | None) -> str:
    return amount(value, ("B", "kB", "MB", "GB", "TB"))


def time(milliseconds: Number | None) -> str:
    return amount(None if milliseconds is None else 1000 * milliseconds, ("µs", "ms", "s"))


def probability(value: Number) -> str:
    """0.00012 -> 0.0001; what is less is said so."""
    if value < 0.0001:
        return "&lt; 0.0001"
    return f"= {value:.4f}" if value < 0.01 else f"= {value:.2f}"


def sizes(values: Iterable[int]) -> str:
    """[4, 4] -> 4 × 4, which no line breaks apart"""
    return "\u00a0×\u00a0".join(str(v) for v in values)


def join_words(items: list[str], joint: str = "and") -> str:
    """a, b and c"""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {joint} {items[-1]}" if items else ""


def _visible(letter: str) -> str:
    if letter in "\r\n\u2028\u2029":
        return "" if letter == "\r" else "⏎"
    if letter == "\t":
        return " "
    return "\ufffd" if letter in TURNING or unicodedata.category(letter) in ("Cc", "Cs", "Cn") else letter
