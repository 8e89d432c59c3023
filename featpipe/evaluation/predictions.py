"""What a method answered on some test rows: the one input of all metrics and curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import ResultError
from featpipe.labelmap import OTHER

# Softmax outputs of 10 to 1000 classes rounded to float16 were off by at most 4e-4.
_SUM_TOLERANCE = 2e-3


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted and true classes of test rows, with scores where the method has them.

    The same id may occur several times: once for each of the models (folds, seeds) that
    predicted the row.

    Parameters
    ----------
    ids : ndarray of shape (n,), str
        Which image each row is.
    y_true : ndarray of shape (n,), int
        True class, an index into ``classes``; every row is labelled.
    y_pred : ndarray of shape (n,), int
        Predicted class; ``len(classes)`` means "other" where ``other`` is set.
    classes : tuple of str
        Names of the target classes.
    scores : ndarray of shape (n, k) or (n, k + 1), float, optional
        Anything that orders the classes of a row (a decision function, logits); the column
        ``k`` belongs to "other". A two-class decision function ``d`` is given as ``(-d, d)``.
    probabilities : ndarray of shape (n, k), or (n, k + 1) with ``other``, float, optional
        Probabilities of all columns; each row adds up to one.
    other : bool
        Whether the method may also answer "other", which is never a true class.

    Raises
    ------
    ResultError
        If the parts do not belong together: lengths, labels or columns differ, a score is not
        finite, probabilities do not add up to one, there is no row.

    Examples
    --------
    >>> p = Predictions(np.array(["a", "b"]), np.array([0, 1]), np.array([0, 2]),
    ...                 ("cat", "dog"), other=True)
    >>> p.columns, p.correct.tolist()
    (('cat', 'dog', 'other'), [True, False])
    """

    ids: NDArray[Any]
    y_true: NDArray[np.int64]
    y_pred: NDArray[np.int64]
    classes: tuple[str, ...]
    scores: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    other: bool = False

    def __post_init__(self) -> None:
        if len(self.y_true) == 0:
            raise ResultError("There are no test rows to judge.")
        if len(set(self.columns)) != len(self.columns):
            raise ResultError("Two classes have the same name.", got=", ".join(self.columns))
        if not len(self.ids) == len(self.y_true) == len(self.y_pred):
            raise ResultError(
                "Predictions do not belong together: their lengths differ.",
                got=f"{len(self.ids)} ids, {len(self.y_true)} labels, {len(self.y_pred)} answers",
            )
        self._check_labels("true class", self.y_true, len(self.classes))
        self._check_labels("predicted class", self.y_pred, len(self.columns))
        self._check_columns("scores", self.scores, {len(self.classes), len(self.columns)})
        self._check_columns("probabilities", self.probabilities, {len(self.columns)})
        if self.probabilities is None:
            return
        total, lowest = self.probabilities.sum(axis=1, dtype=np.float64), self.probabilities.min(1)
        wrong = np.flatnonzero((np.abs(total - 1) > _SUM_TOLERANCE) | (lowest < 0))
        if len(wrong):
            raise ResultError(
                "Probabilities must be between 0 and 1 and add up to 1.",
                where=f"row {wrong[0]} ({self.ids[wrong[0]]})",
                got=f"sum {total[wrong[0]]:.4f}, lowest {lowest[wrong[0]]:.4f}",
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the possible answers: the classes and, where allowed, "other"."""
        return (*self.classes, OTHER) if self.other else self.classes

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each row was predicted right, shape (n,)."""
        return np.asarray(self.y_true) == np.asarray(self.y_pred)

    @property
    def ranking(self) -> NDArray[np.float64] | None:
        """Scores, or else probabilities, as float64; None where there are neither."""
        values = self.probabilities if self.scores is None else self.scores
        return None if values is None else np.asarray(values, dtype=np.float64)

    @property
    def confidence(self) -> NDArray[np.float64] | None:
        """Probability that the method gave to its own answer, shape (n,)."""
        if self.probabilities is None:
            return None
        chosen = np.take_along_axis(self.probabilities, np.asarray(self.y_pred)[:, None], axis=1)
        return np.clip(chosen[:, 0].astype(np.float64), 0.0, 1.0)

    def _check_labels(self, what: str, labels: NDArray[Any], limit: int) -> None:
        wrong = np.flatnonzero((np.asarray(labels) < 0) | (np.asarray(labels) >= limit))
        if len(wrong):
            raise ResultError(
                f"A {what} is none of the classes.",
                where=f"row {wrong[0]} ({self.ids[wrong[0]]}), {len(wrong)} such rows",
                expected=f"0 to {limit - 1}",
                got=labels[wrong[0]],
            )

    def _check_columns(self, what: str, values: NDArray[Any] | None, widths: set[int]) -> None:
        if values is None:
            return
        if values.ndim != 2 or len(values) != len(self.y_true) or values.shape[1] not in widths:
            allowed = " or ".join(f"({len(self.y_true)}, {width})" for width in sorted(widths))
            raise ResultError(
                f"The {what} do not have one column per class.",
                expected=f"shape {allowed}",
                got=f"shape {values.shape}",
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise ResultError(
                f"The {what} hold values that are not finite.", where=f"row {row} ({self.ids[row]})"
            )
