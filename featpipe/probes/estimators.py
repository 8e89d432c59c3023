"""The estimators of probes: scikit-learn's, and one that it does not have."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = [
    "KNeighborsClassifier", "LinearSVC", "LogisticRegression", "NearestMean", "Normalizer",
    "OneVsRestClassifier", "StandardScaler", "make_pipeline",
]  # fmt: skip


class NearestMean(ClassifierMixin, BaseEstimator):
    """Classify by the nearest class mean, scored by the same distance.

    scikit-learn's NearestCentroid predicts by plain distances but scores by distances in units of
    the deviation within classes: its scores belong to a different classifier than its predictions,
    and with one training row per class they are 0 / 0.

    Examples
    --------
    >>> model = NearestMean().fit([[0.0], [1.0], [4.0]], ["low", "low", "high"])
    >>> model.predict([[2.0], [3.0]]).tolist()
    ['low', 'high']
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn ``means_``, of shape (n_classes, n_features), float64."""
        rows, labels = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(labels)
        self.classes_, members = np.unique(labels, return_inverse=True)
        self.means_ = np.stack(
            [rows[members == c].mean(axis=0, dtype=np.float64) for c in range(len(self.classes_))]
        )
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return x·m − ‖m‖²/2, which is largest for the class mean m nearest to x.

        Of shape (n, n_classes), or (n,) for two classes.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the nearest mean, of shape (n,)."""
        nearest = self._scores(X).argmax(axis=1)
        return self.classes_[nearest]

    def _scores(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        means = self.means_.astype(rows.dtype)
        return rows @ means.T - (means**2).sum(axis=1) / 2
