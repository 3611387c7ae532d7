"""HTML pages that need no other file: one frame, one palette, and every text from outside escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mcsp.wording import counted, listed

# Okabe and Ito's colours, which colour-blind readers can tell apart, without their yellow, which fades on white:
# blue, vermilion, green, purple, orange, sky blue. Black is left to the page's own ink.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#808080"  # for what is not read first; visible on white and on black
MARKERS = "os^Dv<>P*X"


def render(template: str, **values: Any) -> str:
    """A page of ``mcsp/templates`` with ``values``; only ``Markup`` among them is taken as HTML.

    >>> "&lt;b&gt;" in render("frame.html.jinja", title="<b>", footer="")
    True
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """Strict: a value that a template names and does not get is an error, not an empty place."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"listed": listed, "counted": counted}
    environment.globals |= {"colours": COLOURS}
    return environment
