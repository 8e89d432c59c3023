"""Predictions of test rows, and their metrics as plain data.

Nothing here is NaN and nothing undefined is reported as zero: a metric that the test rows do not
define is ``None``, and ``undefined`` holds the reason. ``docs/evaluation.md`` defines each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, roc_auc_score

from featpipe.errors import ResultError
from featpipe.evaluation.result import PredictionTable
from featpipe.labelmap import OTHER
from featpipe.statistics.intervals import mean_sd

TOP_K = (2, 3, 5)
ECE_BINS = 15  # the number of Guo et al. 2017, section 2

# Softmax outputs of 10 to 1000 classes rounded to float16 were off by at most 4e-4.
_SUM_TOLERANCE = 2e-3

Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted and true classes of test rows, with scores where the method has them.

    The same id may occur several times: once for each model (fold, seed) that predicted the row.
    Parts that do not belong together are a ``ResultError``.
    """

    ids: NDArray[Any]  # which image each row is, (n,)
    y_true: NDArray[np.int64]  # index into classes, (n,); every row is labelled
    y_pred: NDArray[np.int64]  # (n,); len(classes) means "other" where that is set
    classes: tuple[str, ...]  # the k target classes
    # What orders the classes of a row (a decision function, logits), (n, k) or (n, k + 1): the last
    # column is that of "other". A two-class decision function d is given as (-d, d).
    scores: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None  # of all columns; each row adds up to one
    other: bool = False  # whether the method may answer "other", which is never a true class

    def __post_init__(self) -> None:
        n, k, width = len(self.y_true), len(self.classes), len(self.columns)
        if n == 0:
            raise ResultError("There are no test rows.")
        if len(set(self.columns)) != width:
            raise ResultError("Two classes have the same name.", got=", ".join(self.columns))
        if not len(self.ids) == n == len(self.y_pred):
            what = "Predictions do not belong together: their lengths differ."
            got = f"{len(self.ids)} ids, {n} labels, {len(self.y_pred)} answers"
            raise ResultError(what, got=got)
        for what, labels, limit in (("true", self.y_true, k), ("predicted", self.y_pred, width)):
            message, expected = f"A {what} class is none of the classes.", f"0 to {limit - 1}"
            self._refuse((labels < 0) | (labels >= limit), message, labels, expected)
        for what, values, widths in (
            ("scores", self.scores, sorted({k, width})),
            ("probabilities", self.probabilities, [width]),
        ):
            if values is None:
                continue
            if values.ndim != 2 or len(values) != n or values.shape[1] not in widths:
                message = f"The {what} do not have one column per class."
                expected = "shape " + " or ".join(f"({n}, {width})" for width in widths)
                raise ResultError(message, expected=expected, got=f"shape {values.shape}")
            wrong = ~np.isfinite(values).all(axis=1)
            self._refuse(wrong, f"The {what} hold values that are not finite.", values)
        if (likely := self.probabilities) is not None:
            total = likely.sum(axis=1, dtype=np.float64)
            wrong = (np.abs(total - 1) > _SUM_TOLERANCE) | (likely.min(axis=1) < 0)
            self._refuse(wrong, "Probabilities must be between 0 and 1 and add up to 1.", likely)

    def _refuse(
        self, wrong: NDArray[np.bool_], message: str, got: NDArray[Any], expected: str | None = None
    ) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            where = f"row {row} ({self.ids[row]}), {np.count_nonzero(wrong)} such rows"
            raise ResultError(message, where=where, expected=expected, got=got[row])

    @classmethod
    def of_table(
        cls, table: PredictionTable, classes: Sequence[str], *, other: bool, probabilities: bool
    ) -> Predictions:
        """Return all predictions of a table, those of several models to a row one by one."""
        scores, likely = (None, table.scores) if probabilities else (table.scores, None)
        ids, true = table.ids[table.row], table.true[table.row]
        return cls(ids, true, table.predicted, tuple(classes), scores, likely, other)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the possible answers: the classes and, where allowed, "other"."""
        return (*self.classes, OTHER) if self.other else self.classes

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each row was predicted right, shape (n,)."""
        return self.y_true == self.y_pred

    @property
    def ranking(self) -> NDArray[np.float64] | None:
        """Scores or, without them, probabilities, as float64; None if there are neither."""
        values = self.probabilities if self.scores is None else self.scores
        return None if values is None else np.asarray(values, dtype=np.float64)

    @property
    def confidence(self) -> NDArray[np.float64] | None:
        """Probability that the method gave to its own answer, shape (n,)."""
        if self.probabilities is None:
            return None
        chosen = np.take_along_axis(self.probabilities, self.y_pred[:, None], axis=1)
        return np.clip(chosen[:, 0].astype(np.float64), 0.0, 1.0)


