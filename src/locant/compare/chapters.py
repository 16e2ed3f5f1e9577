"""One chapter of the report per task: the question, the tables, the charts, the comparisons and the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locant.compare import glance, learning
from locant.compare.glance import NEAR, chance
from locant.compare.learning import seeds_of
from locant.compare.recommendation import shown_above
from locant.page import charts, markup, pictures
from locant.page.charts import Line, Mark
from locant.page.markup import NOTHING, join_words, percent, points, probability, sizes, text, user, whole

FEW = 12  # classes named in the sentence; the rest stand in the table of classes
LONG = 32  # letters of a class in that sentence
UNSHOWN = '<small class="instead">not shown to be above chance</small>'
Json = Mapping[str, Any]


def chapter(
    task: Json, number: int, measured: Json, styles: Mapping[str, str], cards: str, batch: int | None = None
) -> str:
    """The whole chapter. `measured` maps a scheme's name to what was measured of it, `batch` examples at a time."""
    parts = (
        _opening(task, number),
        glance.decision(task, measured, styles),
        _accuracy_table(task, styles),
        _notes(task),
        _accuracy_chart(task, styles),
        _comparisons(task, styles),
        _shift_charts(task, styles),
        learning.given(task),
        learning.curves(task, styles),
        _cost_table(task, measured, styles, batch),
        _cost_charts(task, measured, styles),
        _maps(task, number, cards),
    )
    return f'<section class="task" id="task-{number}" aria-labelledby="task-{number}-name">{"".join(parts)}</section>'


def _opening(task: Json, number: int) -> str:
    finding = "".join(f"<p>{text(line)}</p>" for line in task.get("finding") or [])
    count = task.get("sizes") or {}
    parts = join_words([f"{whole(n)} {'training' if part == 'train' else text(part)}" for part, n in count.items()])
    patch = f", patches of {sizes(task['patch'])}" if any(n > 1 for n in task.get("patch") or []) else ""
    grid = f" Each example is {_grid(task)}{patch}."
    classes = task.get("classes") or []
    return (
        f'<h2 id="task-{number}-name">{text(task["kind"]).capitalize()}</h2>'
        f'<p class="question">{text(task.get("question") or "")}</p><div class="task-finding">{finding}</div>'
        f"<p>Data: {user(task.get('source') or 'not named')}. {parts} examples, {whole(len(classes))} "
        f"class{'es' * (len(classes) != 1)}: {_name_few(classes)}.{grid if task.get('grid') else ''}</p>"
        f"{_classes(task)}"
    )


def _grid(what: Json) -> str:
    """A grid in words, of a task or of a shift."""
    tokens = f"{whole(what.get('tokens'))} tokens"
    return tokens if len(what.get("grid") or []) < 2 else f"a grid of {sizes(what['grid'])} = {tokens}"


def _name_few(classes: Sequence[str]) -> str:
    rest = len(classes) - FEW
    names = [user(name if len(name) <= LONG else f"{name[: LONG - 1]}…") for name in classes[:FEW]]
    return ", ".join([*names, f"and {whole(rest)} more"]) if rest > 0 else ", ".join(names)


