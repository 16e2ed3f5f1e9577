"""Sphinx's settings; `./run docs` gathers the pages and builds the site with them (docs/site_pages.py)."""

import re
from pathlib import Path

project = "Locant"
author = copyright = "The Locant authors"
_package = Path(__file__).parents[1] / "src" / "locant" / "__init__.py"
release = re.findall(r'^__version__ = "(.+)"', _package.read_text(), re.MULTILINE)[0]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "README"
myst_enable_extensions = ["html_image"]  # <img> in a page is a picture of the site
myst_heading_anchors = 6  # links to headings, by GitHub's names
html_theme = "furo"
html_title = f"Locant {release}"
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "monokai"
suppress_warnings = ["misc.highlighting_failure", "myst.header"]  # signatures are no whole statements
