"""The page that `locant compare` leaves behind: one self-contained HTML file, made from results.json alone.

What a clock or an allocator said is read from the `measured` block and shown as such; nothing else on the page depends
on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locant.atomic import write_bytes
from locant.compare import chapters, glance, recommendation
from locant.page import pictures, shell
from locant.page.markup import NOTHING, code, join_words, text, user, whole

FORMAT = 1
MOST_FILES = 200  # skipped files on the page; results.json has all
CLOSING = (("limits", "What this cannot tell"), ("data", "Data"), ("settings", "Settings"), ("model", "Best model"))
Json = Mapping[str, Any]


def write(results: Json, path: Path) -> None:
    """Write the report of `results` (the contents of results.json) to `path`, whole or not at all.

    Raises:
        ValueError: if the results are of another format.
        OSError: if the folder cannot be written.
    """
    write_bytes(Path(path), render(results).encode())


def render(results: Json) -> str:
    """The page as text. The same results give the same bytes."""
    if results.get("format") != FORMAT:
        raise ValueError(
            f"the report needs results of format {FORMAT}; got {results.get('format')!r}. "
            "Make them with this version: run `locant compare` again."
        )
    tasks = results.get("tasks") or []
    styles = shell.styles(scheme["name"] for task in tasks for scheme in task["schemes"])
    measured = (results.get("measured") or {}).get("tasks") or {}
    shown, carried = [], {}
    for number, task in enumerate(tasks):
        cards, maps = _gallery(task, number, styles, room=pictures.MOST_BYTES // len(tasks))
        batch = ((results.get("settings") or {}).get(task["kind"]) or {}).get("batch")
        sentences = [line for line in task.get("finding") or [] if line not in (results.get("finding") or [])]
        task = {**task, "finding": sentences}  # what the page opens with is not said twice
        shown.append(chapters.chapter(task, number, measured.get(task["kind"]) or {}, styles, cards, batch))
        carried.update(maps)
    links = [(f"task-{i}", str(task["kind"]).capitalize()) for i, task in enumerate(tasks)]
    return shell.fill(
        title=f"Locant compare: {join_words([task['kind'] for task in tasks])}",
        kicker="Locant compare",
        heading="Which position scheme should this model use?",
        lead=glance.lead(tasks, measured),
        finding=_finding(results, tasks),
        links=[*links, *CLOSING],
        body=f"{''.join(shown)}\n{_closing(results, tasks)}",
        author="locant compare",
        data=shell.safe_json(pictures.script_data(carried)),
    )


def excerpt(results: Json, link: str) -> str:
    """What a notebook shows: the recommendation, the finding, the chart of each task and a link to the page."""
    tasks = results.get("tasks") or []
    styles = shell.styles(scheme["name"] for task in tasks for scheme in task["schemes"])
    measured = (results.get("measured") or {}).get("tasks") or {}
    found = "".join(f"<p>{text(line)}</p>" for line in _finding(results, tasks))
    charts = "".join(
        f"<h4>{text(task['kind']).capitalize()}</h4>"
        + glance.decision_chart(task, measured.get(task["kind"]) or {}, styles)
        for task in tasks
    )
    page = f'<p><a href="{text(link)}" target="_blank" rel="noopener">The page with all charts and maps</a></p>'
    return shell.fragment(f'{glance.lead(tasks, measured)}<section class="finding">{found}</section>{charts}{page}')


def _gallery(task: Json, number: int, styles: Mapping[str, str], room: int) -> tuple[str, dict[str, Any]]:
    """The cards of a task's schemes, and what the script needs to redraw them for another query, in `room` bytes."""
    cards, carried = [], {}
    for index, scheme in enumerate(task["schemes"]):
        picture = scheme.get("picture") or {}
        if not pictures.drawable(picture):
            continue
        key, words = f"{number}.{index}", picture.get("what") or scheme.get("sentence") or ""
        card, maps = pictures.card(
            picture, label=scheme["label"], words=words, key=key, style=styles[scheme["name"]], picker=number, room=room
        )
        cards.append(card)
        room -= sum(len(head) for group in maps.values() for layer in group["maps"] for head in layer)
        carried.update(maps)
    return "".join(cards), carried


def _finding(results: Json, tasks: Sequence[Json]) -> list[str]:
    unlearned = [task for task in tasks if not any(map(recommendation.shown_above, task["schemes"]))]
    boxed = {line for task in unlearned for line in (task.get("finding") or [])[:1]}  # said above, in the box
    lines = [line for line in results.get("finding") or ["There is no finding."] if line not in boxed]
    seeds = max((len(s.get("trials") or []) for task in tasks for s in task["schemes"]), default=0)
    if seeds == 1 and not any("no ranking" in line for line in lines):
        lines.append("One seed: no ranking.")
    return lines


