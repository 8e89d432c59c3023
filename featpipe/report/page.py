"""From results to one HTML page with its tables, and the list of all pages."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from featpipe.datasets import slug
from featpipe.errors import UsageError
from featpipe.evaluation.result import Result, find_results
from featpipe.report.data import ReportData
from featpipe.report.provenance import Provenance
from featpipe.report.render import render_page
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
    results = find_results(context.workspace.results, report.results, report.dataset)
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
    """Write results as one self-contained HTML page, with its tables as CSV beside it.

    The same results give the same bytes. Nothing is trained and no network is used; images are
    read from the dataset and features from their stores, where those are still there.

    Parameters
    ----------
    results : sequence of Result
    out : Path
        Name of the report; ``NAME`` and ``NAME.html`` both give ``NAME.html`` and the folder
        ``NAME-tables``.
    report : Report, optional
        Title, galleries and what else can be chosen; which results it names has no effect.
    context : Context, optional

    Returns
    -------
    path : Path
        The HTML file.

    Raises
    ------
    UsageError
        If there is no result, one is named twice, or another recipe made the page that is there.
    ResultError
        If predictions are missing or damaged.
    """
    data = ReportData.load(results, report, context)
    path = html_path(out)
    recipe = (data.context.recipe or {}).get("name", "")
    check_owner(path, recipe)
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


def check_owner(path: Path, recipe: str) -> None:
    """Raise ``UsageError`` if a recipe would write over the page of another recipe."""
    owner = head_of(path).get("recipe", "") if path.exists() else ""
    if recipe and owner and owner != recipe:
        raise UsageError(
            f"The step would overwrite what the recipe {owner!r} made.",
            got=path,
            next_step="give this recipe a name of its own (name: …), "
            "or this step another place (out: …)",
        )


def contents_of(
    data: ReportData,
) -> tuple[list[tuple[Section, Content]], dict[str, pd.DataFrame]]:
    """Return the sections of a page with what they give, and the tables of all of them.

    Raises
    ------
    UsageError
        If two sections give a table of one name.
    """
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
    """Write ``index.html`` of all reports in a folder, sorted by name.

    Returns
    -------
    path : Path
    """
    heads = [{**head_of(path), "file": path.name} for path in sorted(folder.glob("*.html"))]
    reports = [head for head in heads if head.get("generator") == GENERATOR]
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(render_page("index.html.j2", reports=reports), encoding="utf-8")
    return folder / "index.html"
