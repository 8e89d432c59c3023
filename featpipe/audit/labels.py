"""Suspected wrong labels: what a probe predicts for rows that it was not trained on.

Confident learning (Northcutt, Jiang and Chuang 2021, J. Artif. Intell. Res. 70: 1373–1411): a label
is doubted where another class is predicted more confidently than is usual for rows of that class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.utils import gen_batches

from featpipe.errors import FitError
from featpipe.evaluation.protocol import cut, units_per_class
from featpipe.probes.logistic import Logistic
from featpipe.probes.rows import moments
from featpipe.probes.solvers import BatchedLinear
from featpipe.statistics.intervals import wilson

C_VALUES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_FOLDS = 5
_MOST_NUMBERS = 50_000_000  # rows times classes up to which all values of C are tried
_DEFAULT_C = 1e-3
_MOST_TRAINED = 100_000  # rows, which bounds memory; more hardly change 500 weights for each class
_FEWEST = 20  # rows of a class that train, if it has so many
_BLOCK = 16_384  # rows whose probabilities are computed at once
_SUREST = 0.02  # share of rows that a probe is surest of, where it hardly errs itself ...
_SURE = 0.8  # ... if its mean probability there is at least this


@dataclass(frozen=True, eq=False)
class Doubts:
    """What a probe thinks of labels; each array has a value for each of n rows."""

    confidence: NDArray[np.float32]  # probability of the row's own label
    # The class that is more likely, by confident learning; -1 where the label is not doubted.
    better: NDArray[np.int64]
    contradicted: NDArray[np.bool_]  # another class is the most likely
    surest: NDArray[np.bool_]  # the probe is so sure that it hardly errs itself

    def share(self, among: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Return the estimated share of wrong labels, and the shares that bound it.

        ``value`` is the share of doubted labels. A probe errs, too: of clean labels it doubts some.
        No label need be wrong but those that it contradicts where it is surest (``low``), and none
        is that it agrees with (``high``); both are the outer limits of 95 % intervals. They hold if
        wrong labels are at least as frequent among the other images as among the surest ones, and
        if the probe does not learn the same errors.
        """
        doubted, sure = self.better[among] >= 0, self.surest[among]
        contradicted = self.contradicted[among]
        value, low = float(doubted.mean()), 0.0
        if wrong := int((contradicted & sure).sum()):
            low = float(binomtest(wrong, int(sure.sum())).proportion_ci(method="exact").low)
        high = wilson(int(contradicted.sum()), len(contradicted)).high
        return {"value": value, "low": min(low, value), "high": max(high, value)}


def out_of_sample(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
    jobs: int = -1,
) -> tuple[NDArray[np.float32], float]:
    """Return probabilities of a logistic probe for rows that did not train it, and its C.

    Five folds, of which at most 100,000 rows in all train. Of the values of C whose accuracy is
    within a standard error of the best, the one with the strongest penalty: the less confident, the
    better confident learning counts. FitError, if there is a single class, or one with too few rows
    or groups for two folds.
    """
    classes, target = np.unique(y, return_inverse=True)
    fewest = int(units_per_class(target, groups).min()) if len(classes) > 1 else 0
    if fewest < 2:
        raise FitError("there are no two classes with two different images each")
    folds = cut(f"kfold:{min(_FOLDS, fewest)}", target, groups, seed)
    values = C_VALUES if len(y) * len(classes) <= _MOST_NUMBERS else (_DEFAULT_C,)
    trained = _drawn(target, min(_MOST_TRAINED, _MOST_NUMBERS // len(classes)), seed)
    weight = np.zeros((len(folds), len(y)))
    for number, (train, _) in enumerate(folds):
        weight[number, train] = 1
    weight, own = weight[:, trained], X[trained]
    mean, scale = moments(own, weight > 0)
    found = np.zeros((len(values), len(y), len(classes)), np.float32)
    solver = BatchedLinear(Logistic(c=values))
    at_once = max(1, _MOST_NUMBERS // (len(trained) * len(classes)))  # folds
    for first in range(0, len(folds), at_once):
        some = weight[first : first + at_once]
        for fit in solver.path(own, target[trained], some, values, jobs, 1e-4):
            fold = first + fit.fold
            W, apart = fit.W[:-1] / scale[fold][:, None], folds[fold][1]
            for part in gen_batches(len(apart), _BLOCK):
                rows = apart[part]
                scores = (X[rows] - mean[fold]) @ W + fit.W[-1]
                found[fit.value, rows] = softmax(scores, axis=1)
    right = (found.argmax(axis=2) == target).mean(axis=1)
    error = np.sqrt(right.max() * (1 - right.max()) / len(y))
    best = int(np.argmax(right >= right.max() - error))
    return found[best], values[best]


def _drawn(target: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return all rows, or about ``most`` of them at random, of each class as many as its share."""
    if len(target) <= most:
        return np.arange(len(target))
    order = np.random.default_rng(seed).permutation(len(target))
    drawn = pd.Series(target[order])
    place = drawn.groupby(drawn).cumcount()
    quota = np.maximum(_FEWEST, np.bincount(target) * most / len(target))
    return np.sort(order[place < quota[target[order]]])


def doubts(probabilities: NDArray[np.float32], y: NDArray[np.int64]) -> Doubts:
    """Return which labels are doubted, by confident learning.

    A row counts for the classes whose probability is at least what rows of that class have on
    average; where the most likely of them is not its label, the label is doubted. ``probabilities``
    are those of :func:`out_of_sample`, with the classes of ``y`` in ascending order as columns.
    """
    classes, target = np.unique(y, return_inverse=True)
    own = probabilities[np.arange(len(y)), target]
    usual = np.bincount(target, own) / np.bincount(target)
    confident = np.where(probabilities >= usual, probabilities, -1)
    best = confident.argmax(axis=1)
    doubted = (confident.max(axis=1) >= 0) & (best != target)
    most = probabilities.max(axis=1)
    surest = np.zeros(len(y), bool)
    surest[np.argsort(-most, kind="stable")[: max(1, round(_SUREST * len(y)))]] = True
    surest &= most[surest].mean() >= _SURE
    contradicted = probabilities.argmax(axis=1) != target
    return Doubts(own, np.where(doubted, classes[best], -1), contradicted, surest)


def by_class(found: Doubts, y: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the share of wrong labels of each class, the largest first; see :meth:`Doubts.share`.

    Each has also ``label``, ``images`` and ``doubted``; none has a lower bound.
    """
    shares = [
        {
            "label": classes[label],
            "images": int((own := y == label).sum()),
            "doubted": int((found.better[own] >= 0).sum()),
            **found.share(own),
            "low": 0.0,  # the surest images of a class are too few, and chosen by the probe
        }
        for label in np.unique(y).tolist()
    ]
    return sorted(shares, key=lambda share: -share["value"])


def pairs(found: Doubts, y: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return how often each class seems to be called another, the most frequent first."""
    doubted = found.better >= 0
    counts = Counter(zip(y[doubted].tolist(), found.better[doubted].tolist(), strict=True))
    return [
        {"label": classes[label], "likely": classes[likely], "images": n}
        for (label, likely), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
