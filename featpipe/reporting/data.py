"""What a page shows: results with their predictions, grouped by the rows they were tested on."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import count, groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featpipe.datasets import split_spec
from featpipe.datasets.dataset import MOST_LIST_BYTES, SourceRequest
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError, FeatpipeError, ResultError, UsageError
from featpipe.evaluation.leaks import note_of_leaks, note_of_repeats
from featpipe.evaluation.metrics import Predictions
from featpipe.evaluation.protocol import CHOSEN, GROUPED
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.evaluation.titles import unique_titles
from featpipe.files import read_regular
from featpipe.labelmap.mapping import SourceClasses
from featpipe.reporting.images import Images, ThumbnailSheet, tested_images
from featpipe.reporting.step import Report
from featpipe.reporting.suspects import Suspects
from featpipe.statistics.comparison import Comparison, compare
from featpipe.steps import Context
from featpipe.store import FeatureStore

FINE = 1000  # with so many test images, one of them is a tenth of a point
CLASS_NAMES = "class_names.csv"  # in the folder of the images, or beside what holds them
_NAMED = 5


# -- methods and groups of methods ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Method:
    """A result as a page shows it.

    Where several models predicted the same row, :attr:`predicted` and :attr:`confidence` are
    those of the first one: scores of different models have no common scale.
    """

    result: Result
    table: PredictionTable
    row: dict[str, Any]  # of the comparison
    anchor: str  # its name in links
    title: str  # unique within the page
    names: Mapping[str, str] = field(default_factory=dict)  # what the page calls the classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the true classes, as the page shows them."""
        return tuple(self.names.get(name, name) for name in self.result.dataset["classes"])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the possible answers."""
        return (*self.classes, "other") if self.result.dataset["other"] else self.classes

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics over all models."""
        return self.result.summary["metrics"]

    @property
    def answers_once(self) -> bool:
        """Whether each test row has one answer, so that accuracy is a count of images."""
        return len(self.table.row) == len(self.table.ids)

    def ties_with(self, other: Method) -> bool:
        """Whether the accuracies are equal; what differs by rounding only is equal."""
        return round(self.row["accuracy"] - other.row["accuracy"], 12) == 0

    @property
    def has_probabilities(self) -> bool:
        """Whether the scores are probabilities: only those have a Brier score."""
        return self.result.splits[int(self.table.split[0])]["metrics"].get("brier") is not None

    @cached_property
    def by_id(self) -> NDArray[np.intp]:
        """The order of the test rows by id: tables may list the same images differently."""
        return np.argsort(self.table.ids, kind="stable")

    @cached_property
    def _first(self) -> NDArray[np.intp]:
        """The first prediction of each test row, as indices of shape (n,)."""
        rows, first = np.unique(self.table.row, return_index=True)
        if len(rows) != len(self.table.ids):
            what = "The predictions are damaged: some test rows have none."
            expected, got = f"{len(self.table.ids)} rows", f"{len(rows)} rows"
            raise ResultError(what, where=self.result.path, expected=expected, got=got)
        return first

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Predicted classes, of shape (n,)."""
        return self.table.predicted[self._first]

    @cached_property
    def share_right(self) -> NDArray[np.float64]:
        """Share of all models that were right on each row, of shape (n,)."""
        row = self.table.row
        return np.bincount(row, weights=self.table.correct) / np.bincount(row)

    @cached_property
    def wrong(self) -> NDArray[np.intp]:
        """Rows that are misclassified, the most confident errors first."""
        rows = np.flatnonzero(self.predicted != self.table.true)
        if self.confidence is None:
            return rows
        return rows[np.argsort(-self.confidence[rows], kind="stable")]

    @cached_property
    def confidence(self) -> NDArray[np.float64] | None:
        """Probability of each answer, or its margin to the runner-up, of shape (n,)."""
        if self.table.scores is None or self.table.scores.shape[1] < 2:
            return None
        scores = self.table.scores[self._first]
        if self.has_probabilities:
            return scores[np.arange(len(scores)), self.predicted].astype(np.float64)
        top = np.partition(scores, -2, axis=1)
        return (top[:, -1] - top[:, -2]).astype(np.float64)

    def predictions(self, *, first_model: bool) -> Predictions:
        """Return the predictions of the first model, or those of all.

        The probabilities of several models, but not their scores, have one scale.
        """
        table = self.table.only_splits([int(self.table.split[0])]) if first_model else self.table
        other, probabilities = self.result.dataset["other"], self.has_probabilities
        return Predictions.of_table(table, self.classes, other=other, probabilities=probabilities)

    @property
    def first_model_name(self) -> str | None:
        """Name of the first model where there are several, else None."""
        numbers = np.unique(self.table.split)
        return None if len(numbers) == 1 else str(self.result.splits[int(numbers[0])]["name"])

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """The training images, as their manifest describes them; None where nothing was trained."""
        stores = self.result.stores
        return stores[0]["manifest"]["dataset"] if stores and "leaks" in self.result.extra else None

    @property
    def protocol_note(self) -> str:
        """Why the protocol was chosen, where it was chosen automatically."""
        return next((note for note in self.result.notes if note.startswith(CHOSEN)), "")

    @property
    def notes(self) -> list[str]:
        """What a reader must know of this method alone.

        Notes about the data are on the page once: leaks, repeated images, groups, images that the
        backbone may have seen.
        """
        extra = self.result.extra
        once = {extra.get("contamination"), note_of_leaks(extra.get("leaks")), self.repeats}
        notes = [note for note in self.result.notes if note not in once]
        return [note for note in notes if not note.startswith((GROUPED, CHOSEN))]

    @property
    def repeats(self) -> str:
        """How many images occur more than once within a split; empty where none does."""
        return note_of_repeats(self.result.extra.get("leaks"))


def by_fact(
    methods: Iterable[Method], fact: Callable[[Method], Hashable]
) -> dict[Any, list[Method]]:
    """Group methods by a fact about them."""
    found: dict[Any, list[Method]] = {}
    for method in methods:
        found.setdefault(fact(method), []).append(method)
    return found


@dataclass(frozen=True, eq=False)
class Group:
    """Methods that were tested on the same rows, best accuracy first."""

    dataset: str
    methods: list[Method]
    pairs: list[dict[str, Any]]  # the paired tests between them
    label: str = ""  # distinguishes it from other groups of the page, if there are any
    name: str = ""  # what the page calls the dataset

    @property
    def suffix(self) -> str:
        """The label as the end of a title."""
        return f", {self.label}" if self.label else ""

    @property
    def digits(self) -> int:
        """Decimals of a percentage: two where one test image is at most a tenth of a point."""
        return 1 if self.methods[0].row["n_test"] < FINE else 2

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the true classes."""
        return self.methods[0].classes

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all answers that a method of the group can give."""
        return max((method.columns for method in self.methods), key=len)

    @property
    def tests_of_first(self) -> dict[str, Any]:
        """The tests of the first method against others, by their names: methods, else models."""
        first = self.methods[0].row["name"]
        return {p["b"]: p["methods"] or p["models"] for p in self.pairs if p["a"] == first}

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """Ids of the test rows, sorted."""
        return self.methods[0].table.ids[self.methods[0].by_id]

    @cached_property
    def true(self) -> NDArray[np.int64]:
        """True classes, in the order of :attr:`ids`."""
        return self.methods[0].table.true[self.methods[0].by_id]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """First answers, of shape (methods, n)."""
        return np.stack([method.predicted[method.by_id] for method in self.methods])

    @cached_property
    def share_right(self) -> NDArray[np.float64]:
        """Share of right models, of shape (methods, n)."""
        return np.stack([method.share_right[method.by_id] for method in self.methods])


def _labels(groups: Sequence[Sequence[dict[str, Any]]], datasets: list[str]) -> list[str]:
    """Return what distinguishes the groups: the dataset, else its images, else a number."""
    if len(groups) == 1:
        return [""]
    named = zip(datasets, groups, strict=True)
    sizes = [f"{dataset}, {rows[0]['n_test']} test images" for dataset, rows in named]
    numbers = [f"{label}, set {number}" for number, label in enumerate(sizes, start=1)]
    return next(labels for labels in (datasets, sizes, numbers) if len({*labels}) == len(labels))


# -- everything ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a page is a function of."""

    comparison: Comparison
    groups: list[Group]
    report: Report  # the options of the page
    context: Context
    sheet: ThumbnailSheet = field(default_factory=ThumbnailSheet)

    @classmethod
    def load(
        cls, results: Sequence[Result], report: Report | None = None, context: Context | None = None
    ) -> Self:
        """Read predictions and compare; see :func:`featpipe.statistics.comparison.compare`."""
        report = report or Report()
        by_name = {result.name: result for result in results}
        published = report.reference or report.published
        comparison = compare(results, published=published, margin=report.margin)
        grouped = [list(rows) for _, rows in groupby(comparison.rows, lambda row: row["group"])]
        datasets = [str(rows[0]["dataset"]) for rows in grouped]
        if report.dataset_name and len({*datasets}) > 1:
            raise UsageError(
                "--dataset-name names one dataset, but there are results of several.",
                expected="results of one dataset, chosen with --dataset",
                got=", ".join(dict.fromkeys(datasets)),
            )
        tested = [by_name[rows[0]["name"]].dataset["test"]["name"] for rows in grouped]
        names = [report.dataset_name or dataset_name(name) for name in tested]
        context = context or Context()
        note = cache(context.progress.note)  # each once
        groups: list[Group] = []
        number = count(1)
        for rows, name, label in zip(grouped, names, _labels(grouped, names), strict=True):
            mine = {row["name"]: by_name[row["name"]] for row in rows}
            methods = []
            for row, title in zip(rows, unique_titles([*mine.values()], rows), strict=True):
                result, anchor = mine[row["name"]], f"method-{next(number)}"
                called = class_names(result, report.data, note)
                methods.append(Method(result, result.predictions(), row, anchor, title, called))
            # Where a is of the group and there is a test, b is of the group, too.
            pairs = [p for p in comparison.pairs if p["reason"] is None and p["a"] in mine]
            groups.append(Group(rows[0]["dataset"], methods, pairs, label, name))
        return cls(comparison, groups, report, context)

    @property
    def methods(self) -> list[Method]:
        """All methods, group by group."""
        return [method for group in self.groups for method in group.methods]

    def published(self, group: Group) -> list[dict[str, Any]]:
        """Return the published rows of a group's dataset, once for each dataset."""
        first = next(other for other in self.groups if other.dataset == group.dataset)
        rows = self.comparison.published if first is group else []
        return [row for row in rows if row["dataset"] == group.dataset]

    def frame(self, rows_of: Callable[[Method], Iterable[dict[str, Any]]]) -> pd.DataFrame:
        """Return the rows that belong to each method as one table, unrounded."""
        return pd.DataFrame(
            {"result": method.row["name"], "method": method.title, **row}
            for method in self.methods
            for row in rows_of(method)
        )

    @cached_property
    def images(self) -> Callable[[Group], Images]:
        """The test images of a group, each group's found once."""
        return cache(lambda group: tested_images(group, self))

    @cached_property
    def suspects(self) -> Callable[[Group], Suspects]:
        """What an audit found of the test images of a group, each group's found once."""
        return cache(lambda group: Suspects.of(group, self.context.workspace))

    def source(self, run: Mapping[str, Any], split: str) -> ImageSource:
        """Return the images that a store was made of, by its record of the run; opened once."""
        if (asked := run.get("source")) is None:
            raise FeatpipeError("the results do not say where their images came from.")
        return self._opened(SourceRequest.from_dict(asked).moved(self.report.data), split)

    @cached_property
    def _opened(self) -> Callable[[SourceRequest, str], ImageSource]:
        return cache(lambda request, split: request.open(split, request.options(self.context)))

    def store(self, method: Method, known: Mapping[str, Any]) -> FeatureStore:
        """Return the feature store that a result names; a missing or replaced one is an error."""
        parents = [] if method.result.path is None else method.result.path.parents
        folders = (Path(), self.context.workspace.root, *parents)
        found = next((f / known["path"] for f in folders if (f / known["path"]).is_file()), None)
        if found is None:
            raise FeatpipeError("its feature store was deleted or moved")
        store = FeatureStore(found)
        if store.fingerprint != known["fingerprint"]:
            raise FeatpipeError("its feature store was replaced by one of other features")
        return store


