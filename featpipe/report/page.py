"""From results to one HTML page with its tables, and the list of all pages."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from featpipe.datasets import slug
from featpipe.errors import UsageError
from featpipe.evaluation.result import Result, find_results
from featpipe.report.data import Method, ReportData
from featpipe.report.render import render, render_page
from featpipe.report.sections import SECTIONS, Content, Section
from featpipe.report.step import Report, html_path
from featpipe.report.tables import Comparison, conclude
from featpipe.steps import Context, Outcome
from featpipe.workspace import atomic_write

GENERATOR = "featpipe report"
_HEAD_BYTES = 1 << 16  # what is read of a page: its head comes before style and script


def write_report(report: Report, context: Context) -> Outcome:
    """Write the page that a step describes, and the list of all pages."""
    folder = context.workspace.reports
    results = find_results(
        context.workspace.results, report.results, report.dataset, note=context.progress.note
    )
    datasets = {result.dataset["name"] for result in results}
    default = folder / (slug(datasets.pop()) if len(datasets) == 1 else "all")
    path = build_report(results, report.out or default, report, context)
    index = write_index(folder)
    size = path.stat().st_size
    return Outcome(
        "done",
        f"report of {len(results)} results, {size / 1e6:.2f} MB → {path}",
        (path, index),
        {"results": [result.name for result in results], "bytes": size},
    )


def build_report(
    results: Sequence[Result],
    out: Path,
    report: Report | None = None,
    context: Context | None = None,
) -> Path:
    """Write results as one self-contained HTML page and its tables as CSV.

    The same results give the same bytes. Nothing is trained and no network is used; images are
    read from the dataset and features from their stores, if those still exist.

    Return the HTML file: ``out`` may be ``NAME`` or ``NAME.html``, both give ``NAME.html`` and the
    folder ``NAME-tables``. ``report`` has the title and other options; which results it names has
    no effect.

    Raises
    ------
    UsageError
        If there is no result, one is named twice, or another recipe made the existing page.
    ResultError
        If predictions are missing or damaged.
    """
    data = ReportData.load(results, report, context)
    path = html_path(out)
    recipe = (data.context.recipe or {}).get("name", "")
    owner = head_of(path).get("recipe", "") if path.exists() else ""
    if recipe and owner and owner != recipe:
        raise UsageError(
            f"The step would overwrite what the recipe {owner!r} made.",
            got=path,
            next_step="give this recipe a name of its own (name: …), "
            "or this step another place (out: …)",
        )
    contents, tables = contents_of(data)
    folder = path.with_name(f"{path.stem}-tables")
    end = Provenance(folder.name, [f"{name}.csv" for name in tables if len(tables[name])])
    datasets = dict.fromkeys(group.dataset for group in data.groups)
    runs = sorted(method.result.created[:10] for method in data.methods)
    text = render_page(
        "report.html.j2",
        title=data.report.title or f"Image classification on {', '.join(datasets)}",
        generator=GENERATOR,
        description=" ".join(conclude(group) for group in data.groups),
        recipe=recipe,
        n_methods=len(data.methods),
        runs=runs[0] if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]}",
        contents=[*contents, (end, end.content(data))],
        sheet=list(data.sheet.values()),
    )
    for name, frame in tables.items():
        if frame.empty:
            (folder / f"{name}.csv").unlink(missing_ok=True)  # it may have had rows before
            continue
        with atomic_write(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def contents_of(
    data: ReportData,
) -> tuple[list[tuple[Section, Content]], dict[str, pd.DataFrame]]:
    """Return the sections of a page with what they give, and the tables of all of them."""
    sections: list[Section] = [
        *(Comparison(number, group) for number, group in enumerate(data.groups, start=1)),
        *(section() for section in SECTIONS),
    ]
    contents: list[tuple[Section, Content]] = []
    tables: dict[str, pd.DataFrame] = {}
    with data.context.progress.task("report", len(sections)) as task:
        for section in sections:
            content = section.content(data)
            if twice := set(tables) & set(content.tables):
                raise UsageError(
                    f"Two sections of the page give a table {min(twice)!r}.", where=section.name
                )
            tables.update(content.tables)
            contents.append((section, content))
            task.advance()
    return contents, tables


def head_of(path: Path) -> dict[str, str]:
    """Return the title and the meta elements of a page; of a page that is not ours, maybe none."""
    with path.open("rb") as stream:
        text = stream.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    head = text.partition("<style>")[0]
    found = re.findall(r'<meta name="(\w+)" content="([^"]*)">', head)
    found += re.findall(r"<(title)>([^<]*)</title>", head)
    return {name: html.unescape(content) for name, content in found}


def write_index(folder: Path) -> Path:
    """Write ``index.html`` of all reports in a folder, sorted by name, and return its path."""
    heads = [{**head_of(path), "file": path.name} for path in sorted(folder.glob("*.html"))]
    reports = [head for head in heads if head.get("generator") == GENERATOR]
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(render_page("index.html.j2", reports=reports), encoding="utf-8")
    return folder / "index.html"


# -- provenance: commands, recipes, settings, versions, hardware, fingerprints -------------------


class Provenance(Section):
    """The end of the page: how to get the same again, and the folder with its tables."""

    name = "provenance"
    title = "How to get the same again"

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        self.folder, self.files = folder, files

    def content(self, data: ReportData) -> Content:
        """Return the commands and recipes, and what identifies each result."""
        # What a network is trained on was made by the command of its own result.
        stores = [
            store["run"].get("command", "")
            for method in data.methods
            for store in method.result.stores
            if "activations" not in Path(store["path"]).parts
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
        return Content(html)


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
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
