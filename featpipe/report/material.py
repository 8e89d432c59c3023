"""What a report is made from: results with their predictions, grouped by equal test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import ResultError
from featpipe.evaluate.compare import Comparison, compare
from featpipe.evaluate.predictions import Predictions
from featpipe.report.titles import unique_titles
from featpipe.evaluation.result import PredictionTable, Result


@dataclass(frozen=True, eq=False)
class Answers:
    """One answer per test row: that of the first model which was tested on it.

    Where ten models predicted the same row, galleries and maps show what the first one said;
    scores of different models have no common scale.

    Parameters
    ----------
    predicted : ndarray of shape (n,), int64
    scores : ndarray of shape (n, columns), float32, or None
    share_right : ndarray of shape (n,), float64
        Share of all models that were right on the row.
    """

    predicted: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    share_right: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Method:
    """A result as a report shows it.

    Parameters
    ----------
    result : Result
    table : PredictionTable
    row : dict
        Its row of the comparison.
    anchor : str
        Its name in links.
    title : str
        Its title, made unique within the report.
    """

    result: Result
    table: PredictionTable
    row: dict[str, Any]
    anchor: str
    title: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the possible answers."""
        data = self.result.dataset
        return (*data["classes"], "other") if data["other"] else tuple(data["classes"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics over all models."""
        return self.result.summary["metrics"]

    @property
    def probabilities(self) -> bool:
        """Whether the scores are probabilities: only those have a Brier score."""
        return self.result.splits[int(self.table.split[0])]["metrics"].get("brier") is not None

    @cached_property
    def answers(self) -> Answers:
        """One answer per test row, in the order of ``table.ids``."""
        table, n = self.table, len(self.table.ids)
        rows, first = np.unique(table.row, return_index=True)
        if len(rows) != n:
            raise ResultError(
                "The predictions are damaged: not every test row has one.",
                where=self.result.path,
                expected=f"{n} rows",
                got=f"{len(rows)} rows",
            )
        right = np.bincount(table.row, weights=table.correct, minlength=n)
        times = np.bincount(table.row, minlength=n)
        scores = None if table.scores is None else table.scores[first]
        return Answers(table.predicted[first], scores, right / times)

    @cached_property
    def confidence(self) -> NDArray[np.float64] | None:
        """How sure each answer was, of shape (n,): probability, or margin to the runner-up."""
        scores = self.answers.scores
        if scores is None or scores.shape[1] < 2:
            return None
        if self.probabilities:
            chosen = np.take_along_axis(scores, self.answers.predicted[:, None], axis=1)
            return chosen[:, 0].astype(np.float64)
        top = np.partition(scores, -2, axis=1)[:, -2:]
        return (top[:, 1] - top[:, 0]).astype(np.float64)

    @cached_property
    def first_model(self) -> Predictions:
        """Predictions of the first model alone: what curves can honestly be drawn from."""
        number = int(self.table.split[0])
        one = self.table.only_splits([number])
        return Predictions(
            ids=one.ids[one.row],
            y_true=one.true[one.row],
            y_pred=one.predicted,
            classes=tuple(self.result.dataset["classes"]),
            scores=None if self.probabilities else one.scores,
            probabilities=one.scores if self.probabilities else None,
            other=self.result.dataset["other"],
        )

    @property
    def first_model_name(self) -> str | None:
        """Name of the first model where there are several, else None."""
        numbers = np.unique(self.table.split)
        if len(numbers) == 1:
            return None
        return str(self.result.splits[int(numbers[0])]["name"])


@dataclass(frozen=True, eq=False)
class Group:
    """Methods that were tested on the same rows, best accuracy first.

    Parameters
    ----------
    dataset : str
    methods : list of Method
    pairs : list of dict
        The paired tests between them.
    label : str
        What tells the group from the others of the report; empty where there is no other.
    """

    dataset: str
    methods: list[Method]
    pairs: list[dict[str, Any]]
    label: str = ""

    @property
    def suffix(self) -> str:
        """What tells titles of this group from those of others."""
        return f", {self.label}" if self.label else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the true classes."""
        return tuple(self.methods[0].result.dataset["classes"])

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """Ids of the test rows, sorted."""
        return np.sort(self.methods[0].table.ids)

    @cached_property
    def true(self) -> NDArray[np.int64]:
        """True classes, in the order of :attr:`ids`."""
        return self.methods[0].table.true[self.order(self.methods[0])]

    def order(self, method: Method) -> NDArray[np.int64]:
        """Return the rows of a method's table in the order of :attr:`ids`."""
        return np.argsort(method.table.ids, kind="stable")

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """First answers, of shape (methods, n)."""
        return np.stack([m.answers.predicted[self.order(m)] for m in self.methods])

    @cached_property
    def share_right(self) -> NDArray[np.float64]:
        """Share of right models, of shape (methods, n)."""
        return np.stack([m.answers.share_right[self.order(m)] for m in self.methods])


@dataclass(frozen=True, eq=False)
class Material:
    """Everything a report is a function of."""

    comparison: Comparison
    groups: list[Group]

    @property
    def methods(self) -> list[Method]:
        """All methods, group by group."""
        return [method for group in self.groups for method in group.methods]

    def published(self, group: Group) -> list[dict[str, Any]]:
        """Return the published rows of a group's dataset, once for each dataset."""
        first = next(other for other in self.groups if other.dataset == group.dataset)
        rows = self.comparison.published if first is group else []
        return [row for row in rows if row["dataset"] == group.dataset]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets."""
        return list(dict.fromkeys(group.dataset for group in self.groups))


def gather(results: Sequence[Result], *, published: bool | Sequence[str] = True) -> Material:
    """Load predictions and compare; see :func:`featpipe.evaluate.compare.compare`."""
    # Equal accuracies keep their order, so it must not depend on how the results were listed.
    results = sorted(results, key=lambda result: result.name)
    comparison = compare(results, published=published)
    by_name = {result.name: result for result in results}
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in comparison.rows:
        rows_of.setdefault(row["group"], []).append(row)
    groups: list[Group] = []
    number = 0
    for rows, label in zip(rows_of.values(), _labels(list(rows_of.values())), strict=True):
        methods = []
        found = [by_name[row["name"]] for row in rows]
        for result, row, title in zip(found, rows, unique_titles(found, rows), strict=True):
            number += 1
            methods.append(Method(result, result.predictions(), row, f"method-{number}", title))
        names = {method.row["name"] for method in methods}
        pairs = [p for p in comparison.pairs if p["reason"] is None and {p["a"], p["b"]} <= names]
        groups.append(Group(methods[0].result.dataset["name"], methods, pairs, label))
    return Material(comparison, groups)


def _labels(groups: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Return what tells the groups apart: the dataset, else its images, else a number."""
    if len(groups) == 1:
        return [""]
    rows = [group[0] for group in groups]
    labels = [str(row["dataset"]) for row in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{row['dataset']}, {row['n_test']} test images" for row in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, set {number}" for number, label in enumerate(labels, start=1)]
    return labels
