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
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.optimize import minimize_scalar
from scipy.sparse import coo_array
from scipy.special import logsumexp, softmax
from scipy.stats import binomtest
from sklearn.utils import gen_batches

from featpipe.errors import FitError
from featpipe.evaluation.protocol import cut, units_per_class
from featpipe.statistics.intervals import wilson

SHRINKAGES = (0.1, 0.3, 0.6)  # of the covariance within classes, towards a multiple of the identity
_SOFTER = 0.85  # times the logits: less confident probabilities improve confident learning
_FOLDS = 5
_SOME = 20_000  # rows that the shrinkage and the temperature are chosen on
BLOCK_ROWS = 8192  # computed at once
_MOST_CONFIDENT = 0.02  # share of rows, those with the largest probabilities: few errors


@dataclass(frozen=True, eq=False)
class Doubts:
    """What a probe predicts for labelled rows; each array has a value for each of n rows."""

    confidence: NDArray[np.float32]  # probability of the row's own label
    # The class that is more likely, by confident learning; -1 where the label is not doubted.
    better: NDArray[np.int64]
    contradicted: NDArray[np.bool_]  # another class is the most likely
    confident: NDArray[np.bool_]  # one of the rows with the largest probabilities
    largest: NDArray[np.float32]  # the largest probability of any class

    def share(self, among: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Return the estimated share of wrong labels, and the shares that bound it.

        ``value`` is the share of doubted labels, among them some correct ones. ``low`` counts only
        labels that the probe contradicts with high confidence, less the mistakes that its own
        probabilities predict there; ``high``, all that it contradicts. Both are outer limits of
        95 % intervals. They hold if wrong labels are at least as frequent among the other images as
        among the most confident ones, and if the probe does not learn the same errors.
        """
        contradicted, confident = self.contradicted[among], self.confident[among]
        value, low = float((self.better[among] >= 0).mean()), 0.0
        if confident.any():
            wrong = binomtest(int((contradicted & confident).sum()), int(confident.sum()))
            own_mistakes = 1 - float(self.largest[among][confident].mean())
            low = float(wrong.proportion_ci(method="exact").low) - own_mistakes
        high = wilson(int(contradicted.sum()), len(contradicted)).high
        return {"value": value, "low": max(0.0, min(low, value)), "high": max(high, value)}


def out_of_sample(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
) -> tuple[NDArray[np.float32], float]:
    """Return probabilities of a probe for rows that did not train it, and its shrinkage.

    Five folds of a linear discriminant analysis: it ranks real annotation errors better than a
    logistic probe, and its closed form takes seconds for a thousand classes. The shrinkage and a
    temperature (Guo et al. 2017, ICML, "On calibration of modern neural networks") are those with
    the smallest log loss of these rows. FitError, if there is a single class, or one with too few
    rows or groups for two folds.
    """
    classes, target = np.unique(y, return_inverse=True)
    fewest = int(units_per_class(target, groups).min()) if len(classes) > 1 else 0
    if fewest < 2:
        raise FitError("there are no two classes with two different images each")
    folds = [rows for _, rows in cut(f"kfold:{min(_FOLDS, fewest)}", target, groups, seed)]
    center, width = X.mean(axis=0, dtype=np.float64).astype(np.float32), X.shape[1]
    if len(X) < width:  # only the span of the rows matters
        X = (X - center) @ np.linalg.qr((X - center).T)[0]
        center = np.zeros(X.shape[1], np.float32)
    probes = _discriminants(X, target, folds, center, width)
    step = -(-len(y) // _SOME)
    own = np.concatenate([target[rows[::step]] for rows in folds])

    def scored(rows: NDArray[np.int64], W: NDArray[np.float32]) -> NDArray[np.float32]:
        return (X[rows] - center) @ W[:-1] + W[-1]

    fits = []
    for value in range(len(SHRINKAGES)):
        scores = [scored(rows[::step], W[value]) for rows, W in zip(folds, probes, strict=True)]
        fits.append((*_tempered(np.concatenate(scores), own), value))
    _, scale, value = min(fits)
    found = np.empty((len(y), len(classes)), np.float32)
    for fold, W in zip(folds, probes, strict=True):
        for part in gen_batches(len(fold), BLOCK_ROWS):
            rows = fold[part]
            found[rows] = softmax(np.float32(_SOFTER * scale) * scored(rows, W[value]), axis=1)
    return found, SHRINKAGES[value]


def _discriminants(
    X: NDArray[np.float32],
    target: NDArray[np.int64],
    folds: Sequence[NDArray[np.int64]],
    center: NDArray[np.float32],
    width: int,
) -> list[NDArray[np.float32]]:
    """Return for each fold the linear discriminants of all other rows.

    Each has the shape (shrinkages, d + 1, classes); the last row is the intercept. Regularised
    discriminant analysis with one covariance for all classes (Friedman 1989, J. Am. Stat. Assoc.
    84: 165–175). Sums over all rows are taken once, and each fold's are subtracted. Of ``width``
    features, X may hold only the span of its rows.
    """
    n_classes, d = int(target.max()) + 1, X.shape[1]
    count = np.stack([np.bincount(target[rows], minlength=n_classes) for rows in folds])
    products, sums = np.zeros((len(folds), d, d)), np.zeros((len(folds), n_classes, d))
    for number, fold in enumerate(folds):
        for part in gen_batches(len(fold), BLOCK_ROWS):
            rows, where = X[fold[part]] - center, (target[fold[part]], np.arange(len(fold[part])))
            ones = np.ones(len(rows), np.float32)
            members = coo_array((ones, where), shape=(n_classes, len(rows)))
            products[number] += rows.T @ rows
            sums[number] += members.tocsr() @ rows
    found = []
    for own_count, own_products, own_sums in zip(count, products, sums, strict=True):
        n = (count.sum(axis=0) - own_count)[:, None]
        means = (sums.sum(axis=0) - own_sums) / n.clip(1)
        within = (products.sum(axis=0) - own_products - means.T @ (n * means)) / n.sum()
        spread = max(float(within.trace()) / width, float(np.finfo(np.float32).tiny))
        prior = np.log(n[:, 0].clip(1) / n.sum())
        weights = np.empty((len(SHRINKAGES), d + 1, n_classes), np.float32)
        for value, shrinkage in enumerate(SHRINKAGES):
            covariance = (1 - shrinkage) * within + shrinkage * spread * np.eye(d)
            W = solve(covariance, means.T, assume_a="pos")
            weights[value] = np.vstack([W, prior - (means * W.T).sum(axis=1) / 2])
        found.append(weights)
    return found


def _tempered(logits: NDArray[np.float32], own: NDArray[np.int64]) -> tuple[float, float]:
    """Return the smallest log loss of logits times a scale, and this scale."""

    def loss(log_scale: float) -> float:
        scaled = logits * np.float32(np.exp(log_scale))
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(own)), own]).mean())

    best = minimize_scalar(loss, bounds=(-7, 3), method="bounded")
    return float(best.fun), float(np.exp(best.x))


def doubts(probabilities: NDArray[np.float32], y: NDArray[np.int64]) -> Doubts:
    """Return which labels are doubted, by confident learning.

    A row counts for the classes whose probability is at least what rows of that class have on
    average; where the most likely of them is not its label, the label is doubted. ``probabilities``
    are those of :func:`out_of_sample`, with the classes of ``y`` in ascending order as columns.
    """
    classes, target = np.unique(y, return_inverse=True)
    own = probabilities[np.arange(len(y)), target]
    usual = np.bincount(target, own) / np.bincount(target)
    eligible = np.where(probabilities >= usual, probabilities, -1)
    best = eligible.argmax(axis=1)
    doubted = (eligible.max(axis=1) >= 0) & (best != target)
    largest, confident = probabilities.max(axis=1), np.zeros(len(y), bool)
    n_confident = max(1, round(_MOST_CONFIDENT * len(y)))
    confident[np.argsort(-largest, kind="stable")[:n_confident]] = True
    contradicted = probabilities.argmax(axis=1) != target
    return Doubts(own, np.where(doubted, classes[best], -1), contradicted, confident, largest)


def by_class(found: Doubts, y: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the share of wrong labels of each class, the largest first.

    See :meth:`Doubts.share`; each has also ``label``, ``images`` and ``doubted``. A class has no
    lower bound: how confident the probe is of a row depends on whether the label is correct.
    """
    shares = [
        {
            "label": classes[label],
            "images": int((own := y == label).sum()),
            "doubted": int((found.better[own] >= 0).sum()),
            **found.share(own),
            "low": 0.0,
        }
        for label in np.unique(y).tolist()
    ]
    return sorted(shares, key=lambda share: -share["value"])


def pairs(found: Doubts, y: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return how often each class seems to be labelled as another, the most frequent first."""
    doubted = found.better >= 0
    counts = Counter(zip(y[doubted].tolist(), found.better[doubted].tolist(), strict=True))
    return [
        {"label": classes[label], "likely": classes[likely], "images": n}
        for (label, likely), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
