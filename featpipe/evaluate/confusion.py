"""What a confusion matrix alone says: accuracy, recall, precision, f1, coverage.

Recall is the share of a class's rows that were found; precision the share of the answers "this
class" that were right. Both are often printed as "class-wise accuracy"; here each has its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import ResultError

Values = dict[str, Any]
Reasons = dict[str, str]
_Floats = NDArray[np.float64]

_WHY_UNDEFINED = {
    "recall": "no test row of this class",
    "precision": "never predicted",
    "f1": "neither a true nor a predicted class of any test row",
}


def metrics_from_confusion(
    confusion: NDArray[Any] | Sequence[Sequence[int]], classes: Sequence[str], other: bool = False
) -> Values:
    """Metrics that a confusion matrix alone determines, ready for JSON.

    Parameters
    ----------
    confusion : array-like of shape (k, k), or (k, k + 1) with ``other``, int
        Counts; rows are true classes, columns are predicted classes.
    classes : sequence of str
        The k class names.
    other : bool
        Whether the last column counts rows sent to "other".

    Returns
    -------
    metrics : dict
        ``n``, ``accuracy``, ``balanced_accuracy`` (mean recall of the classes with test rows),
        ``macro_*`` and ``weighted_*`` of ``precision``, ``recall``, ``f1``, ``per_class`` (list of
        ``{class, support, predicted, recall, precision, f1}``), ``confusion``,
        ``classes_absent`` (without test rows, left out of macro recall) and ``undefined`` (metric
        or ``metric[class]`` → reason). With ``other`` also ``coverage``, the share of rows not
        sent to "other", and ``accuracy_covered``, the accuracy on those.

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
    matrix = _checked(np.asarray(confusion), len(classes), other)
    hits = np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)[: len(classes)]
    n = int(matrix.sum())
    scores = {
        "recall": _ratio(hits, support),
        "precision": _ratio(hits, predicted),
        "f1": _ratio(2 * hits, support + predicted),
    }
    undefined: Reasons = {}
    values: Values = {
        "n": n,
        "accuracy": float(hits.sum() / n),
        "balanced_accuracy": float(np.nanmean(scores["recall"])),
        **_averages(scores, support, predicted, undefined),
        "classes_absent": [name for name, rows in zip(classes, support, strict=True) if not rows],
        "per_class": [
            {"class": name, "support": int(support[i]), "predicted": int(predicted[i])}
            for i, name in enumerate(classes)
        ],
        "confusion": matrix.tolist(),
    }
    for metric, per_class in scores.items():
        fill_per_class(values["per_class"], metric, per_class, _WHY_UNDEFINED[metric], undefined)
    if other:
        values |= _coverage(hits, matrix, undefined)
    return {**values, "undefined": undefined}


def _checked(matrix: NDArray[Any], k: int, other: bool) -> NDArray[np.int64]:
    if matrix.shape != (k, k + other):
        raise ResultError(
            "The confusion matrix does not fit the classes.",
            expected=f"shape {(k, k + other)}: true classes × predicted classes",
            got=f"shape {matrix.shape}",
        )
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0 or not matrix.any():
        raise ResultError("A confusion matrix holds whole, non-negative counts, not all zero.")
    return matrix.astype(np.int64)


def _ratio(numerator: _Floats, denominator: NDArray[Any]) -> _Floats:
    nan = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def fill_per_class(
    entries: list[Values], metric: str, values: _Floats, why: str, undefined: Reasons
) -> None:
    """Add a metric to the entry of each class: NaN becomes None, with the reason."""
    for entry, value in zip(entries, values.tolist(), strict=True):
        entry[metric] = None if np.isnan(value) else value
        if np.isnan(value):
            undefined[f"{metric}[{entry['class']}]"] = why


def _averages(
    scores: dict[str, _Floats],
    support: NDArray[np.int64],
    predicted: NDArray[np.int64],
    undefined: Reasons,
) -> Values:
    """Macro and weighted averages; precision only where every class of interest has one."""
    averages: Values = {}
    weighted = support / support.sum()
    for metric, values in scores.items():
        seen = support > 0 if metric == "recall" else (support > 0) | (predicted > 0)
        for name, rows, result in (
            (f"macro_{metric}", seen, values[seen].mean()),
            (f"weighted_{metric}", support > 0, values[support > 0] @ weighted[support > 0]),
        ):
            missing = int(np.isnan(values[rows]).sum())
            averages[name] = None if missing else float(result)
            if missing:
                undefined[name] = f"classes with test rows that are never predicted: {missing}"
    return averages


def _coverage(hits: _Floats, matrix: NDArray[np.int64], undefined: Reasons) -> Values:
    covered = int(matrix[:, :-1].sum())
    if not covered:
        undefined["accuracy_covered"] = 'every row was sent to "other"'
    return {
        "coverage": covered / int(matrix.sum()),
        "accuracy_covered": float(hits.sum() / covered) if covered else None,
    }
