"""Metrics of predictions as plain data, with a reason where a metric has no value.

Nothing here is NaN and nothing undefined is reported as zero: a metric that the test rows do not
define is ``None``, and ``undefined`` holds the reason. ``docs/evaluation.md`` defines each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, roc_auc_score

from featpipe.errors import ResultError, did_you_mean
from featpipe.evaluation.curves import reliability_curve
from featpipe.evaluation.predictions import Predictions

TOP_K = (2, 3, 5)

Values = dict[str, Any]


class _Undefined(str):
    """Why a metric has no value."""


def classification_metrics(
    predictions: Predictions, without_source: Sequence[str] | None = None
) -> Values:
    """All metrics that the predictions allow, ready for JSON.

    ``without_source`` are, for a mapped classifier, target classes that no source class maps to.
    Their rows cannot be predicted right, so accuracy is given with and without them.
    """
    columns = range(len(predictions.columns))
    confusion = confusion_matrix(predictions.y_true, predictions.y_pred, labels=columns)
    values = metrics_from_confusion(
        confusion[: len(predictions.classes)], predictions.classes, predictions.other
    )
    if without_source is not None:
        values |= _with_source(predictions, without_source)
    values |= _ranking_metrics(predictions, values["per_class"])
    values |= _probability_metrics(predictions)
    return _with_reasons(values)


def metrics_from_confusion(
    confusion: ArrayLike, classes: Sequence[str], other: bool = False
) -> Values:
    """Metrics that a confusion matrix alone determines, ready for JSON.

    ``confusion``, of shape (k, k), has whole counts; rows are true classes, columns are predicted
    classes. With ``other`` a further, last column counts rows sent to "other".

    Raises
    ------
    ResultError
        If the shape does not fit the classes, a count is negative or there is none.

    Examples
    --------
    >>> m = metrics_from_confusion([[8, 2, 0], [3, 0, 7]], ("cat", "deer"), other=True)
    >>> m["accuracy"], m["coverage"], m["per_class"][1]["precision"]
    (0.4, 0.65, 0.0)
    """
    matrix, shape = np.asarray(confusion), (len(classes), len(classes) + other)
    if matrix.shape != shape:
        raise ResultError(
            "The confusion matrix does not fit the classes.",
            expected=f"shape {shape}: true classes × predicted classes",
            got=f"shape {matrix.shape}",
        )
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0 or not matrix.any():
        raise ResultError("A confusion matrix holds whole, non-negative counts, not all zero.")
    n, hits = int(matrix.sum()), np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)[: len(classes)]
    present, weight = support > 0, support / support.sum()
    answered = present | (predicted > 0)
    entries = [
        {"class": name, "support": int(support[i]), "predicted": int(predicted[i])}
        for i, name in enumerate(classes)
    ]
    recall = _ratio(hits, support)
    values: Values = {
        "n": n,
        "accuracy": float(hits.sum() / n),
        "balanced_accuracy": float(np.nanmean(recall)),
    }
    for metric, each, macro_over, why in (
        ("recall", recall, present, "no test row of this class"),
        ("precision", _ratio(hits, predicted), answered, "never predicted"),
        ("f1", _ratio(2 * hits, support + predicted), answered,
         "neither a true nor a predicted class of any test row"),
    ):  # fmt: skip
        _fill(entries, metric, each, why)
        for name, average, over in (
            (f"macro_{metric}", each[macro_over].mean(), macro_over),
            (f"weighted_{metric}", each[present] @ weight[present], present),
        ):
            missing = np.isnan(each[over]).sum()
            lacking = f"classes with test rows that are never predicted: {missing}"
            values[name] = _Undefined(lacking) if missing else float(average)
    values["classes_absent"] = [entry["class"] for entry in entries if not entry["support"]]
    values |= {"per_class": entries, "confusion": matrix.tolist()}
    if other:
        covered = int(matrix[:, :-1].sum())
        nothing = _Undefined('every row was sent to "other"')
        values["coverage"] = covered / n
        values["accuracy_covered"] = float(hits.sum() / covered) if covered else nothing
    return _with_reasons(values)


def _with_reasons(values: Values) -> Values:
    """Replace what is undefined by None and collect the reasons under ``undefined``."""
    undefined = values.pop("undefined", {})
    named = [(values, ""), *((entry, f"[{entry['class']}]") for entry in values["per_class"])]
    for metrics, suffix in named:
        for name, value in metrics.items():
            if isinstance(value, _Undefined):
                metrics[name] = None
                undefined[name + suffix] = str(value)
    return {**values, "undefined": undefined}


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[Any]) -> NDArray[np.float64]:
    nan = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def _fill(entries: list[Values], metric: str, each: NDArray[np.float64], why: str) -> None:
    """Add a metric to the entry of each class; it is undefined where it is NaN."""
    for entry, value in zip(entries, each.tolist(), strict=True):
        entry[metric] = _Undefined(why) if np.isnan(value) else value


def _with_source(predictions: Predictions, without_source: Sequence[str]) -> Values:
    for name in without_source:
        if name not in predictions.classes:
            raise ResultError(
                f"There is no class named {name!r}.",
                expected=", ".join(predictions.classes),
                next_step=did_you_mean(name, predictions.classes),
            )
    lacking = [i for i, name in enumerate(predictions.classes) if name in without_source]
    rows = ~np.isin(predictions.y_true, lacking)
    none = _Undefined("no test row of a class that has a source class")
    return {
        "classes_without_source": [predictions.classes[i] for i in lacking],
        "accuracy_with_source": float(predictions.correct[rows].mean()) if rows.any() else none,
    }


def _ranking_metrics(predictions: Predictions, entries: list[Values]) -> Values:
    """Top-k, ROC AUC and average precision; adds the areas of each class to its entry."""
    areas = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
    averages = [f"{name}_{average}" for name in areas for average in ("macro", "weighted", "micro")]
    scores, truth = predictions.ranking, np.asarray(predictions.y_true)[:, None]
    if scores is None:
        names = [f"top_{k}_accuracy" for k in TOP_K] + averages
        return dict.fromkeys(names, _Undefined("the method gives no scores"))
    # Unlike scikit-learn's top_k_accuracy_score, whose ties favour the later column, a tie counts
    # against the method: a neighbour vote leaves most classes tied at 0.
    rank = (scores >= np.take_along_axis(scores, truth, axis=1)).sum(axis=1)
    values: Values = {
        f"top_{k}_accuracy": float((rank <= k).mean())
        if scores.shape[1] > k
        else _Undefined(f"needs more than {k} classes")
        for k in TOP_K
    }
    values |= dict.fromkeys(averages, _Undefined("all test rows are of one class"))
    labels = np.arange(len(predictions.classes))
    scores, members = scores[:, : len(labels)], truth == labels
    support = members.sum(axis=0)
    defined = (support > 0) & (support < len(members))
    for name, area in areas.items():
        each = np.full(len(labels), np.nan)
        each[defined] = [area(members[:, i], scores[:, i]) for i in labels[defined]]
        _fill(entries, name, each, "the test rows are all or none of this class")
        if defined.any():
            values[f"{name}_macro"] = float(each[defined].mean())
            values[f"{name}_weighted"] = float(np.average(each[defined], weights=support[defined]))
            values[f"{name}_micro"] = float(area(members.ravel(), scores.ravel()))
    return values


def _probability_metrics(predictions: Predictions) -> Values:
    if predictions.probabilities is None:
        why = _Undefined("the method gives no probabilities")
        return {"log_loss": why, "brier": why, "ece": why}
    probabilities = predictions.probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # float16 and float32 rounding
    columns = np.arange(len(predictions.columns))
    truth = np.asarray(predictions.y_true)[:, None] == columns
    return {
        "log_loss": float(log_loss(predictions.y_true, probabilities, labels=columns))
        if len(columns) > 1
        else _Undefined("there is only one class"),
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "ece": reliability_curve(predictions)["ece"],
    }
