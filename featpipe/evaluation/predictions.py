"""Predictions of a method on some test rows: the only input of metrics and curves."""

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

    The same id may occur several times: once for each model (fold, seed) that predicted the row.

    Raises
    ------
    ResultError
        If the parts do not belong together: lengths, labels or columns differ, a score is not
        finite, probabilities do not add up to one, there is no row.
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
        n, k = len(self.y_true), len(self.classes)
        if n == 0:
            raise ResultError("There are no test rows.")
        if len(set(self.columns)) != len(self.columns):
            raise ResultError("Two classes have the same name.", got=", ".join(self.columns))
        if not len(self.ids) == n == len(self.y_pred):
            raise ResultError(
                "Predictions do not belong together: their lengths differ.",
                got=f"{len(self.ids)} ids, {n} labels, {len(self.y_pred)} answers",
            )
        for what, labels, limit in (
            ("true class", np.asarray(self.y_true), k),
            ("predicted class", np.asarray(self.y_pred), len(self.columns)),
        ):
            expected = f"0 to {limit - 1}"
            wrong = (labels < 0) | (labels >= limit)
            self._refuse(wrong, f"A {what} is none of the classes.", labels, expected)
        for what, values, widths in (
            ("scores", self.scores, {k, len(self.columns)}),
            ("probabilities", self.probabilities, {len(self.columns)}),
        ):
            if values is None:
                continue
            if values.ndim != 2 or len(values) != n or values.shape[1] not in widths:
                raise ResultError(
                    f"The {what} do not have one column per class.",
                    expected="shape " + " or ".join(f"({n}, {width})" for width in sorted(widths)),
                    got=f"shape {values.shape}",
                )
            wrong = ~np.isfinite(values).all(axis=1)
            self._refuse(wrong, f"The {what} hold values that are not finite.", values)
        if self.probabilities is not None:
            total = self.probabilities.sum(axis=1, dtype=np.float64)
            wrong = (np.abs(total - 1) > _SUM_TOLERANCE) | (self.probabilities.min(axis=1) < 0)
            message = "Probabilities must be between 0 and 1 and add up to 1."
            self._refuse(wrong, message, self.probabilities)

    def _refuse(
        self, wrong: NDArray[np.bool_], message: str, got: NDArray[Any], expected: str | None = None
    ) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            where = f"row {row} ({self.ids[row]}), {np.count_nonzero(wrong)} such rows"
            raise ResultError(message, where=where, expected=expected, got=got[row])

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
