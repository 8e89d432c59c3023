"""The steps that set results side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featpipe.steps.oldbase import Step, option


@dataclass(frozen=True, kw_only=True)
class CompareStep(Step):
    """Compare results: intervals, paired tests, published numbers."""

    kind = "compare"
    summary = "Compare results: accuracy with intervals, and an exact paired test of every pair."
    runner = "featpipe.evaluate.compare:run_compare"
    examples = (
        "featpipe compare",
        "featpipe compare --dataset stl10 --out table.md",
        "featpipe compare data/results/stl10-*.json --out table.tex",
    )

    results: tuple[str, ...] | None = option(
        None, help="Result files or names; default: all of the workspace.", positional=True
    )
    dataset: str | None = option(None, help="Only results on this dataset.")
    out: Path | None = option(None, help="Write the table: a name in .csv, .md or .tex.")
    published: bool = option(True, help="Show published numbers too, set apart.")
    reference: tuple[str, ...] | None = option(
        None, help="Published numbers to show: DATASET or DATASET/ROW; default: of the datasets."
    )


@dataclass(frozen=True, kw_only=True)
class ReportStep(Step):
    """Write results as one self-contained HTML page, with its tables as CSV."""

    kind = "report"
    summary = "Write results as one self-contained HTML page, with its tables as CSV."
    runner = "featpipe.report:run_report"
    examples = (
        "featpipe report --all",
        "featpipe report data/results/stl10-*.json --out reports/stl10",
    )

    results: tuple[str, ...] | None = option(
        None, help="Result files or names; default: all of the workspace.", positional=True
    )
    all: bool = option(False, help="All results of the workspace, as without naming any.")
    dataset: str | None = option(None, help="Only results on this dataset.")
    out: Path | None = option(
        None, help="Name of the report without ending; default: reports/DATASET."
    )
    title: str | None = option(None, help="Title of the page.")
    published: bool = option(True, help="Show published numbers beside ours, set apart.")
    reference: tuple[str, ...] | None = option(
        None, help="Published numbers to show: DATASET or DATASET/ROW; default: of the datasets."
    )
    gallery: int = option(24, help="Images in each gallery at most.", minimum=0)
    data: Path | None = option(None, help="Folder to look for the images in.")
    seed: int = option(0, help="Seed of the map of the features.", minimum=0)
