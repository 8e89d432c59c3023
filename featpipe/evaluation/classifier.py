"""What a fitted classifier answers: classes, scores, probabilities.

A linear one can be written as one matrix, which needs neither scikit-learn nor a pickle to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-6  # a probability of zero, of which there is no logarithm
_ROWS = 16  # on which the matrix is compared with the estimator
# Classifiers of scikit-learn whose probabilities are the softmax of their scores. A comparison of
# values would not show it: where all scores are large, those of others are 0 and 1 as well.
_SOFTMAX = ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis")


def predict_with_scores(
    estimator: Any, X: NDArray[Any], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, bool]:
    """Return predictions, a score for every class of the dataset, and whether it is a probability.

    Classes without training rows get a score below all others, or probability zero.
    """
    predicted = estimator.predict(X).astype(np.int64)
    probabilities = hasattr(estimator, "predict_proba")
    if probabilities:
        known = estimator.predict_proba(X)
    elif hasattr(estimator, "decision_function"):
        known = estimator.decision_function(X)
        if known.ndim == 1:  # scikit-learn gives one column for two classes
            known = np.column_stack([-known, known])
    else:
        return predicted, None, False
    lowest = 0.0 if probabilities else float(known.min()) - 1.0
    scores = np.full((len(known), n_classes), lowest, dtype=np.float32)
    scores[:, estimator.classes_] = known
    return predicted, scores, probabilities


def as_logits(scores: NDArray[Any], *, graded: bool) -> NDArray[np.float64]:
    """Return scores as they are, and probabilities (``graded``) as their logarithms."""
    values = np.asarray(scores, dtype=np.float64)
    return np.log(np.maximum(values, LEAST)) if graded else values


def to_probabilities(
    scores: NDArray[Any], known: NDArray[np.int64], temperature: float, *, graded: bool
) -> NDArray[np.float64]:
    """Return a probability for every class, of shape (n, classes); those not ``known`` have 0."""
    logits = as_logits(scores[:, known], graded=graded) / temperature
    found = np.zeros(scores.shape)
    found[:, known] = softmax(logits)
    return found


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities whose logits, up to a constant in each row, are scores (n, k)."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Scores are features times ``weight`` plus ``bias``; the class of the highest is predicted.

    It answers as a fitted estimator of scikit-learn does.

    Attributes
    ----------
    weight : array of shape (d, k), float64
    bias : array of shape (k,), float64
    classes_ : array of shape (k,), int64
        Labels of the columns, ascending.
    unit : bool
        Whether features are scaled to length 1 first.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes_: NDArray[np.int64]
    unit: bool

    def __post_init__(self) -> None:
        weight, bias, known = self.weight, self.bias, self.classes_
        if not (
            weight.shape == (len(weight), len(known)) == (len(weight), *bias.shape)
            and weight.dtype == bias.dtype == np.float64
            and known.dtype == np.int64
            and (np.diff(known) > 0).all()
        ):
            raise ValueError("its numbers do not fit together")

    @property
    def n_features_in_(self) -> int:
        """Return the number of features."""
        return len(self.weight)

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of features (n, d), of shape (n, k) for two classes, too."""
        rows = np.asarray(X, dtype=np.float64)
        if self.unit:
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(length == 0, 1, length)
        return rows @ self.weight + self.bias

    def predict(self, X: NDArray[Any]) -> NDArray[np.int64]:
        """Return the predicted classes, of shape (n,)."""
        return self.classes_[self.decision_function(X).argmax(axis=1)]


class SoftmaxClassifier(LinearClassifier):
    """A linear classifier whose scores are the logits of its probabilities."""

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities, of shape (n, k)."""
        return softmax(self.decision_function(X))


def linear_form(estimator: Any) -> LinearClassifier | None:
    """Return a fitted classifier as a matrix, or ``None`` if it is not known to be linear.

    Known are classifiers with ``coef_`` and ``intercept_``, one-vs-rest combinations of them, and
    the nearest mean; after scaling of features to mean 0 and deviation 1; after scaling of rows to
    length 1. The answers of the matrix are compared with those of the classifier.
    """
    if isinstance(estimator, LinearClassifier):
        return estimator
    *before, last = [part for _, part in getattr(estimator, "steps", [("", estimator)])]
    parts = getattr(last, "estimators_", [last])
    graded, k = hasattr(estimator, "predict_proba"), len(estimator.classes_)
    known = not graded or type(last).__name__ in _SOFTMAX
    if not (known and hasattr(estimator, "decision_function")):
        return None
    if all(isinstance(getattr(part, "coef_", None), np.ndarray) for part in parts):
        weight = np.concatenate([np.atleast_2d(part.coef_) for part in parts]).T
        bias = np.concatenate([np.atleast_1d(part.intercept_) for part in parts])
    elif isinstance(getattr(last, "means_", None), np.ndarray):
        weight, bias = last.means_.T, -(last.means_**2).sum(axis=1) / 2
    else:
        return None
    if k == 2:  # one score decides, and the other is its opposite; of probabilities, it is 0
        one = weight[:, -1:] - weight[:, :-1].sum(axis=1, keepdims=True)
        shift = bias[-1:] - bias[:-1].sum()
        weight = np.hstack([one * 0 if graded else -one, one])
        bias = np.concatenate([shift * 0 if graded else -shift, shift])
    labels = np.asarray(estimator.classes_, dtype=np.int64)
    ascending = (np.diff(labels) > 0).all()
    if weight.shape != (estimator.n_features_in_, k) or bias.shape != (k,) or not ascending:
        return None
    while before and hasattr(before[-1], "scale_") and hasattr(before[-1], "mean_"):
        scaler = before.pop()
        weight = weight / (1.0 if scaler.scale_ is None else scaler.scale_[:, None])
        bias = bias - (scaler.mean_ @ weight if scaler.with_mean else 0.0)
    unit = [getattr(part, "norm", None) for part in before] == ["l2"]
    if before and not unit:
        return None
    kind = SoftmaxClassifier if graded else LinearClassifier
    found = kind(weight.astype(np.float64), bias.astype(np.float64), labels, unit)
    rows = np.random.default_rng(0).normal(size=(_ROWS, len(weight)))
    scores, got = np.asarray(estimator.decision_function(rows)), found.decision_function(rows)
    got = got[:, 1] if k == 2 else got
    same = scores.shape == got.shape and np.allclose(
        got, scores, rtol=1e-6, atol=1e-6 * np.abs(scores).max()
    )
    if same and isinstance(found, SoftmaxClassifier):
        same = np.allclose(found.predict_proba(rows), estimator.predict_proba(rows), atol=1e-5)
    return found if same and (found.predict(rows) == estimator.predict(rows)).all() else None