class _Undefined(str):
    """Why a metric has no value."""


def classification_metrics(
    predictions: Predictions, without_source: Sequence[str] | None = None
) -> Values:
    """All metrics that the predictions allow, ready for JSON.

    ``without_source`` are, for a mapped classifier, target classes that no source class maps to.
    Their rows cannot be predicted right, so accuracy is given with and without them.
    """
    columns = np.arange(len(predictions.columns))
    confusion = confusion_matrix(predictions.y_true, predictions.y_pred, labels=columns)
    counts = confusion[: len(predictions.classes)]
    values = metrics_from_confusion(counts, predictions.classes, predictions.other)
    if without_source is not None:
        lacking = np.isin(predictions.classes, without_source)
        rows = ~lacking[predictions.y_true]
        none = _Undefined("no test row of a class that has a source class")
        values["classes_without_source"] = np.array(predictions.classes)[lacking].tolist()
        right = predictions.correct[rows]
        values["accuracy_with_source"] = float(right.mean()) if rows.any() else none
    values |= _ranking_metrics(predictions, values["per_class"])
    likely = predictions.probabilities
    if likely is None:
        why = _Undefined("the method gives no probabilities")
        return _with_reasons({**values, "log_loss": why, "brier": why, "ece": why})
    likely = likely.astype(np.float64)
    likely /= likely.sum(axis=1, keepdims=True)  # float16 and float32 rounding
    values["log_loss"] = _Undefined("there is only one class")
    if len(columns) > 1:
        values["log_loss"] = float(log_loss(predictions.y_true, likely, labels=columns))
    gaps = likely - (predictions.y_true[:, None] == columns)
    values["brier"] = float((gaps**2).sum(axis=1).mean())
    values["ece"] = reliability_curve(predictions)["ece"]
    return _with_reasons(values)


def metrics_from_confusion(
    confusion: ArrayLike, classes: Sequence[str], other: bool = False
) -> Values:
    """Metrics that a confusion matrix alone determines, ready for JSON.

    ``confusion``, of shape (k, k), has whole counts; rows are true classes, columns are predicted
    classes. With ``other`` a further, last column counts rows sent to "other".
    """
    matrix, shape = np.asarray(confusion), (len(classes), len(classes) + other)
    whole = np.issubdtype(matrix.dtype, np.integer)
    if matrix.shape != shape or not whole or matrix.min() < 0 or not matrix.any():
        what = "A confusion matrix holds whole, non-negative counts, not all zero."
        expected = f"shape {shape}: true classes × predicted classes"
        raise ResultError(what, expected=expected, got=f"{matrix.dtype} of shape {matrix.shape}")
    n, hits = int(matrix.sum()), np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)[: len(classes)]
    present, weight = support > 0, support / support.sum()
    answered = present | (predicted > 0)
    entries = [
        {"class": name, "support": int(support[i]), "predicted": int(predicted[i])}
        for i, name in enumerate(classes)
    ]
    recall = _ratio(hits, support)
    values: Values = {"n": n, "accuracy": float(hits.sum() / n)}
    values["balanced_accuracy"] = float(np.nanmean(recall))
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