# -- names that people chose, and WordNet's for its ids ------------------------------------------


def dataset_name(spec: str) -> str:
    """Return the display name of a dataset: of a folder its own name, without the kind."""
    _, argument, kind = split_spec(spec)
    return kind.stem(argument) if kind else spec


def class_names(
    result: Result, data: Path | None, note: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """Return the unique display name of each class; results and keys do not depend on it.

    ``note`` is called with a message about names of classes that do not exist.

    Raises
    ------
    DataError
        If there is a ``class_names.csv`` that cannot be read as one.
    """
    wordnet = SourceClasses.load("imagenet")
    known = dict(zip(wordnet.ids, wordnet.names, strict=True))
    run = result.stores[-1]["run"] if result.stores else {}
    if source := run.get("source"):
        _, argument, kind = split_spec(SourceRequest.from_dict(source).moved(data).dataset)
        if kind and (place := Path(argument)).is_absolute():
            files = [p for p in (place / CLASS_NAMES, place.parent / CLASS_NAMES) if p.is_file()]
            given = _read_names(files[0]) if files else {}
            if unknown := sorted(given.keys() - {*result.dataset["classes"]}):
                some = ", ".join(unknown[:_NAMED]) + " …" * (len(unknown) > _NAMED)
                note(f"{files[0]} names classes that the results do not have: {some}")
            known |= given
    called = {name: known.get(name, name) for name in result.dataset["classes"]}
    counts = Counter(called.values())
    return {name: f"{new} ({name})" if counts[new] > 1 else new for name, new in called.items()}


def _read_names(path: Path) -> dict[str, str]:
    expected = "a header class,name and a line for each class, in UTF-8"
    try:
        text = read_regular(path, MOST_LIST_BYTES).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return {row["class"]: row["name"] for row in rows if row["name"].strip()}
    except (OSError, ValueError, csv.Error, KeyError, AttributeError) as error:
        got = f"no column {error}" if isinstance(error, KeyError) else error
        what = "The names of the classes cannot be read."
        raise DataError(what, where=path, expected=expected, got=got) from error
