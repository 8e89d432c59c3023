"""Whether one method is really better than another on the same test rows.

The test is exact and needs no random numbers. With one prediction per row and method it is
McNemar's exact test; with several (ten folds, five seeds) it is its generalisation, the sign-flip
test over rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from featpipe.errors import ResultError
from featpipe.statistics.intervals import CONFIDENCE, RowSums, sum_by_row

ALPHA = 0.05  # family-wise error rate
DIFFERENT_ROWS = "not comparable: different test rows"

Correctness = tuple[ArrayLike, ArrayLike]
"""Row ids of shape (n,), and whether each prediction is right, shape (n,)."""


@dataclass(frozen=True)
class PairedTest:
    """Comparison of methods a and b on the same n rows.

    ``difference`` is the accuracy of a minus that of b, with its confidence interval; ``p_value``
    is two-sided, for "neither method is better"; ``a_better`` and ``b_better`` count the rows on
    which one method is right more often than the other (discordant rows).
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    a_better: int
    b_better: int
    method: str
    confidence: float = CONFIDENCE

    as_dict = asdict  # ready for JSON


def paired_test(a: Correctness, b: Correctness) -> PairedTest:
    """Compare two methods that predicted the same rows, each row once or several times.

    The statistic is the sum over rows of the difference of the two shares of right answers,
    where a row weighs as much as it has predictions (the least common multiple, where the
    methods predicted it unequally often). Under the null hypothesis each row's difference has
    either sign with probability one half (Fisher's randomisation test). Differences are whole
    numbers, so the distribution of the sum is a convolution of binomials and the p-value is
    exact. One prediction per row and method gives McNemar's exact test (McNemar 1947,
    Psychometrika 12: 153–157; Dietterich 1998, Neural Computation 10, recommends it for
    classifiers): the two-sided binomial test of the rows that one method alone gets right.

    The interval of the difference is that of Bonett and Price 2012 (J. Educ. Behav. Stat. 37:
    479–488): a Wald interval after adding one row won by each method; rows predicted several
    times enter with their mean difference.

    Parameters
    ----------
    a, b : (row ids, correct)
        See :data:`Correctness`; the order of rows does not matter.

    Raises
    ------
    ResultError
        If the rows differ.

    Examples
    --------
    >>> a = [True] * 8 + [False] * 13
    >>> b = [True] + [False] * 7 + [True] + [False] * 12
    >>> test = paired_test((range(21), a), (range(21), b))
    >>> test.a_better, test.b_better, round(test.p_value, 7), test.method
    (7, 1, 0.0703125, 'McNemar exact')
    """
    return _test(sum_by_row(*a), sum_by_row(*b))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for many tests by Holm's step-down method (Scand. J. Stat. 6, 1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def compare_all(named: Mapping[str, Correctness]) -> list[dict[str, Any]]:
    """Test every pair of named methods and adjust for their number.

    Returns
    -------
    pairs : list of dict
        In the order of the mapping: ``a``, ``b``, the fields of :class:`PairedTest`, ``p_adjusted``
        (Holm, over the pairs that were tested), ``distinguishable`` (``p_adjusted`` below
        :data:`ALPHA`) and ``reason``. A pair with different test rows is not tested: ``reason``
        says so and the numbers are None.
    """
    rows = {name: sum_by_row(*answers) for name, answers in named.items()}
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(rows, 2):
        if np.array_equal(rows[a].ids, rows[b].ids):
            numbers, reason = _test(rows[a], rows[b]).as_dict(), None
        else:
            numbers, reason = dict.fromkeys(PairedTest.__dataclass_fields__), DIFFERENT_ROWS
        judged = {"p_adjusted": None, "distinguishable": None, "reason": reason}
        pairs.append({"a": a, "b": b, **numbers, **judged})
    tested = [pair for pair in pairs if pair["reason"] is None]
    for pair, p in zip(tested, holm([pair["p_value"] for pair in tested]), strict=True):
        pair |= {"p_adjusted": p, "distinguishable": p < ALPHA}
    return pairs


def _test(a: RowSums, b: RowSums) -> PairedTest:
    if not np.array_equal(a.ids, b.ids):
        raise ResultError(
            "The methods were tested on different rows.",
            got=f"{len(a.ids)} and {len(b.ids)} rows, {len(np.intersect1d(a.ids, b.ids))} shared",
            next_step="evaluate both on the same split",
        )
    weight = np.lcm(a.counts, b.counts)
    right_a, right_b = a.sums.astype(np.int64), b.sums.astype(np.int64)
    difference = weight // a.counts * right_a - weight // b.counts * right_b
    n = len(difference)
    d, w = difference / weight.mean(), weight / weight.mean()
    centre = d.sum() / (n + 2)
    # The two rows that Bonett and Price add have d = +1 and −1, w = 1; the residuals are those of a
    # ratio of sums, which for equal weights give (p12 + p21 − (p12 − p21)²) / (n + 2) as published.
    residuals = np.concatenate([d - centre * w, [1 - centre, -1 - centre]])
    error = np.sqrt((residuals**2).sum()) / (n + 2)
    reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2) * error)
    return PairedTest(
        difference=float(difference.sum() / weight.sum()),
        ci_low=max(-1.0, float(centre) - reach),
        ci_high=min(1.0, float(centre) + reach),
        p_value=_sign_flip_p_value(difference),
        n=n,
        a_better=int((difference > 0).sum()),
        b_better=int((difference < 0).sum()),
        method="McNemar exact" if weight.max() == 1 else "sign-flip over rows, exact",
    )


def _sign_flip_p_value(difference: NDArray[np.int64]) -> float:
    """Two-sided p-value of |Σ d| when each d has either sign with probability one half."""
    d = difference[difference != 0]
    if len(d) == 0:
        return 1.0
    d = d // np.gcd.reduce(d)
    density = np.ones(1)
    for size, rows in zip(*np.unique(np.abs(d), return_counts=True), strict=True):
        # How much the rows of this size add when some of them are positive: a stretched binomial.
        positive = np.zeros(rows * size + 1)
        positive[::size] = stats.binom.pmf(np.arange(rows + 1), rows, 0.5)
        density = np.convolve(density, positive)
    # Entry k is the probability that the positive d add up to k, so that the sum is 2k − total.
    total = len(density) - 1
    upper = density[(total + abs(int(d.sum()))) // 2 :].sum()
    return float(min(1.0, 2 * upper))
