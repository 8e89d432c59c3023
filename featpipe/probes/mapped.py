"""A frozen source classifier's logits, mapped to target classes plus "other"."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array

POLICIES = ("argmax", "group", "restricted")


class MappedClassifier(ClassifierMixin, BaseEstimator):
    """Classify by stored logits of a source classifier and a label map.

    Nothing is learned: ``fit`` only notes the classes, so that scikit-learn's tools accept it.

    Parameters
    ----------
    columns : ndarray of shape (n_source,), int64
        For each source class the target class it stands for; ``n_targets`` means "other".
    n_targets : int
        Number of target classes, "other" not counted.
    policy : {"argmax", "group", "restricted"}
        ``argmax``: the highest of all source classes, mapped. ``group``: probabilities summed
        within each target class and within "other". ``restricted``: the highest of those source
        classes that stand for a target class; "other" is never predicted.

    Examples
    --------
    >>> logits = np.log([[0.4, 0.3, 0.3], [0.2, 0.5, 0.3]])  # source classes: cat, ox, dog
    >>> to = np.array([0, 2, 1])                             # targets: cat, dog; ox is other
    >>> MappedClassifier(to, 2, "argmax").predict(logits)
    array([0, 2])
    >>> MappedClassifier(to, 2, "restricted").predict(logits)
    array([0, 1])
    """

    def __init__(
        self,
        columns: ArrayLike,
        n_targets: int,
        policy: str = "argmax",
    ) -> None:
        self.columns = columns
        self.n_targets = n_targets
        self.policy = policy

    def fit(self, X: ArrayLike | None = None, y: ArrayLike | None = None) -> Self:
        """Learn nothing; ``classes_`` counts the target classes and "other"."""
        self.classes_ = np.arange(self.n_targets + 1)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return a probability for each target class and, last, for "other".

        Under ``argmax`` and ``restricted`` a target's share is that of its most probable source
        class, normalised, so that the highest probability is always the prediction.

        Parameters
        ----------
        X : array-like of shape (n, n_source)
            Logits.

        Returns
        -------
        probabilities : ndarray of shape (n, n_targets + 1)

        Raises
        ------
        ValueError
            If ``X`` is not finite or not as wide as the map, or there is no such policy.
        """
        columns = np.asarray(self.columns)
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {self.policy!r}")
        logits = check_array(X, dtype=np.float64)
        if logits.shape[1] != len(columns):
            raise ValueError(f"X has {logits.shape[1]} columns, the map {len(columns)}")
        if self.policy == "restricted":
            logits = np.where(columns < self.n_targets, logits, -np.inf)
        source = softmax(logits, axis=1)
        pool = np.sum if self.policy == "group" else np.max
        pooled = np.zeros((len(source), self.n_targets + 1))
        for target in range(self.n_targets + 1):
            members = source[:, columns == target]
            if members.shape[1]:
                pooled[:, target] = pool(members, axis=1)
        return pooled / pooled.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return target classes; ``n_targets`` means "other".

        Parameters
        ----------
        X : array-like of shape (n, n_source)
            Logits.
        """
        return self.predict_proba(X).argmax(axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # there is nothing to fit

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
