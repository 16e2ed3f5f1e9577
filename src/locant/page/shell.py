"""The frame of a page: one HTML file that is complete in itself, with the style sheet and the script that all share.

It loads nothing, and its Content-Security-Policy lets it load nothing: the one style sheet and the one script are
named by their hashes. Without scripts it shows the same charts and the maps of one query.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from string import Template

from locant.page.markup import text

COLOURS = 10  # the classes s1 … s10 of page.css go round; s0 is grey


def fill(
    *, title: str, kicker: str, heading: str, lead: str, finding: Sequence[str], links: Sequence[tuple[str, str]],
    body: str, author: str, data: str, more: Traversable | None = None, scripts: Sequence[str] = ("page.js",),
) -> str:  # fmt: skip
    """The whole page as text; the same arguments give the same bytes.

    Args:
        title, kicker, heading: what the browser's tab says, the small line above the heading, and the heading.
        lead: what the page opens with, as HTML.
        finding: the sentences below it.
        links: (id of a section, its name) of the table of contents.
        body: the sections, as HTML.
        author: the command that wrote the page.
        data: JSON for the script, safe inside an element (`safe_json`).
        more: a folder with page.css, which follows the style sheet of all pages, and `scripts`, in place of
            their script.
    """
    style, script = _read("page.css"), _read("page.js")
    if more is not None:
        style += more.joinpath("page.css").read_text(encoding="utf-8")
        script = "".join(more.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    said = "".join(f"<p>{text(line)}</p>" for line in finding)
    return Template(_read("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        title=text(title),
        style=style,
        script=script,
        kicker=text(kicker),
        heading=text(heading),
        lead=lead,
        finding=f'<section class="finding" aria-label="Finding">{said}</section>' if said else "",
        contents="".join(f'<a href="#{target}">{text(name)}</a>' for target, name in links),
        body=body,
        author=text(author),
        data=data,
    )


def fragment(body: str) -> str:
    """A part of a page, for a notebook: with the style sheet, which reaches no further than the part itself."""
    style = _read("page.css").replace(":root {", ":scope {")
    own = ":scope { background: var(--paper); color: var(--ink); padding: .1rem 1rem; font: 15px/1.5 var(--sans); }"
    return f"<div><style>@scope {{\n{style}\n{own}\n}}</style>{body}</div>"


def styles(names: Iterable[str], grey: str = "none") -> dict[str, str]:
    """The style class of each name, in order of appearance: one colour per name on the whole page."""
    coloured = [name for name in dict.fromkeys(names) if name != grey]
    return {grey: "s0", **{name: f"s{1 + i % COLOURS}" for i, name in enumerate(coloured)}}


def safe_json(value: object) -> str:
    """JSON that is safe inside a script element."""
    written = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return resources.files("locant.page").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
