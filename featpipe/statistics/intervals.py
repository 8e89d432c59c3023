"""Confidence intervals of means over test rows.

The unit is the test row (the image). Where several models predicted the same rows, their answers
to one row are not independent: the rows are then resampled whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from featpipe.errors import ResultError

CONFIDENCE = 0.95
RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, ``low <= value <= high``.

    ``method`` says how the limits were found, in words for a table's footnote.
    """

    value: float
    low: float
    high: float
    method: str
    confidence: float = CONFIDENCE

    as_dict = asdict  # ready for JSON


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1; None for one) over n models (folds or seeds).

    The deviation describes how much models differ and is no basis for an interval: folds share
    training and test rows, and no unbiased estimate of their variance exists (Bengio and
    Grandvalet 2004, JMLR 5).
    """

    mean: float
    sd: float | None
    n: int

    as_dict = asdict


class RowSums(NamedTuple):
    """The distinct rows, sorted, with the sum and the number of the values of each."""

    ids: NDArray[Any]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22: 209–212).

    Raises
    ------
    ResultError
        If there is no row or more successes than rows.

    Examples
    --------
    >>> i = wilson(81, 263)
    >>> round(i.low, 4), round(i.high, 4)
    (0.2553, 0.3662)
    """
    if not 0 <= successes <= n or n == 0:
        raise ResultError(
            "A proportion needs at least one row, and no more successes than rows.",
            got=f"{successes} of {n}",
        )
    limits = stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    value = successes / n
    # At 0 and n successes rounding may leave the limit 1e-17 off the estimate.
    return Interval(value, min(float(limits.low), value), max(float(limits.high), value), "Wilson")


def bootstrap_mean(
    values: ArrayLike,
    rows: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean, rows resampled with all their values.

    The estimate is the mean of all values. A resample draws rows with replacement and takes each
    with all of its values (Davison and Hinkley 1997, section 3.8; Efron 1979). Rows with the same
    number and sum of values are interchangeable, so a resample is drawn as multinomial counts of
    the distinct kinds of row: the same distribution as drawing rows one by one. 8000 rows of ten
    right-or-wrong answers are of eleven kinds and take 0.1 s; each kind takes 80 kB of memory.

    ``values`` has one value per prediction, for example 1 for right and 0 for wrong; ``rows`` says
    which row each value belongs to, by default a different one.
    """
    values = np.asarray(values, dtype=np.float64)
    _, sums, counts = sum_by_row(np.arange(len(values)) if rows is None else rows, values)
    kinds, frequency = np.unique(np.stack([sums, counts]), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), frequency / len(sums), size=resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn @ kinds[0] / (drawn @ kinds[1]), [tail, 1 - tail])
    value = float(values.mean())
    method = f"bootstrap over rows, {resamples} resamples, seed {seed}"
    return Interval(value, min(float(low), value), max(float(high), value), method)


def accuracy_interval(correct: ArrayLike, rows: ArrayLike) -> Interval:
    """Interval of an accuracy: Wilson for independent rows, else a bootstrap over rows.

    Rows that leave a bootstrap nothing to vary (each has the same share of right answers) get
    Wilson's interval of as many rows as there are, rounded outwards, instead of one of width zero.

    ``correct`` says whether each prediction is right, ``rows`` which row (image id) it is about; an
    id occurs once for each model.
    """
    right = np.asarray(correct, dtype=np.float64)
    ids, sums, counts = sum_by_row(rows, right)
    n, share = len(ids), sums / counts
    if n == len(right):
        return wilson(int(right.sum()), n)
    if np.ptp(share) > 0:
        return bootstrap_mean(right, rows)
    low, high = (
        wilson(int(np.floor(share[0] * n)), n).low,
        wilson(int(np.ceil(share[0] * n)), n).high,
    )
    return Interval(float(right.mean()), low, high, "Wilson over rows (all rows alike)")


def mean_sd(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation over models.

    Examples
    --------
    >>> mean_sd([0.5, 0.7]).mean, mean_sd([0.5]).sd
    (0.6, None)
    """
    if len(values) == 0:
        raise ResultError("There are no values to average.")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, len(values))


def sum_by_row(rows: ArrayLike, values: ArrayLike) -> RowSums:
    """Add up the values of each row; ``rows`` says which row each value belongs to."""
    rows, values = np.asarray(rows), np.asarray(values, dtype=np.float64)
    if len(values) == 0 or len(values) != len(rows):
        raise ResultError(
            "There must be at least one value, and one row id for each.",
            got=f"{len(values)} values, {len(rows)} row ids",
        )
    ids, which, counts = np.unique(rows, return_inverse=True, return_counts=True)
    sums = np.bincount(which, weights=values).astype(np.float64)
    return RowSums(ids, sums, counts.astype(np.int64))
