"""The step ``report``: the options of a page, and how a recipe fills them in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Self

from featpipe.errors import UsageError
from featpipe.statistics.step import ResultsStep
from featpipe.steps import STEPS, Context, Outcome, option
from featpipe.workspace import Workspace


@STEPS.register
class Report(ResultsStep):
    """Write results as one self-contained HTML page, with its tables as CSV."""

    name = "report"
    examples = (
        "featpipe report --all",
        "featpipe report data/results/stl10-*.json --out reports/stl10",
    )
    makes = ("page",)
    waits_for = ("pictures", "audit")

    all: bool = option(
        False, help="All results in the workspace (the default).", selects_input=True
    )
    out: Path | None = option(
        None,
        help="Name of the report without ending; default: reports/DATASET.",
        affects_result=False,
    )
    title: str | None = option(None, help="Title of the page.", affects_result=False)
    dataset_name: str | None = option(
        None, help="What the page calls the dataset.", affects_result=False
    )
    gallery: int = option(24, help="Maximum number of images in each gallery.", minimum=0)
    data: Path | None = option(None, help="Folder to look for the images in.", affects_result=False)
    seed: int = option(0, help="Seed of the map of the features.", seed=True)

    def check(self) -> None:
        """Refuse ``--all`` together with names, and a place that is no file."""
        if self.out is not None and self.out.name in ("", "..", ".html"):
            what, expected = "--out does not name a report.", "a name, such as reports/mine"
            raise UsageError(what, expected=expected, got=self.out)
        if self.all and self.results:
            raise UsageError("Either name results or say --all.", got=", ".join(self.results))

    def has_inputs(self) -> bool:
        """Whether results are named."""
        return self.all or super().has_inputs()

    def placed(self, recipe: str, task: str, workspace: Workspace) -> Self:
        """Name the page after the recipe, and after the task where there are several pages."""
        if self.out is not None:
            return self
        return self.replace(out=workspace.reports / (f"{recipe}-{task}" if task else recipe))

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Add the results that other steps have made to those that are named."""
        return self if self.all else super().bind(inputs)

    def output(self) -> Hashable:
        """Return the HTML file, where its name is chosen."""
        return self.out and html_path(self.out)

    def run(self, context: Context) -> Outcome:
        """Write the page, its tables and the list of all pages."""
        from featpipe.reporting.page import write_report  # noqa: PLC0415 - pandas, scikit-learn

        return write_report(self, context)


def html_path(out: Path) -> Path:
    """Return the file of a report called ``NAME`` or ``NAME.html``."""
    return out.with_name(f"{out.name.removesuffix('.html')}.html")