def metrics_over_models(each: Sequence[Values], pooled: Predictions) -> tuple[Values, Values]:
    """Return the metrics of several models together, and the spread of each metric over them.

    Counts and calibration are those of the pooled predictions: the few rows of a split leave noise
    in every bin, which averaging would keep. Metrics of a ranking are averaged over the models,
    because scores of different models have no common scale.
    """
    counts = np.sum([metrics["confusion"] for metrics in each], axis=0)
    values = metrics_from_confusion(counts, pooled.classes, pooled.other)
    if pooled.confidence is not None:
        values["ece"] = reliability_curve(pooled)["ece"]
    spread: Values = {}
    for name, one in each[0].items():
        if not (isinstance(one, float) or name in each[0]["undefined"]):
            continue
        reasons = [metrics["undefined"][name] for metrics in each if metrics[name] is None]
        if not reasons:
            spread[name] = mean_sd([metrics[name] for metrics in each])
            values.setdefault(name, spread[name]["mean"])
        elif name not in values:
            values[name] = None
            values["undefined"][name] = f"{reasons[0]} (in {len(reasons)} of {len(each)} splits)"
    for entry, *entries in zip(values["per_class"], *(m["per_class"] for m in each), strict=True):
        for name in [name for name in entries[0] if name not in entry]:  # in a fixed order
            if all(one.get(name) is not None for one in entries):
                entry[name] = float(np.mean([one[name] for one in entries]))
    return values, spread


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


def _ranking_metrics(predictions: Predictions, entries: list[Values]) -> Values:
    """Top-k, ROC AUC and average precision; adds the areas of each class to its entry."""
    areas = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
    averages = [f"{name}_{average}" for name in areas for average in ("macro", "weighted", "micro")]
    scores, truth = predictions.ranking, predictions.y_true[:, None]
    if scores is None:
        names = [f"top_{k}_accuracy" for k in TOP_K] + averages
        return dict.fromkeys(names, _Undefined("the method gives no scores"))
    # Unlike scikit-learn's top_k_accuracy_score, whose ties favour the later column, a tie counts
    # against the method: a neighbour vote leaves most classes tied at 0.
    rank = (scores >= np.take_along_axis(scores, truth, axis=1)).sum(axis=1)
    values: Values = dict.fromkeys(averages, _Undefined("all test rows are of one class"))
    for k in TOP_K:
        few = _Undefined(f"needs more than {k} classes")
        values[f"top_{k}_accuracy"] = float((rank <= k).mean()) if scores.shape[1] > k else few
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


def reliability_curve(predictions: Predictions, bins: int = ECE_BINS) -> dict[str, Any]:
    """Reliability diagram and expected calibration error (ECE).

    Equal-width bins ``(i/bins, (i+1)/bins]`` of the probability given to the predicted class;
    ``ece = Σ count/n · |accuracy − confidence|`` (Guo et al. 2017, "On calibration of modern neural
    networks", equation 3). scikit-learn's ``calibration_curve`` knows two classes only. Returned
    are ``ece`` and ``bins``, a list of ``{low, high, count, confidence, accuracy}``; means of an
    empty bin are None.
    """
    confidence = predictions.confidence
    if confidence is None:
        raise ResultError("A reliability curve needs probabilities; this method gives none.")
    edges, which = np.linspace(0, 1, bins + 1), confidence_bins(confidence, bins)
    count = np.bincount(which, minlength=bins)
    confident = np.bincount(which, weights=confidence, minlength=bins)
    right = np.bincount(which, weights=predictions.correct, minlength=bins)
    table = [
        {
            "low": round(float(edges[i]), 5),
            "high": round(float(edges[i + 1]), 5),
            "count": int(count[i]),
            "confidence": float(confident[i] / count[i]) if count[i] else None,
            "accuracy": float(right[i] / count[i]) if count[i] else None,
        }
        for i in range(bins)
    ]
    return {"ece": float(np.abs(confident - right).sum() / len(confidence)), "bins": table}


def confidence_bins(confidence: NDArray[np.float64], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """Return the bin of the reliability diagram that each probability is in, of shape (n,)."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
