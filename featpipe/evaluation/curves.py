"""Data of ROC and precision-recall curves, small enough for a page.

Areas are always those of the full curve. Long curves are then drawn with at most
:data:`MAX_POINTS` points: what that may change is said at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from featpipe.errors import ResultError
from featpipe.evaluation.metrics import Predictions

MAX_POINTS = 199  # odd, so that the corner diagonal fpr + tpr = 1 is one of the points

_DECIMALS = 5
_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def roc_curves(predictions: Predictions) -> dict[str, Any]:
    """ROC curves, one class against the rest, with micro and macro averages.

    The macro curve is the vertical average of the class curves (Fawcett 2006, "An introduction
    to ROC analysis", "vertical averaging"): its area is the mean of their areas. Micro averaging
    compares scores across classes.

    Returned are ``curves``, a list of ``{class, average, fpr, tpr, auc}``, where either ``class``
    or ``average`` is None, and ``undefined``, class name → reason. A curve of more than
    :data:`MAX_POINTS` points is redrawn with that many points of the same broken line; its area
    then differs from ``auc`` by at most 0.0026.
    """

    def macro(curves: Sequence[_Curve]) -> _Curve:
        # Each curve jumps at some fpr, so its mean needs the height before and after each jump:
        # np.interp takes the last of equal abscissas, and the first one when mirrored.
        fpr = np.unique(np.concatenate([x for x, _ in curves]))
        after = np.mean([np.interp(fpr, x, y) for x, y in curves], axis=0)
        before = np.mean([np.interp(-fpr, -x[::-1], y[::-1]) for x, y in curves], axis=0)
        return np.repeat(fpr, 2), np.column_stack([before, after]).ravel()

    def drawn(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> dict[str, Any]:
        area = float(auc(fpr, tpr))
        if len(fpr) > MAX_POINTS:
            # Along h = fpr + tpr the line is single-valued and its slope lies in [0, 1], so one
            # step of width h changes the area by at most h²/8: 198 of 2/198 give at most 0.0026.
            along = np.linspace(0, 2, MAX_POINTS)
            fpr = np.interp(along, fpr + tpr, fpr)
            tpr = along - fpr
        return {"fpr": _rounded(fpr), "tpr": _rounded(tpr), "auc": area}

    return _one_vs_rest(predictions, lambda *rows: roc_curve(*rows)[:2], macro, drawn)


def pr_curves(predictions: Predictions) -> dict[str, Any]:
    """Precision-recall curves, one class against the rest, with micro and macro averages.

    Draw them as steps: between two points the precision is that of the *right* one, which is how
    average precision adds up. The point at recall 0 only repeats the first step.

    Returned are ``curves``, a list of ``{class, average, recall, precision, average_precision}``,
    and ``undefined`` as above. A curve of more than :data:`MAX_POINTS` points, and the macro
    average always, is given as its mean precision over equal steps of recall, which keeps the area.
    """

    def full(member: NDArray[np.bool_], score: NDArray[np.float64]) -> _Curve:
        precision, recall, _ = precision_recall_curve(member, score, drop_intermediate=True)
        # Points at recall 0 do not count in the area, and scikit-learn's (0, 1) is no measurement.
        found = recall > 0
        recall, precision = recall[found][::-1], precision[found][::-1]
        return np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])

    def even_steps(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> _Curve:
        # The integral of a step function is a broken line: read at any recall without error.
        integral = np.concatenate([[0.0], np.cumsum(np.diff(recall) * precision[1:])])
        edges = np.linspace(0, 1, MAX_POINTS)
        means = np.diff(np.interp(edges, recall, integral)) / np.diff(edges)
        return edges, np.concatenate([means[:1], means])

    def macro(curves: Sequence[_Curve]) -> _Curve:
        recall, precision = zip(*(even_steps(*curve) for curve in curves), strict=True)
        return recall[0], np.mean(precision, axis=0)

    def drawn(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> dict[str, Any]:
        area = float(np.sum(np.diff(recall) * precision[1:]))
        if len(recall) > MAX_POINTS:
            recall, precision = even_steps(recall, precision)
        points = {"recall": _rounded(recall), "precision": _rounded(precision)}
        return {**points, "average_precision": area}

    return _one_vs_rest(predictions, full, macro, drawn)


def _one_vs_rest(
    predictions: Predictions,
    full: Callable[[NDArray[np.bool_], NDArray[np.float64]], _Curve],
    macro: Callable[[Sequence[_Curve]], _Curve],
    drawn: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Return the curve of each class that has one, then the micro and the macro average.

    ``full`` computes a curve, ``macro`` averages those of the classes, ``drawn`` is what is shown.
    """
    scores = predictions.ranking
    if scores is None:
        raise ResultError("Curves need scores or probabilities; this method gives neither.")
    scores = scores[:, : len(predictions.classes)]
    members = predictions.y_true[:, None] == np.arange(len(predictions.classes))
    curves, undefined = {}, {}
    for name, member, score in zip(predictions.classes, members.T, scores.T, strict=True):
        if member.any() and not member.all():
            curves[name] = full(member, score)
        else:
            which = "every test row is" if member.any() else "no test row"
            undefined[name] = f"{which} of this class"
    entries = [{"class": name, "average": None, **drawn(*curve)} for name, curve in curves.items()]
    if curves:
        micro = full(members.ravel(), scores.ravel())
        averages = {"micro": micro, "macro": macro(list(curves.values()))}
        entries += [{"class": None, "average": a, **drawn(*curve)} for a, curve in averages.items()]
    return {"curves": entries, "undefined": undefined}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return values.round(_DECIMALS).tolist()
