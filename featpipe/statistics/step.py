"""The step ``compare``, and the base of all steps that show results side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import ClassVar, Self

from featpipe.steps import STEPS, Context, Needs, Outcome, Step, option


class ResultsStep(Step):
    """A step that shows results side by side: of all steps of a recipe, or those that it names."""

    needs = Needs("result", each=False)
    waits_for: ClassVar[tuple[str, ...]] = ("pictures",)

    results: tuple[str, ...] | None = option(
        None,
        help="Result files or names; default: all of the workspace.",
        selects_input=True,
        positional=True,
    )
    dataset: str | None = option(None, help="Only results on this dataset.", selects_input=True)
    out: Path | None = option(
        None, help="Write the table: a name in .csv, .md or .tex.", affects_result=False
    )
    published: bool = option(True, help="Also show published numbers, separately.")
    margin: float = option(
        1.0, help="Differences smaller than this many points do not matter.", minimum=0
    )
    force: bool = option(
        False, help="Replace files that featpipe did not write, too.", affects_result=False
    )
    reference: tuple[str, ...] | None = option(
        None, help="Published numbers to show: DATASET or DATASET/ROW; default: of the datasets."
    )

    def has_inputs(self) -> bool:
        """Whether results are named."""
        return self.results is not None

    def accepts(self, producer: Step) -> bool:
        """Whether a step's result is shown: not if it is on another dataset."""
        return self.dataset is None or getattr(producer, "dataset", None) == self.dataset

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Add the results of other steps to those that are named."""
        if not inputs:
            return self
        # Two tasks may have one result: an automatic value, and what it was resolved to.
        made = dict.fromkeys(str(paths[0]) for paths in inputs)
        return self.replace(results=(*(self.results or ()), *made), dataset=None)

    def output(self) -> Hashable:
        """Return the file to write, if any."""
        return self.out


@STEPS.register
class Compare(ResultsStep):
    """Compare results: accuracy with intervals, and an exact paired test of every pair."""

    name = "compare"
    makes = ("table",)
    examples = (
        "featpipe compare",
        "featpipe compare --dataset stl10 --out table.md",
        "featpipe compare data/results/stl10-*.json --out table.tex",
    )

    def run(self, context: Context) -> Outcome:
        """Compare the results and write the table to ``--out``."""
        from featpipe.statistics.comparison import run_compare  # noqa: PLC0415 - brings pandas

        return run_compare(self, context)
