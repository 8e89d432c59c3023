"""Losses of linear classifiers, summed over rows, for many problems at once.

Decisions are (n, problems, width): a problem has one or more columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Array = NDArray[Any]

_INTERCEPT_STEPS = 20
_NEAR = 0.5  # a step of the intercepts this short needs no line search
_PRECISE = 0.05  # share of the initial slope that a line search may leave


class SquaredHinge:
    """The weighted squared hinge of one class against the rest; every column is a problem.

    Parameters
    ----------
    sign : array of shape (n, problems), ±1
    weight : array of shape (n, problems)
        Zero for rows that are left out.
    fold : array of shape (problems,)
    """

    intercept_penalty = 1.0  # as in liblinear
    smooth = False  # whether the path of solutions over C is smooth
    width = 1  # number of columns of a problem

    def __init__(self, sign: Array, weight: Array, fold: Array) -> None:
        self.sign, self.weights, self.fold = sign[..., None], weight[..., None], fold
        self.count = np.stack([summed(self.weights * (self.sign == side)) for side in (1, -1)])

    def constant(self, C: float, p: Array) -> Array:
        """Return the lowest objective of a constant classifier, (problems,)."""
        own, rest = C * self.count[:, p]
        b = 2 * (own - rest) / (1 + 2 * (own + rest))
        return 0.5 * b**2 + own * (1 - b) ** 2 + rest * (1 + b) ** 2

    def intercepts(self, F: Array, p: Array) -> Array | None:
        """Return what to add to intercepts that are not penalised, (problems, width)."""
        return None

    def active(self, F: Array) -> Array:
        """Return which rows take part and are inside the margin, of shape (n, problems, 1)."""
        return (self.sign * F < 1) & (self.weights > 0)

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """Return value and gradient at decisions F of problems p, and arrays for ``bend``."""
        y, s = self.sign[:, p], self.weights[:, p]
        short = np.maximum(1 - y * F, 0)
        lost = s * short
        return summed(lost * short), -2 * lost * y, (2 * s * (short > 0),)

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """Return the product of the second derivative and D, for the rows of the state."""
        return state[0] * D

    def curvature(self, state: tuple[Array, ...]) -> Array:
        """Return the second derivative with respect to each decision, (n, problems, width)."""
        return state[0]

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """Return the first and second derivative of the value at F + t D, as a function of t."""
        y = self.sign[:, p]
        return squared_hinge_along(1 - y * F, -y * D, self.weights[:, p])


class Softmax:
    """Cross-entropy of a softmax over all columns of a problem.

    A class without a row of positive weight has the probability 0: the limit of its intercept, −∞.

    Parameters
    ----------
    y : array of shape (n,), of integers
        Column of each row's class.
    weight : array of shape (n, problems)
    fold : array of shape (problems,)
    columns : int
        Number of classes.
    """

    intercept_penalty = 0.0  # as in scikit-learn
    smooth = True

    def __init__(self, y: Array, weight: Array, fold: Array, columns: int) -> None:
        self.own, self.weights, self.fold = y[:, None, None], weight[..., None], fold
        self.width = columns
        self.count = np.zeros((weight.shape[1], columns))  # weight of each class
        np.add.at(self.count.T, y, weight)
        self.absent = self.count == 0

    def constant(self, C: float, p: Array) -> Array:
        """See :class:`SquaredHinge`."""
        total = self.count[p].sum(axis=1, keepdims=True)
        return C * (total * entr(self.count[p] / total)).sum(axis=1)

    def intercepts(self, F: Array, p: Array) -> Array | None:
        """Return the change that minimises the loss over the intercepts alone.

        With it, predicted and true weights of every class agree, and the gradient with respect to
        the penalised weights bounds what is left to gain, however small C is.
        """
        count, add = self.count[p], np.zeros((len(p), F.shape[2]))
        enough = max(1e-6, 30 * float(np.finfo(F.dtype).eps))
        G, s = self._by_class(F, p), np.moveaxis(self.weights[:, p], 0, 2)
        near, before = False, np.inf
        for _ in range(_INTERCEPT_STEPS):
            P = _softmax(G + add[..., None].astype(F.dtype))[0]
            sP = s * P
            surplus = sP.sum(axis=2, dtype=np.float64) - count
            off = np.abs(surplus).max()
            if (np.abs(surplus) <= enough * count).all() or (near and off > 0.5 * before):
                break  # the rest is rounding
            # The rows of the second derivative sum to zero, which gives its exact diagonal. The
            # ridge is for the sum of all intercepts, on which nothing depends.
            bend = -(sP @ P.swapaxes(1, 2)).astype(np.float64)
            diagonal = np.einsum("pkk->pk", bend)
            ridge = 1e-9 * count.sum(axis=1, keepdims=True)
            diagonal[...] = 0
            diagonal[...] = ridge - bend.sum(axis=2)
            step = -np.linalg.solve(bend, surplus[..., None])[..., 0]
            step -= step.mean(axis=1, keepdims=True)
            near, before = bool(np.abs(step).max() <= _NEAR), off
            if not near:
                D = np.broadcast_to(step.astype(F.dtype), F.shape)
                along, none = self.along(F + add.astype(F.dtype), D, p), np.zeros(len(p))
                start = (surplus * step).sum(axis=1)
                step *= minimise_along(along, 1.0, none, none, start)[:, None]
            add += step
        return add

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """See :class:`SquaredHinge`."""
        s = self.weights[:, p]
        P, highest, total = _softmax(self._by_class(F, p))
        all_classes = np.moveaxis(np.log(total) + highest, 2, 0)
        value = summed(s * (all_classes - np.take_along_axis(F, self.own, axis=2)))
        P = np.moveaxis(P, 2, 0).copy()
        slope = P.copy()
        slope[np.arange(len(P)), :, self.own[:, 0, 0]] -= 1
        return value, s * slope, (P, s)

    def _by_class(self, F: Array, p: Array) -> Array:
        """Return decisions as (problems, classes, n), −∞ for classes that a problem lacks.

        NumPy takes four times as long to reduce a short last axis.
        """
        G = np.moveaxis(F, 0, 2).copy()
        G[self.absent[p]] = -np.inf
        return G

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """See :class:`SquaredHinge`."""
        P, s = state
        return s * P * (D - np.einsum("npk,npk->np", P, D)[..., None])

    def curvature(self, state: tuple[Array, ...]) -> Array:
        """See :class:`SquaredHinge`."""
        P, s = state
        return s * P * (1 - P)

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """See :class:`SquaredHinge`."""
        G, H, s = self._by_class(F, p), np.moveaxis(D, 0, 2).copy(), self.weights[:, p, 0].T
        own = np.take_along_axis(H, self.own.T, axis=1)[:, 0]

        def derivatives(t: Array) -> tuple[Array, Array]:
            PH = _softmax(G + t[:, None, None].astype(F.dtype) * H)[0]
            PH *= H
            mean = PH.sum(axis=1)
            PH *= H
            first, second = s * (mean - own), s * (PH.sum(axis=1) - mean * mean)
            return first.sum(axis=1, dtype=np.float64), second.sum(axis=1, dtype=np.float64)

        return derivatives


Loss = SquaredHinge | Softmax


def squared_hinge_along(
    margin: Array, change: Array, weight: Array
) -> Callable[[Array], tuple[Array, Array]]:
    """Return the derivatives of Σ weight · max(0, margin + t · change)² as a function of t."""
    slope = 2 * weight * change
    bend = slope * change

    def derivatives(t: Array) -> tuple[Array, Array]:
        short = np.maximum(margin + t[:, None].astype(margin.dtype) * change, 0)
        return summed(slope * short), summed(np.where(short > 0, bend, 0))

    return derivatives


def _softmax(G: Array) -> tuple[Array, Array, Array]:
    """Turn decisions (problems, classes, n) into probabilities, in place.

    Return them, the highest decisions, and the sums of the exponentials of the differences from
    these, (problems, 1, n).
    """
    highest = G.max(axis=1, keepdims=True)
    G -= highest
    total = np.exp(G, out=G).sum(axis=1, keepdims=True)
    G /= total
    return G, highest, total


def minimise_along(
    loss: Callable[[Array], tuple[Array, Array]],
    C: float,
    linear: Array,
    square: Array,
    start: Array,
) -> Array:
    """Minimise t·linear + ½ t²·square + C·loss(t) for each problem, by Newton inside a bracket.

    ``loss`` gives its first and second derivative; ``start`` is the slope at t = 0.
    """
    t = np.ones(len(linear))
    low, high = np.zeros_like(t), np.full_like(t, np.inf)
    for _ in range(40):
        first, second = loss(t)
        slope, bend = linear + t * square + C * first, square + C * second
        done = np.abs(slope) <= _PRECISE * np.abs(start)
        if done.all():
            break
        low, high = np.where(slope < 0, t, low), np.where(slope > 0, t, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = t - slope / bend
        middle = np.where(np.isinf(high), 2 * t, (low + np.minimum(high, 1e300)) / 2)
        inside = (newton > low) & (newton < high)
        t = np.where(done, t, np.where(inside, newton, middle))
    return t


def summed(values: Array) -> Array:
    """Add up over rows or features and over a problem's columns, in double precision."""
    return values.sum(axis=0, dtype=np.float64).sum(axis=1)
