"""A document as one HTML page that needs nothing from outside itself."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from paceline.bench.document import Document


def to_html(document: Document) -> str:
    """The page, its figures inside it. Raises UsageError when matplotlib is missing.

    Every text is escaped by the template; only the figures, which are drawn here, go in as they are.
    """
    source = files("paceline").joinpath("assets/report.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["unbroken"] = _unbroken
    return environment.from_string(source).render(document=document, figures=document.figures())


def _unbroken(text: str) -> str:
    """No line ends inside "k = 3", or between a number and its interval."""
    return re.sub(r"k = \d+|\d+\.\d+x \[[^\]]*\]|\[\d[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)
