"""From results to one HTML page with its tables, and the list of all pages."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from featpipe.datasets import slug
from featpipe.errors import UsageError
from featpipe.evaluation.result import Result, find_results
from featpipe.files import open_regular
from featpipe.reporting.answers import conclusion
from featpipe.reporting.data import Method, ReportData
from featpipe.reporting.sections import SECTIONS, Content, Missing, Section, render, render_page
from featpipe.reporting.step import (
    SUMS,
    Report,
    changed_files,
    html_path,
    replace_files,
    tables_folder,
)
from featpipe.reporting.tables import Comparison
from featpipe.steps import Context, Outcome
from featpipe.workspace import atomic_write, neutralised, one_at_a_time, refuse_foreign

_INDEX_MARK = b'<meta name="generator" content="featpipe index">'
_ABSOLUTE = re.compile(r"(?<![\w.…/<])(?:/[\w.+@~-]+)+/(?=[\w.])")  # the folders of a path
_HEAD_BYTES = 1 << 16  # enough for the head of a page, which comes before style and script


def write_report(report: Report, context: Context) -> Outcome:
    """Write the page that a step describes, and the list of all pages."""
    folder = context.workspace.reports
    results = find_results(
        context.workspace.results, report.results, report.dataset, note=context.progress.note
    )
    datasets = {result.dataset["name"] for result in results}
    default = folder / (slug(datasets.pop()) if len(datasets) == 1 else "all")
    page = Page(ReportData.load(results, report, context))
    path = page.write(report.out or default)
    n, size = f"{len(results)} result{'s' * (len(results) != 1)}", path.stat().st_size
    paths, lines = [path], [f"report of {n}, {size / 1e6:.2f} MB → {path}"]
    try:
        paths.append(write_index(folder, force=report.force))
    except UsageError as error:  # the page itself was written
        lines.append(f"no list of reports was written:\n{error}")
    message = "\n".join([*lines, *page.failures])
    names = [result.name for result in results]
    facts = {"results": names, "bytes": size, "failures": page.failures}
    return Outcome("done", message, tuple(paths), facts, int(bool(page.failures)))


def build_report(
    results: Sequence[Result],
    out: Path,
    report: Report | None = None,
    context: Context | None = None,
) -> Path:
    """Write results as one self-contained HTML page and its tables as CSV; return the HTML file.

    The same results give the same bytes. Nothing is trained and no network is used; images are
    read from the dataset and features from their stores, if those still exist. ``out`` may be
    ``NAME`` or ``NAME.html``, both give ``NAME.html`` and the folder ``NAME-tables``. ``report``
    has the title and other options; which results it names has no effect.

    Raises
    ------
    UsageError
        If there is no result, one is named twice, another recipe made the existing page, or a file
        that featpipe did not write would be replaced.
    ResultError
        If predictions are missing or damaged.
    """
    return Page(ReportData.load(results, report, context)).write(out)


class Page:
    """The sections of a page as HTML, their tables, and which sections failed.

    A section of another package that fails leaves a note in its place, and the page is written;
    one of featpipe's own that fails is an error.
    """

    def __init__(self, data: ReportData) -> None:
        self.data = data
        self.sections: list[dict[str, Any]] = []  # name, title, html, entries
        self.tables: dict[str, pd.DataFrame] = {}
        self.failures: list[str] = []

    def write(self, out: Path) -> Path:
        """Write the page and its tables; see :func:`build_report`."""
        data, path = self.data, html_path(out)
        recipe = (data.context.recipe or {}).get("name", "")
        owner = head_of(path).get("recipe", "") if path.exists() else ""
        if recipe and owner and owner != recipe:
            what = f"The step would overwrite what the recipe {owner!r} made."
            hint = "give this recipe a name of its own (name: …), or this step another file"
            raise UsageError(what, got=path, next_step=f"{hint} (out: …)")
        names = SECTIONS.names()
        with data.context.progress.task("report", len(data.groups) + len(names)) as task:
            for number, group in enumerate(data.groups, start=1):
                self.add(Comparison(number, group))
                task.advance()
            for name in names:
                self.add_registered(name)
                task.advance()
        tables = {
            f"{name}.csv": neutralised(frame).to_csv(index=False, lineterminator="\n")
            for name, frame in self.tables.items()
            if not frame.empty
        }
        self.add(Provenance(tables_folder(path).name, [*tables, SUMS]))
        datasets = dict.fromkeys(group.name for group in data.groups)
        runs = sorted(method.result.created[:10] for method in data.methods)
        headlines = (conclusion(group, data.comparison.margin)[0] for group in data.groups)
        text = render_page(
            "report.html.j2",
            title=data.report.title or f"Image classification on {', '.join(datasets)}",
            description=" ".join(headlines),
            recipe=recipe,
            n_methods=len(data.methods),
            runs=runs[0] if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]}",
            sections=self.sections,
            sheet=list(data.sheet.values()),
        )
        with one_at_a_time(path.parent):
            replace_files(path, text, tables, force=data.report.force)
        return path

    def add(self, section: Section) -> None:
        """Add what a section shows, and its tables."""
        content = section.content(self.data)
        tables = {name: pd.DataFrame(table) for name, table in content.tables.items()}
        if twice := set(self.tables) & set(tables):
            what = f"Two sections of the page give a table {min(twice)!r}."
            raise UsageError(what, where=section.name)
        if content.html or content.figures:  # else it has nothing to show of these results
            self._show(section.name, section.title, content)
        self.tables |= tables

    def add_registered(self, name: str) -> None:
        """Add a section by its name, or a note if it is of another package and fails."""
        package = SECTIONS.package_of(name)
        try:
            self.add(SECTIONS.get(name)())
        except Exception as error:  # whatever another package may raise
            if package is None:
                raise
            reason = str(error).partition("\n")[0]
            why = f"the package {package!r} failed with {type(error).__name__}: {reason}"
            self.failures.append(f"section {name!r} is not on the page: {why}")
            self._show(name, name, Content(figures=[Missing(name, why)]))

    def _show(self, name: str, title: str, content: Content) -> None:
        html = render("section.html.j2", content=content)
        # Unpacked here, where a mistake is one of this section, and not in the page's template.
        entries = [(text, anchor) for text, anchor in content.entries]
        self.sections.append({"name": name, "title": title, "html": html, "entries": entries})


def head_of(path: Path) -> dict[str, str]:
    """Return the title and the meta elements of a page; one that is not ours may have none."""
    with open_regular(path) as stream:
        text = stream.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    head = text.partition("<style>")[0]
    found = re.findall(r'<meta name="(\w+)" content="([^"]*)">', head)
    found += re.findall(r"<(title)>([^<]*)</title>", head)
    return {name: html.unescape(content) for name, content in found}


def write_index(folder: Path, *, force: bool = False) -> Path:
    """Write ``index.html`` of all reports in a folder, sorted by name, and return its path.

    A page whose files were changed is marked as such, without its conclusions. A foreign index is
    a UsageError, unless ``force``.
    """
    index = folder / "index.html"
    refuse_foreign(index, _INDEX_MARK, force=force)
    unknown = dict.fromkeys(("title", "description", "methods", "runs"), "?")  # of a torn head
    pages = [path for path in sorted(folder.glob("*.html")) if path.is_file()]
    heads = [{**unknown, **head_of(path), "file": path.name} for path in pages]
    reports = [head for head in heads if head.get("generator") == "featpipe report"]
    for head in reports:
        if changed := changed_files(folder / head["file"]):
            names = ", ".join(path.name for path in changed)
            head["description"] = f"Changed after it was written, do not trust it: {names}."
    text = render_page("index.html.j2", title="Reports", reports=reports)
    with atomic_write(index) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return index


# -- provenance: commands, recipes, settings, versions, hardware, fingerprints -------------------


class Provenance(Section):
    """The end of the page: what reproduces it, and the folder with its tables."""

    name = "provenance"
    title = "Reproduce this report"

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        self.folder, self.files = folder, files

    def content(self, data: ReportData) -> Content:
        """Return the commands and recipes, and what identifies each result."""
        # What a network is trained on was made by the command of its own result.
        stores = [
            store["run"].get("command", "")
            for method in data.methods
            for store in method.result.stores
            if data.context.workspace.activations.name not in Path(store["path"]).parts
        ]
        commands = [*stores, *(method.result.command for method in data.methods)]
        recipes = recipes_of(data)
        html = render(
            "provenance.html.j2",
            commands=[line for line in dict.fromkeys(commands) if line],
            recipes=[(recipe.get("name", ""), _yaml(recipe)) for recipe in recipes],
            names=list(dict.fromkeys(str(r["name"]) for r in recipes if r.get("name"))),
            made_by=(data.context.recipe or {}).get("name"),
            folder=self.folder,
            files=self.files,
            groups=data.groups,
            step=step,
        )
        # A page is read elsewhere, where the folders of this machine mean nothing.
        return Content(Markup(_ABSOLUTE.sub("…/", html)))  # noqa: S704 - nothing is added


def recipes_of(data: ReportData) -> list[dict[str, Any]]:
    """Return the recipes that the results come from, each once whatever its tasks."""
    found: list[dict[str, Any]] = []
    for method in data.methods:
        recipe = dict(method.result.extra.get("recipe") or {})
        recipe.pop("task", None)
        if recipe and recipe not in found:
            found.append(recipe)
    return found


def step(method: Method) -> str:
    """Return the settings of a method as YAML, as a recipe's step takes them."""
    given = {key: value for key, value in method.result.settings.items() if value is not None}
    return _yaml({method.result.method: given})


def _yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