def _closing(results: Json, tasks: Sequence[Json]) -> str:
    return "".join((_limits(results), _data(tasks), _settings(results), _model(results), _again(results)))


def _limits(results: Json) -> str:
    lines = "".join(f"<li>{text(line)}</li>" for line in results.get("limits") or [])
    body = f"<ul>{lines}</ul>" if lines else "<p>Nothing was noted.</p>"
    return f'<section id="limits"><h2>What small models cannot tell about large ones</h2>{body}</section>'


def _data(tasks: Sequence[Json]) -> str:
    parts = []
    for task in tasks:
        notes = "".join(f"<li>{text(note)}</li>" for note in task.get("notes") or [])
        notes = f"<ul>{notes}</ul>" if notes else ""
        print_ = f"<p>Fingerprint of data and split: <code>{text(task.get('fingerprint') or NOTHING)}</code></p>"
        parts.append(f"<h3>{text(task['kind']).capitalize()}</h3>{notes}{print_}{_skipped(task.get('skipped') or [])}")
    return f'<section id="data"><h2>Data</h2>{"".join(parts)}</section>'


def _skipped(files: Sequence[Json]) -> str:
    if not files:
        return "<p>No file was skipped.</p>"
    rows = "".join(
        f'<tr><th scope="row">{user(file["path"])}</th><td>{text(file["reason"])}</td></tr>'
        for file in files[:MOST_FILES]
    )
    rest = len(files) - MOST_FILES
    more = f"<p>… and {whole(rest)} more, listed in results.json.</p>" if rest > 0 else ""
    name = f"{whole(len(files))} file{'s' * (len(files) != 1)} skipped"
    head = '<thead><tr><th scope="col">File</th><th scope="col">Why</th></tr></thead>'
    table = f'<div class="wide"><table class="plain">{head}<tbody>{rows}</tbody></table></div>'
    return f"<details><summary>{name}</summary>{table}{more}</details>"


def _settings(results: Json) -> str:
    tables = []
    for name, values in (("Settings", results.get("settings")), ("Versions", results.get("versions"))):
        rows = "".join(
            f'<tr><th scope="row">{text(key)}</th><td>{user(_plain(value))}</td></tr>'
            for key, value in _flat(values or {})
        )
        tables.append(
            f'<h3>{name}</h3><div class="wide"><table class="plain"><tbody>{rows}</tbody></table></div>' if rows else ""
        )
    measured = results.get("measured") or {}
    known = [("machine", ""), ("threads", " threads"), ("seconds", " s in all"), ("created", "")]
    facts = [f"{measured[key]:.0f}{unit}" if key == "seconds" else f"{measured[key]}{unit}"
             for key, unit in known if measured.get(key) is not None]  # fmt: skip
    where = f"<h3>Measured on</h3><p>{text(', '.join(facts))}</p>" if facts else ""
    body = f"<details><summary>Settings, seeds and versions</summary>{''.join(tables)}{where}</details>"
    return f'<section id="settings"><h2>Settings, seeds and versions</h2>{body}</section>'


def _model(results: Json) -> str:
    best = results.get("best") or {}
    if not best:
        body = "<p>None is named.</p>"
    else:
        body = (
            f"<p>The best model on validation: <b>{text(best.get('scheme'))}</b> on {text(best.get('task'))}, seed "
            f"{text(best.get('seed'))}, saved as <code>{text(best.get('file'))}</code>. This rebuilds and loads it:</p>"
            f'<pre tabindex="0"><code>{code(best.get("snippet") or "")}</code></pre>'
        )
    return f'<section id="model"><h2>Rebuild the best model</h2>{body}</section>'


def _again(results: Json) -> str:
    command = results.get("command") or "locant compare --config settings.toml"
    return (
        '<section id="again"><h2>Run it again</h2><p>settings.toml, beside this page, holds every setting. On the same '
        "data, with the same versions and number of threads, it gives the same numbers, all but measured times and "
        f'bytes.</p><pre tabindex="0"><code>{code(command)}</code></pre></section>'
    )


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None else str(value)


def _flat(values: Json) -> list[tuple[str, object]]:
    """Settings of one task stand in a table of their own: images.epochs, images.lr, …"""
    flat: list[tuple[str, object]] = []
    for key, value in values.items():
        inner = [(f"{key}.{name}", v) for name, v in value.items()] if isinstance(value, Mapping) else [(key, value)]
        flat += inner
    return flat
