"""The difference of two methods on the same test rows, and two tests of it.

There are two questions. *These trained models*, on other test images: an exact test over rows. *The
methods*, also trained on other images: a test over rows and training sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from featpipe.errors import ResultError
from featpipe.statistics.intervals import RowSums, sum_by_row
from featpipe.statistics.two_way import TrainingSets, Variance, two_way_variance

SMALLEST_P = 1e-300  # smaller p-values are given as this
ONE_TRAINING_SET = "one training set; --protocol folds or kfold:5 would answer it"
OTHER_TRAINING_SETS = "the two methods were trained on different images"
SAME_TRAINING_SET = "all models were trained on the same images"

_EXACT_STEPS = 1 << 18  # distributions with more support points are approximated


@dataclass(frozen=True, eq=False)
class Answers:
    """Which of the m predictions of a method are right."""

    rows: ArrayLike  # id of the test row of each
    correct: ArrayLike
    model: ArrayLike | None = None  # index into training.sets of the model behind each
    training: TrainingSets | None = None  # None for a method that trains nothing

    @classmethod
    def of(
        cls,
        rows: ArrayLike,
        correct: ArrayLike,
        split: NDArray[np.int64],
        about: Mapping[str, Any] | None,
    ) -> Answers:
        """Return answers by the split of each; ``about`` is ``training`` of a result's protocol."""
        if about is None:
            return cls(rows, correct)
        sets = tuple(about["sets"])
        training = TrainingSets(sets, about["rows"], about["overlap"], about["own_pool"])
        return cls(rows, correct, np.searchsorted(about["splits"], split), training)

    @cached_property
    def sums(self) -> RowSums:
        """The distinct rows with the number of predictions and of right ones."""
        return sum_by_row(self.rows, self.correct)

    @cached_property
    def by_training_set(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Keys (row · number of sets + set, ascending) and the share of right answers of each."""
        if self.training is None or self.model is None:
            raise ResultError("A method that trains nothing has no training sets.")
        _, row = np.unique(np.asarray(self.rows), return_inverse=True)
        names, number = np.unique(self.training.sets, return_inverse=True)
        cells = sum_by_row(row * len(names) + number[np.asarray(self.model)], self.correct)
        return cells.ids.astype(np.int64), cells.sums / cells.counts


@dataclass(frozen=True)
class Difference:
    """The accuracy of method a minus that of method b, with what a verdict about it needs."""

    value: float  # mean over test rows, each with the same weight
    centre: float  # of its interval
    variance: Variance  # of the centre
    p_value: float  # two-sided, of "neither is better"
    n: int  # test rows
    method: str
    wins: tuple[int, int]  # rows on which a is right more often than b, and the reverse

    def reach(self, alpha: float) -> float:
        """Half the width of the interval at confidence 1 − alpha."""
        return float(stats.t.ppf(1 - alpha / 2, self.variance.df) * np.sqrt(self.variance.total))


def between_models(a: Answers, b: Answers) -> Difference:
    """Test whether other test images would give the same order of these trained models.

    The statistic is the mean over rows of the difference of the two shares of right answers. Under
    the null hypothesis each row's difference has either sign with probability one half (Fisher's
    randomisation test). The differences are multiples of one number, so the distribution of their
    sum is a convolution of binomials and the p-value is exact; if that number is so small that
    the distribution has more than 260,000 points, the saddlepoint approximation of Lugannani and
    Rice (1980, Advances in Applied Probability 12: 475–490) is used. One prediction per row
    and method gives McNemar's exact test (McNemar 1947, Psychometrika 12: 153–157; Dietterich 1998,
    Neural Computation 10, recommends it for classifiers).

    The variance is that of Bonett and Price (2012, J. Educ. Behav. Stat. 37: 479–488): one row won
    by each method is added.

    Examples
    --------
    >>> a = Answers(range(21), [True] * 8 + [False] * 13)
    >>> b = Answers(range(21), [True] + [False] * 7 + [True] + [False] * 12)
    >>> test = between_models(a, b)
    >>> round(test.value, 4), round(test.p_value, 7), test.method
    (0.2857, 0.0703125, 'McNemar exact')
    """
    one, other = a.sums, b.sums
    if not np.array_equal(one.ids, other.ids):
        shared = len(np.intersect1d(one.ids, other.ids))
        got = f"{len(one.ids)} and {len(other.ids)} rows, {shared} shared"
        raise ResultError("The methods were tested on different rows.", got=got)
    # Each row's difference of the shares of right answers, in whole steps of 1 / unit.
    n, unit = len(one.ids), math.lcm(*{*one.counts.tolist(), *other.counts.tolist()})
    if unit < 2**62 // n:
        shares = [side.sums.astype(np.int64) * (unit // side.counts) for side in (one, other)]
    else:  # sums would overflow, and the exact test is out of reach: rounded steps will do
        unit = 2**52 // n
        shares = [np.rint(side.sums / side.counts * unit).astype(np.int64) for side in (one, other)]
    steps = shares[0] - shares[1]
    d = steps / unit
    centre = float(d.sum() / (n + 2))
    residuals = np.concatenate([d - centre, [1 - centre, -1 - centre]])
    variance = Variance(float((residuals**2).sum()) / (n + 2) ** 2)
    p_value, method = _sign_flip(steps)
    p_value = float(min(1.0, max(SMALLEST_P, p_value)))
    value, wins = float(steps.sum()) / (unit * n), (int((steps > 0).sum()), int((steps < 0).sum()))
    method = "McNemar exact" if unit == 1 else method
    return Difference(value, centre, variance, p_value, n, method, wins)


def between_methods(a: Answers, b: Answers, models: Difference) -> Difference | str:
    """Test whether other test images *and* other training images would give the same order.

    ``models`` is the result of :func:`between_models`. A t test with the variance and the degrees
    of freedom of :func:`~featpipe.statistics.two_way.two_way_variance`; a method that trains
    nothing gives the same answers for every training set. If the results cannot answer the
    question, the reason is returned.
    """
    trained = [(one.training, one) for one in (a, b) if one.training is not None]
    if not trained:
        return models  # nothing is trained: the models are the methods
    if single := [sets for sets, _ in trained if sets.distinct < 2]:
        return SAME_TRAINING_SET if len(single[0].sets) > 1 else ONE_TRAINING_SET
    training, keys = trained[0][0], trained[0][1].by_training_set[0]
    for sets, one in trained[1:]:
        if {*sets.sets} != {*training.sets} or not np.array_equal(one.by_training_set[0], keys):
            return OTHER_TRAINING_SETS
    row, model = np.divmod(keys, training.distinct)
    first, second = (
        (one.sums.sums / one.sums.counts)[row] if one.training is None else one.by_training_set[1]
        for one in (a, b)
    )
    variance = two_way_variance(first - second, row, model, training, models.variance.rows)
    t = abs(models.centre) / np.sqrt(variance.total)
    p_value = max(SMALLEST_P, float(2 * stats.t.sf(t, variance.df)))
    method = (
        f"t test over {models.n} rows, what training adds taken from Nadeau and Bengio"
        if variance.design == "nested"
        else f"t test over {training.distinct} training sets × {models.n} rows"
    )
    return replace(models, variance=variance, p_value=p_value, method=method)


def _sign_flip(steps: NDArray[np.int64]) -> tuple[float, str]:
    """Two-sided p-value of |Σ d| when each d has either sign with probability one half."""
    d = np.abs(steps[steps != 0])
    observed = abs(int(steps.sum()))
    if observed == 0:
        return 1.0, "sign-flip over rows, exact"
    common = np.gcd.reduce(d)
    d, observed = d // common, observed // common
    if d.sum() > _EXACT_STEPS:
        return _saddlepoint(d, observed), "sign-flip over rows, saddlepoint"
    density = np.ones(1)
    for size, rows in zip(*np.unique(d, return_counts=True), strict=True):
        # The sum of the positive differences of this size: a stretched binomial.
        positive = np.zeros(rows * size + 1)
        positive[::size] = stats.binom.pmf(np.arange(rows + 1), rows, 0.5)
        density = np.convolve(density, positive)
    # Entry k is the probability that the positive d sum to k, so that the total is 2k − Σ d.
    upper = density[(len(density) - 1 + observed) // 2 :].sum()
    return 2 * upper, "sign-flip over rows, exact"


def _saddlepoint(d: NDArray[np.int64], observed: int) -> float:
    """Approximate the p-value by Lugannani and Rice's formula; the cumulant is Σ log cosh(d·u)."""
    if observed == d.sum():  # every sign is the same
        return 2.0 ** (1 - len(d))
    scale = np.sqrt(float((d.astype(float) ** 2).sum()))
    sizes, rows = np.unique(d / scale, return_counts=True)
    x = observed / scale

    def beyond(u: float) -> float:
        return float(rows @ (sizes * np.tanh(sizes * u)) - x)

    high = 1.0
    while beyond(high) < 0:
        high *= 2
    u = brentq(beyond, 0.0, high, xtol=1e-15)
    cumulant = rows @ (np.logaddexp(sizes * u, -sizes * u) - np.log(2))
    w = np.sqrt(max(0.0, 2 * (u * x - cumulant)))
    v = u * np.sqrt(rows @ (sizes / np.cosh(sizes * u)) ** 2)
    if w < 1e-3:  # the formula is 0/0 at the centre, where the sum is normal
        return 2 * stats.norm.sf(x)
    return 2 * (stats.norm.sf(w) + stats.norm.pdf(w) * (1 / v - 1 / w))
