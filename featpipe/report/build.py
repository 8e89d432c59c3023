"""Make a report: gather, compute what is shown, write the page and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featpipe.datasets import slug
from featpipe.errors import UsageError
from featpipe.report import export, gallery, progress_charts, provenance, tables
from featpipe.report.charts import Chart, Missing, accuracy_chart, cost_chart, method_curves
from featpipe.report.conclusion import conclude
from featpipe.report.feature_map import Atlas
from featpipe.report.images import Pictures, Sheet
from featpipe.report.index import GENERATOR, write_index
from featpipe.report.material import Group, Material, Method, gather
from featpipe.report.options import ReportOptions
from featpipe.report.render import render
from featpipe.report.sweeps import sweep_charts
from featpipe.evaluation.result import Result, find_results
from featpipe.steps.old import Context, Outcome, ReportStep
from featpipe.workspace import atomic_write


def run_report(step: ReportStep, context: Context) -> Outcome:
    """Write the report that a step describes, and the list of all reports."""
    if step.all and step.results:
        raise UsageError("Either name results or say --all.", got=", ".join(step.results))
    workspace = context.workspace
    results = find_results(workspace.results, step.results, step.dataset)
    options = ReportOptions(
        title=step.title,
        published=step.reference or step.published,
        gallery=step.gallery,
        data=step.data,
        seed=step.seed,
        workspace=workspace,
        progress=context.progress,
    )
    path = build_report(results, step.out or workspace.reports / _default_name(results), options)
    index = write_index(workspace.reports)
    size = path.stat().st_size
    return Outcome(
        "done",
        f"report of {len(results)} results, {size / 1e6:.2f} MB → {path}",
        (path, index),
        {"results": [result.name for result in results], "bytes": size},
    )


def build_report(
    results: Sequence[Result], out: Path, options: ReportOptions | None = None
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
    options : ReportOptions, optional

    Returns
    -------
    path : Path
        The HTML file.

    Raises
    ------
    UsageError
        If there is no result, or one is named twice.
    ResultError
        If predictions are missing or damaged.
    """
    options = options or ReportOptions()
    out = out.with_suffix("") if out.suffix == ".html" else out
    path = out.with_name(f"{out.name}.html")
    material = gather(results, published=options.published)
    frames = export.frames(material)
    values = page_values(material, options)
    values |= {"folder": f"{out.name}-tables", "files": [n for n in frames if len(frames[n])]}
    text = render("report.html.j2", values)
    _write_tables(frames, out.with_name(f"{out.name}-tables"))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page_values(material: Material, options: ReportOptions) -> dict[str, Any]:
    """Return everything the page's template shows."""
    sheet, atlas = Sheet(), Atlas(options)
    groups = []
    with options.progress.task("report", total=len(material.groups)) as task:
        for number, group in enumerate(material.groups, start=1):
            pictures = Pictures(group, options, sheet)
            values = _group_values(group, material, pictures, options)
            groups.append(
                {**values, "anchor": f"tests-{number}", "maps": atlas.maps(group, pictures)}
            )
            task.advance()
    runs = sorted(method.result.created[:10] for method in material.methods)
    names = ", ".join(material.datasets)
    return {
        "title": options.title or f"Image classification on {names}",
        "generator": GENERATOR,
        "groups": groups,
        "runs": runs[0] if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]}",
        "n_methods": len(material.methods),
        "commands": provenance.commands(material),
        "recipes": provenance.recipes(material),
        "provenance": [
            {
                "method": method,
                "label": group.label,
                "facts": provenance.facts(method),
                "step": provenance.step(method),
            }
            for group in material.groups
            for method in group.methods
        ],
        "sheet": list(sheet.images.values()),
    }


def _group_values(
    group: Group, material: Material, pictures: Pictures, options: ReportOptions
) -> dict[str, Any]:
    wrong, shots = gallery.always_wrong(group, pictures, options.gallery)
    return {
        "dataset": group.dataset,
        "label": group.label,
        "n_test": group.methods[0].row["n_test"],
        "conclusion": conclude(group),
        "overview": tables.overview(group),
        "published": tables.published(group, material),
        "pairs": tables.pairs(group),
        "accuracy": accuracy_chart(group, material),
        "cost": cost_chart(group),
        "methods": [_method_values(m, pictures, options) for m in group.methods],
        "images_missing": pictures.missing,
        "images_doubt": pictures.doubt,
        "always_wrong": {"count": wrong, "shots": shots},
        "disagreements": gallery.disagreements(group, pictures, options.gallery),
        "few": [
            chart
            for chart in (
                progress_charts.low_shot_chart(group),
                progress_charts.fold_chart(group),
                *sweep_charts(group),
            )
            if chart
        ],
    }


def _method_values(method: Method, pictures: Pictures, options: ReportOptions) -> dict[str, Any]:
    search = progress_charts.search_parts(method)
    charts: list[Chart | Missing] = [
        *method_curves(method),
        *(part for part in search if isinstance(part, Chart)),
        *progress_charts.training_charts(method),
        *progress_charts.missing_training(method),
    ]
    return {
        "anchor": method.anchor,
        "title": method.title,
        "row": method.row,
        "notes": method.result.notes,
        "figures": tables.key_figures(method),
        "confusion": tables.confusion(method),
        "report": tables.classification_report(method),
        "charts": charts,
        "sweeps": [part for part in search if isinstance(part, dict)],
        "pairs": gallery.confused_pairs(method, pictures),
        "errors": gallery.errors_by_confidence(method, pictures, options.gallery),
        "n_errors": int((method.answers.predicted != method.table.true).sum()),
        "explained": gallery.explained(method, pictures, options.gallery),
        "explained_by": method.result.extra.get("explained", {}),
        "first_model": method.first_model_name,
    }


def _write_tables(frames: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write every table that has rows; one that has none any more goes away."""
    for name, frame in frames.items():
        if frame.empty:
            (folder / name).unlink(missing_ok=True)
            continue
        with atomic_write(folder / name) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")


def _default_name(results: Sequence[Result]) -> str:
    datasets = {result.dataset["name"] for result in results}
    return slug(datasets.pop()) if len(datasets) == 1 else "all"
