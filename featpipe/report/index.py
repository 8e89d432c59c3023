"""``index.html``: all reports of a workspace."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from featpipe.report.render import render
from featpipe.workspace import atomic_write

GENERATOR = "featpipe report"
_HEAD_BYTES = 1 << 16  # what is read of a report: its head comes before style and script


class _Head(HTMLParser):
    """Reads title and meta elements."""

    def __init__(self) -> None:
        super().__init__()
        self.meta: dict[str, str] = {}
        self.title = ""
        self._in_title = False
        self._in_head = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._in_head = self._in_head and tag != "body"
        self._in_title = self._in_head and tag == "title"
        if self._in_head and tag == "meta" and values.get("name"):
            self.meta[str(values["name"])] = values.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def write_index(folder: Path) -> Path:
    """Write ``index.html`` of all reports in a folder, sorted by name.

    Returns
    -------
    path : Path
    """
    reports = []
    for path in sorted(folder.glob("*.html")):
        with path.open("rb") as stream:
            head = _Head()
            head.feed(stream.read(_HEAD_BYTES).decode("utf-8", errors="replace"))
        if head.meta.get("generator") == GENERATOR:
            facts = {key: head.meta.get(key, "") for key in ("description", "methods", "runs")}
            reports.append({"file": path.name, "title": head.title, **facts})
    page = render("index.html.j2", {"reports": reports})
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"
