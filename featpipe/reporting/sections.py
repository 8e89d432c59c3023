"""What a page is made of: sections, charts as data, templates, and numbers as people read them.

A section of another package is a class with a name, a title and :meth:`Section.content`, and an
entry point of the group ``featpipe.sections`` that names the class.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from featpipe.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

    from featpipe.reporting.data import ReportData

MISSING = "–"
SAME_COST = 1.05  # costs are called the same up to this ratio
_LOG_SPAN = 20
_FLAG = re.compile(r"(--[a-z][a-z-]*)")
_SCRIPTS = ("draw.js", "charts.js", "map.js", "page.js")


# -- sections ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """A chart as data: the page's script draws it as SVG and lists its numbers as a table."""

    title: str  # for the heading and for people who cannot see it
    spec: dict[str, Any]  # kind ("lines", "intervals", "scatter", "map"), axes and series
    caption: str = ""  # what a reader must know


@dataclass(frozen=True)
class Missing:
    """A part that a page cannot show, and why."""

    title: str
    reason: str
    spec: None = field(default=None, init=False)


@dataclass(frozen=True)
class Content:
    """What a section shows."""

    html: str = ""  # text is escaped; only ``markupsafe.Markup`` is taken as HTML
    figures: Sequence[Chart | Missing] = ()  # drawn below the text
    # Written unrounded to NAME.csv in the folder of the tables, unless they have no rows.
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    # Title and anchor (empty: none) of what the table of contents lists below the section.
    entries: Sequence[tuple[str, str]] = ()


class Section:
    """A part of the page with a heading of its own; ``name`` is its anchor."""

    name: str
    title: str

    def content(self, data: ReportData) -> Content:
        """Return what the section shows of some results."""
        raise NotImplementedError


SECTIONS: Registry[type[Section]] = Registry(
    "section",
    {
        "methods": "featpipe.reporting.tables",
        "audit": "featpipe.reporting.data_quality",
        "failures": "featpipe.reporting.gallery",
        "features": "featpipe.reporting.feature_maps",
        "labels": "featpipe.reporting.figures",
    },
)


# -- charts as data ------------------------------------------------------------------------------


def axis(label: str, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    """Return an axis: its label, its limits where they are fixed, ``log``, ``format``."""
    return {"label": label, "low": low, "high": high, **more}


def number_axis(label: str, values: Sequence[float]) -> Any:
    """Return the axis of a parameter; one whose values span orders of magnitude is logarithmic."""
    return axis(label, log=min(values) > 0 and max(values) / min(values) >= _LOG_SPAN)


def lines(x: Any, y: Any, series: Sequence[dict[str, Any]], **look: Any) -> dict[str, Any]:
    """Return the spec of a chart of lines."""
    return {"kind": "lines", "x": x, "y": y, "series": list(series), **look}


def line(name: str, x: Sequence[Any], y: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return one line of a chart; ``None`` in ``y`` leaves a gap."""
    return {"name": name, "x": list(x), "y": list(y), **more}


# -- numbers as people read them; ``None`` is a dash, never 0 ------------------------------------


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share as a percentage without its sign."""
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def points(value: float, digits: int = 2) -> str:
    """Return a difference of two shares in percentage points, with a real minus sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Return a p-value; below 0.001 only that."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(value: float | None) -> str:
    """Return a duration in seconds in the unit that fits it."""
    if value is None:
        return MISSING
    if value < 5e-5:
        return "0\u00a0s"
    for unit, factor, least in (("h", 3600, 5400), ("min", 60, 90), ("s", 1, 0.1), ("ms", 1e-3, 0)):
        if value >= least:
            return f"{value / factor:.{0 if value >= 10 * factor else 1}f}\u00a0{unit}"
    return MISSING


def count(value: float | None) -> str:
    """Return a whole number with its digits in groups of three (narrow no-break spaces)."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Return a number of bytes in KB, MB or GB (powers of 1000)."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}\u00a0{unit}"
    return f"{value:.0f}\u00a0B"


def flags(text: str) -> Markup:
    """Return text, escaped, in which no line ends within the name of an option."""
    parts, flag = _FLAG.split(text), Markup('<span class="flag">{}</span>')
    return Markup().join(flag.format(part) if n % 2 else part for n, part in enumerate(parts))


# -- templates -----------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    """Return the templates, with the functions above as filters; compiled once."""
    environment = Environment(
        loader=PackageLoader("featpipe.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (percent, points, p_value, duration, count, size, flags)
    environment.filters.update({function.__name__: function for function in formats})
    # JSON that is safe inside a script element: no "<", ">" or "&" in it.
    environment.filters["data"] = lambda value: htmlsafe_json_dumps(
        value, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return environment


def render(template: str, **values: Any) -> Markup:
    """Fill in a template; everything but Markup is escaped."""
    return Markup(environment().get_template(template).render(values))  # noqa: S704 - escaped


def render_page(template: str, **values: Any) -> str:
    """Fill in the template of a whole page, with style and script embedded.

    The page's policy forbids every request, and every script and style but these two: even markup
    that found a way through the escaping could not run.
    """
    folder = resources.files("featpipe.reporting") / "templates"
    style, *scripts = (
        (folder / name).read_text(encoding="utf-8").strip() for name in ("style.css", *_SCRIPTS)
    )
    script = "\n".join(scripts)
    style_digest, script_digest = (
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        for text in (style, script)
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_digest}'; "
        f"script-src 'sha256-{script_digest}'; base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(style), "script": Markup(script)}  # noqa: S704 - our own files
    return render(template, **own, policy=policy, **values)
