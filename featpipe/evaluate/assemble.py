"""Make one Result out of the predictions of all splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.evaluate.intervals import accuracy_interval, mean_sd
from featpipe.evaluate.metrics import classification_metrics, metrics_from_confusion
from featpipe.evaluate.predictions import Predictions
from featpipe.evaluate.protocol import Split
from featpipe.results import PredictionTable


@dataclass(frozen=True, eq=False)
class Tested:
    """What one model answered on the test rows of its split.

    Parameters
    ----------
    split : Split
    predicted : ndarray of shape (n_test,), int64
    scores : ndarray of shape (n_test, columns) or None
    probabilities : bool
        Whether the scores are probabilities.
    other : bool
        Whether "other" may be answered; its column is the last.
    without_source : tuple of str or None
        Target classes that a mapped classifier cannot answer.
    facts : dict
        What else is to be recorded of this split.
    """

    split: Split
    predicted: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None
    probabilities: bool = False
    other: bool = False
    without_source: tuple[str, ...] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def predictions(self) -> Predictions:
        """The same as the metrics want it."""
        return Predictions(
            ids=np.array(self.split.test.ids),
            y_true=self.split.test.labels,
            y_pred=self.predicted,
            classes=self.split.test.store.classes,
            scores=None if self.probabilities else self.scores,
            probabilities=self.scores if self.probabilities else None,
            other=self.other,
        )

    def record(self) -> dict[str, Any]:
        """Return the entry of this split in the result."""
        split = self.split
        return {
            "name": split.name,
            "n_train": len(split.train),
            "n_test": len(split.test),
            "train_per_class": split.train_per_class,
            "repeat": split.repeat,
            **self.facts,
            "metrics": classification_metrics(self.predictions, self.without_source),
        }


def prediction_table(tested: Sequence[Tested]) -> PredictionTable:
    """Join the predictions of all splits; a test row of several splits is stored once."""
    ids: dict[str, int] = {}
    true: list[int] = []
    rows, parts = [], []
    for number, one in enumerate(tested):
        for name, label in zip(one.split.test.ids, one.split.test.labels, strict=True):
            if name not in ids:
                ids[name] = len(ids)
                true.append(int(label))
        rows.append(np.array([ids[name] for name in one.split.test.ids], dtype=np.int64))
        parts.append(np.full(len(one.predicted), number))
    scores = [one.scores for one in tested if one.scores is not None]
    return PredictionTable(
        ids=np.array(list(ids), dtype=np.str_),
        true=np.array(true, dtype=np.int64),
        row=np.concatenate(rows),
        split=np.concatenate(parts).astype(np.int64),
        predicted=np.concatenate([one.predicted for one in tested]).astype(np.int64),
        scores=np.concatenate(scores).astype(np.float32) if len(scores) == len(tested) else None,
    )


def summarise(
    records: Sequence[dict[str, Any]], table: PredictionTable, classes: Sequence[str], other: bool
) -> dict[str, Any]:
    """Return metrics over all splits, with intervals and the spread over models.

    Counts are pooled over the splits. Metrics that need scores are averaged over them, because
    scores of different models have no common scale.
    """
    metrics = [record["metrics"] for record in records]
    summary: dict[str, Any] = {
        "accuracy": accuracy_interval(table.correct, table.row).as_dict(),
        "metrics": metrics[0],
        "spread": {},
    }
    if len(metrics) == 1:
        return summary
    counts = np.sum([m["confusion"] for m in metrics], axis=0)
    pooled = metrics_from_confusion(counts, classes, other)
    for name in _scalars(metrics):
        values = [m[name] for m in metrics]
        lacking = sum(value is None for value in values)
        if not lacking:
            summary["spread"][name] = mean_sd(values).as_dict()
            pooled.setdefault(name, float(np.mean(values)))
        elif name not in pooled:
            pooled[name] = None
            why = next(m["undefined"][name] for m in metrics if m[name] is None)
            pooled["undefined"][name] = f"{why} (in {lacking} of {len(metrics)} splits)"
    summary["metrics"] = pooled
    return summary


def _scalars(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of single-number metrics, also of those that some split does not define."""
    return [
        name
        for name, value in metrics[0].items()
        if isinstance(value, float) or (value is None and name in metrics[0]["undefined"])
    ]


def low_shot_curve(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return accuracy against the number of labelled images per class.

    The interval is over draws (and folds): mean ± one standard deviation, and the extremes.
    """
    sizes = sorted({r["train_per_class"] for r in records if r["train_per_class"] is not None})
    curve = []
    for size in sizes:
        values = [r["metrics"]["accuracy"] for r in records if r["train_per_class"] == size]
        curve.append({"train_per_class": size, "accuracies": values, **mean_sd(values).as_dict()})
    return curve
