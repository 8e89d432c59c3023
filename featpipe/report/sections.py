"""What a page is made of: sections, each with text, figures and tables.

A section of another package is a class with a name, a title and :meth:`Section.content`, and an
entry point of the group ``featpipe.sections`` that names the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featpipe.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

    from featpipe.report.data import ReportData

_LOG_SPAN = 20


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
        "methods": "featpipe.report.tables",
        "failures": "featpipe.report.gallery",
        "features": "featpipe.report.feature_maps",
        "labels": "featpipe.report.figures",
    },
)


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
