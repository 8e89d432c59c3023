"""Metrics of predictions as plain data, with a reason where a metric has no value.

Nothing here is NaN and nothing undefined is reported as zero: a metric that the test rows do not
define is ``None`` and stands in ``undefined`` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, roc_auc_score

from featpipe.errors import ResultError
from featpipe.evaluate.confusion import Reasons, Values, fill_per_class, metrics_from_confusion
from featpipe.evaluate.curves import reliability
from featpipe.evaluate.predictions import Predictions
from featpipe.registry import did_you_mean

__all__ = ["TOP_K", "Predictions", "classification_metrics", "metrics_from_confusion"]

TOP_K = (2, 3, 5)

_SCORE_METRICS = (
    "roc_auc_macro", "roc_auc_weighted", "roc_auc_micro",
    "average_precision_macro", "average_precision_weighted", "average_precision_micro",
)  # fmt: skip
_PROBABILITY_METRICS = ("log_loss", "brier", "ece")


def classification_metrics(
    predictions: Predictions, without_source: Sequence[str] | None = None
) -> Values:
    """All metrics that the predictions allow, ready for JSON.

    Parameters
    ----------
    predictions : Predictions
    without_source : sequence of str, optional
        For a mapped classifier: target classes that no source class maps to. Their rows cannot
        be predicted right, so accuracy is given with and without them.

    Returns
    -------
    metrics : dict
        What :func:`metrics_from_confusion` returns and

        * ``top_2_accuracy``, ``top_3_accuracy``, ``top_5_accuracy``: share of rows whose true
          class is among the k highest columns; a tie counts against the method;
        * ``roc_auc_macro|weighted|micro``, ``average_precision_macro|weighted|micro``: one class
          against the rest; macro and weighted over the classes for which it is defined. Each
          entry of ``per_class`` has its ``roc_auc`` and ``average_precision`` too;
        * ``log_loss`` (natural logarithm); ``brier``: mean over rows of the squared distance
          between the probabilities and the true class, 0 to 2 (Brier 1950); ``ece``: expected
          calibration error of :func:`featpipe.evaluate.curves.reliability`, 15 equal-width bins;
        * with ``without_source``: ``classes_without_source`` and ``accuracy_with_source``,
          the accuracy on rows of the other classes.

    Raises
    ------
    ResultError
        If ``without_source`` names a class that there is not.
    """
    columns = range(len(predictions.columns))
    confusion = confusion_matrix(predictions.y_true, predictions.y_pred, labels=columns)
    values = metrics_from_confusion(
        confusion[: len(predictions.classes)], predictions.classes, predictions.other
    )
    undefined: Reasons = values.pop("undefined")
    if without_source is not None:
        values |= _with_source(predictions, without_source, undefined)
    values |= _top_k(predictions, undefined)
    values |= _one_vs_rest(predictions, values["per_class"], undefined)
    values |= _probability_metrics(predictions, undefined)
    return {**values, "undefined": undefined}


def _with_source(
    predictions: Predictions, without_source: Sequence[str], undefined: Reasons
) -> Values:
    for name in without_source:
        if name not in predictions.classes:
            raise ResultError(
                f"There is no class named {name!r}.",
                expected=", ".join(predictions.classes),
                next_step=did_you_mean(name, predictions.classes).strip() or None,
            )
    lacking = [i for i, name in enumerate(predictions.classes) if name in set(without_source)]
    rows = ~np.isin(predictions.y_true, lacking)
    if not rows.any():
        undefined["accuracy_with_source"] = "no test row of a class that has a source class"
    return {
        "classes_without_source": [predictions.classes[i] for i in lacking],
        "accuracy_with_source": float(predictions.correct[rows].mean()) if rows.any() else None,
    }


def _top_k(predictions: Predictions, undefined: Reasons) -> Values:
    values: Values = {f"top_{k}_accuracy": None for k in TOP_K}
    scores = predictions.ranking
    if scores is None:
        undefined.update(dict.fromkeys(values, "the method gives no scores"))
        return values
    true = np.take_along_axis(scores, np.asarray(predictions.y_true)[:, None], axis=1)
    # Unlike scikit-learn's top_k_accuracy_score, whose ties favour the later column, a tie counts
    # against the method: a neighbour vote leaves most classes tied at 0.
    rank = (scores >= true).sum(axis=1)
    for k in TOP_K:
        if scores.shape[1] > k:
            values[f"top_{k}_accuracy"] = float((rank <= k).mean())
        else:
            undefined[f"top_{k}_accuracy"] = f"needs more than {k} classes"
    return values


def _one_vs_rest(predictions: Predictions, per_class: list[Values], undefined: Reasons) -> Values:
    """ROC AUC and average precision; adds the values of each class to its entry."""
    scores, labels = predictions.ranking, np.arange(len(predictions.classes))
    if scores is None:
        undefined.update(dict.fromkeys(_SCORE_METRICS, "the method gives no scores"))
        return dict.fromkeys(_SCORE_METRICS)
    scores = scores[:, : len(labels)]
    members = np.asarray(predictions.y_true)[:, None] == labels
    support = members.sum(axis=0)
    defined = (support > 0) & (support < len(members))
    why = "the test rows are all or none of this class"
    values: Values = dict.fromkeys(_SCORE_METRICS)
    if not defined.any():
        undefined.update(dict.fromkeys(_SCORE_METRICS, "all test rows are of one class"))
    for name, area in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        each = np.full(len(labels), np.nan)
        each[defined] = [area(members[:, i], scores[:, i]) for i in labels[defined]]
        fill_per_class(per_class, name, each, why, undefined)
        if defined.any():
            values[f"{name}_macro"] = float(each[defined].mean())
            values[f"{name}_weighted"] = float(np.average(each[defined], weights=support[defined]))
            values[f"{name}_micro"] = float(area(members.ravel(), scores.ravel()))
    return values


def _probability_metrics(predictions: Predictions, undefined: Reasons) -> Values:
    confidence = predictions.confidence
    if predictions.probabilities is None or confidence is None:
        why = "the method gives no probabilities"
        undefined.update(dict.fromkeys(_PROBABILITY_METRICS, why))
        return dict.fromkeys(_PROBABILITY_METRICS)
    probabilities = predictions.probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # float16 and float32 rounding
    columns = np.arange(len(predictions.columns))
    truth = np.asarray(predictions.y_true)[:, None] == columns
    values: Values = {
        "log_loss": None,
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "ece": reliability(confidence, predictions.correct)["ece"],
    }
    if len(columns) > 1:
        values["log_loss"] = float(log_loss(predictions.y_true, probabilities, labels=columns))
    else:
        undefined["log_loss"] = "there is only one class"
    return values
