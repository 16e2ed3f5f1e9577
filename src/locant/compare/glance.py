"""What a reader sees first: which scheme to take, and one chart of what it gives, costs and reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locant.compare import recommendation
from locant.page import charts, markup
from locant.page.markup import percent, text

NEAR = 0.25  # below the lowest accuracy: as far as a chart reaches down to show chance
Json = Mapping[str, Any]


def lead(tasks: Sequence[Json], measured: Json) -> str:
    """What the page opens with: the recommendation of each task, or, in a box, that there is none and why."""
    parts = [part for task in tasks if (part := _take(task, measured.get(task["kind"]) or {}, len(tasks) > 1))]
    return f'<section class="take" aria-label="Recommendation">{"".join(parts)}</section>' if parts else ""


def _take(task: Json, costs: Json, several: bool) -> str:
    name = f"<h2>{text(task['kind']).capitalize()}</h2>" if several else ""
    if not any(map(recommendation.shown_above, task["schemes"])):
        first = (task.get("finding") or [task.get("why_none") or ""])[0]
        return f'<div class="warn">{name}<p>{text(first)}</p></div>'
    sentences = [text(sentence) for sentence in recommendation.told(task, costs)]
    if not sentences:
        return ""
    if task.get("recommendation"):
        label = next(text(s["label"]) for s in task["schemes"] if s["name"] == task["recommendation"]["scheme"])
        price = recommendation.price(task, costs) or ""
        sentences[0] = (
            sentences[0]
            .replace(label, f"<b>{label}</b>", 1)
            .replace(text(price), f'<span class="measured">{text(price)}</span>', 1 if price else 0)
        )
    return f"<div>{name}{''.join(f'<p>{sentence}</p>' for sentence in sentences)}</div>"


def decision(task: Json, measured: Json, styles: Mapping[str, str]) -> str:
    """Accuracy against what it costs and how far it reaches, and what this run could have shown at all."""
    chart = decision_chart(task, measured, styles)
    power = (task.get("power") or {}).get("sentence")
    said = f'<p class="note">{text(power)}</p>' if power else ""
    return f"<h3>Accuracy against cost and reach</h3>{chart}{said}" if chart or said else ""


def decision_chart(task: Json, measured: Json, styles: Mapping[str, str]) -> str:
    """A dot a scheme, twice: against the time of a training step (FLOPs where none was measured) and reach."""
    timed = all((measured.get(s["name"]) or {}).get("step_ms") for s in task["schemes"])
    panels = []
    for title, across, unit in (
        ("against the time of a training step" if timed else "against FLOPs of a forward pass",
         lambda s: _price(s, measured, timed), markup.time if timed else markup.flops),
        ("against accuracy on what it was not trained for", lambda s: _known(s.get("reach")), _tick_percent),
    ):  # fmt: skip
        shown = [
            place for scheme in task["schemes"]
            if (place := _place(task, scheme, across(scheme), styles)) is not None
        ]  # fmt: skip
        panels += [charts.places(title, shown, unit, _near(task, shown))] if shown else []
    if not panels:
        return ""
    words = (
        "Up: accuracy on the test set, percent. To the left is cheaper, to the right reaches further. "
        "Ringed: recommended. Hollow: ruled out. Lines: "
    )
    words += "95 % intervals; of times, the lowest to the highest." if task.get("comparisons") else "lowest to highest."
    if timed and not all(measured[s["name"]]["step_ms"].get("quiet", True) for s in task["schemes"]):
        words += " The machine was not quiet while these times were taken."
    return charts.figure(charts.side_by_side(panels), words)


def _price(scheme: Json, measured: Json, timed: bool) -> charts.Known | None:
    if not timed:
        work = (scheme.get("flops") or {}).get("forward")
        return None if work is None else (work, None, None)
    took = measured[scheme["name"]]["step_ms"]
    return took["median"], took.get("low"), took.get("high")


def _known(known: Json | None) -> charts.Known | None:
    return None if not known or known.get("mean") is None else (known["mean"], known.get("low"), known.get("high"))


def _place(task: Json, scheme: Json, across: charts.Known | None, styles: Mapping[str, str]) -> charts.Place | None:
    up, chosen = _known(scheme.get("accuracy")), task.get("recommendation") or {}
    if up is None or across is None:
        return None
    out = any(row["scheme"] == scheme["name"] for row in chosen.get("ruled_out") or [])
    taken = chosen.get("scheme") == scheme["name"]
    return charts.Place(styles[scheme["name"]], scheme["label"], across, up, taken, out)


def _tick_percent(value: markup.Number) -> str:
    return percent(value).removesuffix(".0")


def chance(task: Json) -> list[tuple[str, float]]:
    """What needs no look at an example, as words and share: an even guess, and the commonest class if that is more."""
    known = task.get("chance") or {}
    even = known.get("uniform") or (1 / len(task["classes"]) if task.get("classes") else None)
    if even is None:
        return []
    common = known.get("majority") or 0.0
    return [("chance", even)] + ([("the commonest class", common)] if common > even else [])


def _near(task: Json, shown: Sequence[charts.Place]) -> list[markup.Number]:
    """The levels of chance that lie near enough to be drawn without squeezing the rest."""
    low = min(place.up[0] for place in shown)
    return [level for _, level in chance(task) if low - level < NEAR]