def _classes(task: Json) -> str:
    counts = task.get("class_counts") or {}
    if not counts:
        return ""
    head = "".join(f'<th scope="col">{text(part)}</th>' for part in counts)
    rows = "".join(
        f'<tr><th scope="row">{user(name)}</th>{"".join(f"<td>{whole(c[i])}</td>" for c in counts.values())}</tr>'
        for i, name in enumerate(task.get("classes") or [])
    )
    table = (
        f'<table class="plain"><thead><tr><th scope="col">Class</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
    return f'<details><summary>Examples of each class</summary><div class="wide">{table}</div></details>'


def _who(scheme: Json, styles: Mapping[str, str], with_sentence: bool = True) -> str:
    sentence = f"<small>{text(scheme['sentence'])}</small>" if with_sentence and scheme.get("sentence") else ""
    mark = f'<i class="mark {styles[scheme["name"]]}"></i>'
    return f'<th scope="row">{mark}<span>{text(scheme["label"])}{sentence}</span></th>'


def _table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A row per scheme. On a phone each row becomes a block of two or three columns, and names its own cells."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in ("Scheme", *head))
    body = ""
    for who, cells in rows:
        named = zip(head, cells, strict=True)
        body += f"<tr>{who}{''.join(_cell(name, cell) for name, cell in named)}</tr>"
    columns = 2 if len(head) in (2, 4) else 3
    return (
        f'<table class="by-scheme columns{columns}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(name: str, cell: str) -> str:
    return f'<td data-label="{name}">{cell}</td>'


def _accuracy_table(task: Json, styles: Mapping[str, str]) -> str:
    shifts = [shift["name"] for shift in task.get("shifts") or []]
    rows = []
    for scheme in task["schemes"]:
        cells = [_accuracy(scheme.get("accuracy")) + ("" if shown_above(scheme) else UNSHOWN)]
        cells += [_shift_cell((scheme.get("shifts") or {}).get(name)) for name in shifts]
        rows.append((_who(scheme, styles), cells))
    for name, level in chance(task):
        who = f'<th scope="row"><span>{name}<small>without a look at the example</small></span></th>'
        rows.append((who, [percent(level), *(NOTHING for _ in shifts)]))
    head = ["Test set", *(text(name) for name in shifts)]
    words = "".join(f"<li><b>{text(s['name'])}</b>: {_shift(s)}</li>" for s in task.get("shifts") or [])
    words = f'<ul class="note">{words}</ul>' if words else ""
    metric = task.get("metric", "accuracy")
    what = "Accuracy" if metric == "accuracy" else f"Mean {metric}"
    caption = f"{what} in percent, ± standard deviation over seeds, and the 95 % interval"
    if seeds_of(task) == 1:
        caption = f"{what} in percent. One seed: no ranking"
    return f"<h3>What each scheme gets right</h3>{_table(caption, head, rows)}{words}"


def _shift(shift: Json) -> str:
    grid = f" ({_grid(shift)})" if shift.get("grid") else ""
    return f"{text(shift.get('sentence') or '').rstrip('.')}{grid}."


def _accuracy(accuracy: Json | None) -> str:
    if not accuracy or accuracy.get("mean") is None:
        return NOTHING
    spread = f" ± {percent(accuracy['spread'])}" if accuracy.get("spread") is not None else ""
    known = accuracy.get("low") is not None
    interval = f"<small>{percent(accuracy['low'])} to {percent(accuracy['high'])}</small>" if known else ""
    return f"<b>{percent(accuracy['mean'])}</b>{spread}{interval}"


def _shift_cell(shift: Json | None) -> str:
    if shift is None:
        return NOTHING
    if shift.get("why_not"):
        return f'<small class="instead">{text(shift["why_not"])}</small>'
    how = f"<small>{text(shift['how'])}</small>" if shift.get("how") else ""
    return f"{_accuracy(shift)}{how}"


def _notes(task: Json) -> str:
    """What must be known to read the numbers: what a scheme is blind to, and what differs beside position."""
    notes = []
    mirror = [s["label"] for s in task["schemes"] if s.get("tells_direction") is False and s["name"] != "none"]
    timeless = [s["label"] for s in task["schemes"] if s.get("tells_time") is False]
    if mirror:
        notes.append(
            f"Mirror-blind: {join_words([text(name) for name in mirror])}. An offset and its opposite look alike, so "
            "left cannot be told from right, nor before from after, however long it trains."
        )
    if timeless:
        notes.append(f"Blind to the order of frames: {join_words([text(name) for name in timeless])}.")
    if task.get("weights"):
        notes.append(" ".join(text(sentence) for sentence in task["weights"]["sentences"]))
    notes += [
        f"Not position alone in {text(s['label'])}: {text(s['beside'])}." for s in task["schemes"] if s.get("beside")
    ]
    return "".join(f'<p class="heed">{note}</p>' for note in notes)


def _accuracy_chart(task: Json, styles: Mapping[str, str]) -> str:
    rows = [_mark(scheme, styles) for scheme in task["schemes"]]
    scale, seeds = _scale(rows), seeds_of(task)
    levels = chance(task)
    near = [(name, level) for name, level in levels if scale.low - level < NEAR]
    scale = _scale(rows, [level for _, level in near])
    rows += [Mark("quiet", name, level) for name, level in levels if (name, level) not in near]
    words = "One seed: no ranking. The dot is that seed."
    if seeds > 1:
        words = (
            f"Large dot: the mean of {seeds} seeds. Small dots: each seed. Band: one standard deviation either side. "
            "Line: the 95 % interval, from a bootstrap over seeds and test examples. "
            "The order is that of the run; it is no ranking."
        )
    if near:
        words += f" Dashed: {join_words([f'{name} ({percent(level)})' for name, level in near])}."
    if len(near) < len(levels):
        words += " Arrow: to the left of this axis."
    chart = charts.marks(rows, scale, [level for _, level in near])
    return f"<h3>Accuracy on the test set, percent</h3>{charts.figure(chart, words)}"


def _scale(rows: Sequence[Mark], more: Sequence[float] = ()) -> charts.Scale:
    values = [v for r in rows for v in (r.mean, r.low, r.high, r.before, *r.seeds) if v is not None] + list(more)
    return charts.scale_of(values or [0.0, 1.0])


def _mark(scheme: Json, styles: Mapping[str, str]) -> Mark:
    known = scheme.get("accuracy") or {}
    seeds = tuple(t["test"] for t in scheme.get("trials") or [] if t.get("test") is not None)
    seeds = seeds if len(seeds) > 1 else ()
    return Mark(
        styles[scheme["name"]], scheme["label"], known.get("mean"), known.get("spread"), known.get("low"),
        known.get("high"), seeds,
    )  # fmt: skip


def _shift_charts(task: Json, styles: Mapping[str, str]) -> str:
    panels = []
    for shift in task.get("shifts") or []:
        rows = [_shift_mark(scheme, shift["name"], styles) for scheme in task["schemes"]]
        panels.append(f"<div><h4>{text(shift['name'])}</h4>{charts.marks(rows, _scale(rows))}</div>")
    if not panels:
        return ""
    words = (
        "Ring: accuracy on the test set. Dot: the same trained models on what they were not trained for, with its "
        "interval where one is known; the number is that accuracy, and how far it lies from the ring in points."
    )
    title = "<h3>What they were not trained for, accuracy in percent</h3>"
    return title + charts.figure(charts.side_by_side(panels), words)


def _shift_mark(scheme: Json, name: str, styles: Mapping[str, str]) -> Mark:
    known = (scheme.get("shifts") or {}).get(name) or {}
    before = (scheme.get("accuracy") or {}).get("mean")
    style, label = styles[scheme["name"]], scheme["label"]
    if known.get("mean") is None:
        return Mark(style, label, None, instead=known.get("why_not") or "not measured")
    return Mark(style, label, known["mean"], None, known.get("low"), known.get("high"), (), before)


def _comparisons(task: Json, styles: Mapping[str, str]) -> str:
    title = "<h3>Which differences are shown</h3>"
    if seeds_of(task) == 1:
        return f"{title}<p>One seed: no ranking. Repeat with three seeds or more to compare.</p>"
    pairs = [_from_better_side(c) for c in task.get("comparisons") or []]
    if not pairs:
        return f"{title}<p>There is nothing to compare.</p>"
    labels = {scheme["name"]: scheme["label"] for scheme in task["schemes"]}
    shown = [c for c in pairs if c["verdict"] != "no difference shown"]
    silent = [c for c in pairs if c["verdict"] == "no difference shown"]
    words = (
        "Dot: the difference in points, paired over the same seeds and test examples. Line: its interval, corrected "
        f"for {len(pairs)} comparisons (Holm). Where the line touches zero, no difference is shown."
    )
    parts = [f"<p>Of {len(pairs)} pairs, {len(shown) or 'none'} show{'s' * (len(shown) < 2)} a difference.</p>"]
    if shown:
        parts.append("<h4>A difference is shown</h4>" + charts.differences([_pair(c, labels, styles) for c in shown]))
    if silent:
        parts.append("<h4>No difference shown</h4>" + charts.differences([_pair(c, labels, styles) for c in silent]))
    return f"{title}{charts.figure(''.join(parts), words)}{_pair_table(pairs, labels)}"


def _from_better_side(c: Json) -> Json:
    """The comparison said from its better side: a lower b is b higher than a."""
    if c["difference"] >= 0:
        return c
    verdict = {"higher": "lower", "lower": "higher"}.get(c["verdict"], c["verdict"])
    turned = {"a": c["b"], "b": c["a"], "difference": -c["difference"], "verdict": verdict}
    return {**c, **turned, "low": -c["high"], "high": -c["low"]}


def _pair(c: Json, labels: Mapping[str, str], styles: Mapping[str, str]) -> Mark:
    names = f"{labels.get(c['a'], c['a'])} − {labels.get(c['b'], c['b'])}"
    style = "quiet" if c["verdict"] == "no difference shown" else styles[c["a"]]
    return Mark(style, names, c["difference"], None, c["low"], c["high"])


def _pair_table(pairs: Sequence[Json], labels: Mapping[str, str]) -> str:
    rows = "".join(f"<li>{_comparison_sentence(c, labels)}</li>" for c in pairs)
    return f'<details><summary>Every comparison in words</summary><ul class="note">{rows}</ul></details>'


def _comparison_sentence(c: Json, labels: Mapping[str, str]) -> str:
    a, b = (text(labels.get(c[side], c[side])) for side in "ab")
    numbers = f"{points(c['difference'])} points ({points(c['low'])} to {points(c['high'])})"
    p = f"; p {probability(c['p_holm'])} after Holm" if c.get("p_holm") is not None else ""
    if c["verdict"] == "no difference shown":
        return f"<b>{a}</b> and <b>{b}</b>: no difference shown, {numbers}{p}."
    return f"<b>{a}</b> is {c['verdict']} than <b>{b}</b>: {numbers}{p}."


def _cost_table(task: Json, measured: Json, styles: Mapping[str, str], batch: int | None) -> str:
    rows = []
    for scheme in task["schemes"]:
        spent, cost = scheme.get("parameters") or {}, measured.get(scheme["name"]) or {}
        total = f"<small>of {whole(spent['total'])}</small>" if spent.get("total") is not None else ""
        cells = [f"{whole(spent.get('position'))}{total}", markup.flops((scheme.get("flops") or {}).get("forward"))]
        cells += [_cost(cost, "forward"), _cost(cost, "step")]
        rows.append((_who(scheme, styles, with_sentence=False), cells))
    head = ["Parameters on position", "FLOPs, forward", "Forward", "Training step"]
    size = f" for a batch of {batch}" if batch else ""
    caption = f"Time (median and range) and peak memory{size}, as measured on one machine"
    return f"<h3>What each scheme costs</h3>{_table(caption, head, rows)}{_unquiet(measured)}"


def _unquiet(measured: Json) -> str:
    """What the stars mean, if there are any."""
    costs = [cost for cost in measured.values() if cost]
    times = [cost.get(f"{what}_ms") or {} for cost in costs for what in ("forward", "step")]
    growing = [row for cost in costs for row in cost.get("growth") or ()]
    if all(time.get("quiet", True) for time in (*times, *growing)):
        return ""
    starred = "* The" if not all(time.get("quiet", True) for time in times) else "At larger sizes the"
    return f"<p>{starred} machine was not quiet while these times were taken: read them with care.</p>"


def _cost(cost: Json, what: str) -> str:
    taken, held = cost.get(f"{what}_ms"), cost.get(f"{what}_bytes")
    if not taken and held is None:
        return '<span class="instead">not measured</span>'
    taken = taken or {}
    known = taken.get("low") is not None and taken.get("high") is not None
    span = f"<small>{markup.time(taken['low'])} to {markup.time(taken['high'])}</small>" if known else ""
    star = "" if taken.get("quiet", True) else " *"
    single = ((cost.get("one_thread") or {}).get(f"{what}_ms") or {}).get("median")
    alone = f"<small>{markup.time(single)} on one thread</small>" if single is not None else ""
    return f"{markup.time(taken.get('median'))}{star}{span}{alone}<small>{markup.memory(held)}</small>"


def _cost_charts(task: Json, measured: Json, styles: Mapping[str, str]) -> str:
    wanted = (
        ("forward_ms", "Time of a forward pass", markup.time),
        ("step_ms", "Time of a training step", markup.time),
        ("forward_bytes", "Peak memory of a forward pass", markup.memory),
        ("step_bytes", "Peak memory of a training step", markup.memory),
    )
    panels = []
    for field, title, unit in wanted:
        lines = [line for scheme in task["schemes"] if (line := _line(scheme, measured, field, styles)).points]
        panels += [charts.growth(title, lines, unit)] if lines else []
    if not panels:
        return ""
    stops = _stops(task, measured)
    words = "Per example. Both axes are logarithmic: equal steps are equal factors."
    words += f" ✕: stopped there.{stops}" if stops else ""
    return "<h4>Cost against the number of tokens</h4>" + charts.figure(charts.side_by_side(panels), words)


def _line(scheme: Json, measured: Json, field: str, styles: Mapping[str, str]) -> Line:
    steps = (measured.get(scheme["name"]) or {}).get("growth") or []
    places = tuple((float(s["tokens"]), float(s[field])) for s in steps if (s.get(field) or 0) > 0)
    return Line(styles[scheme["name"]], scheme["label"], places, any(s.get("stopped") for s in steps))


def _stops(task: Json, measured: Json) -> str:
    schemes_of: dict[str, list[str]] = {}
    for scheme in task["schemes"]:
        for step in (measured.get(scheme["name"]) or {}).get("growth") or []:
            if step.get("stopped"):
                why = f"at {whole(step['tokens'])} tokens {text(step['stopped']).rstrip('.')}"
                schemes_of.setdefault(why, []).append(text(scheme["label"]))
    return "".join(f" {join_words(names)} {why}." for why, names in schemes_of.items())


def _maps(task: Json, number: int, cards: str) -> str:
    if not cards:
        return ""
    drawn = [s for s in task["schemes"] if pictures.drawable(s.get("picture") or {})]
    bare = "".join(
        f'<p class="note">{text(s["label"])}: {text((s.get("picture") or {}).get("what") or "nothing to draw.")}</p>'
        for s in task["schemes"]
        if s not in drawn
    )
    query = drawn[0]["picture"]["query"]
    frames = " Frames stand side by side, first to last." if len(query) == 3 else ""
    return (
        "<h3>What each scheme learned</h3>"
        "<p>Each cell is a key; its colour is what position alone does for one query, the ringed cell, and beside it "
        "what of that changed since the start, which the trial's seed gives again. Colours are centred at zero, with a "
        f"scale of their own for both.{frames}</p>"
        f'{pictures.picker(number, query)}<div class="cards">{cards}</div>{bare}'
    )
