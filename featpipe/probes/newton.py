"""Truncated Newton for many linear classifiers at once: each a column of the same products.

A problem has weights W, of shape (d + 1, width), and minimises ½‖W‖² + C Σ loss(X W). Newton steps
solve their linear systems by conjugate gradients (Lin, Weng and Keerthi, *Trust region Newton
method for large-scale logistic regression*, 2008), preconditioned by the rows' Gram matrix; a
converged problem takes no part in further products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.probes.rows import Rows

Array = NDArray[Any]

_CG_STEPS = 200
_SLOW = 20  # steps; a Gram matrix and its inverse cost about as much
_PRECISE = 0.05  # of the slope along a step may be left by the line search


class Loss(Protocol):
    """A loss summed over rows, of all problems; decisions are (n, problems, width)."""

    fold: Array  # of each problem
    intercept_penalty: float
    smooth: bool  # whether its second derivative is continuous

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """Return value and gradient at decisions F of problems p, and arrays for ``bend``."""

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """Return the second derivative's product with D, for the rows of the state."""

    def weight(self, state: tuple[Array, ...]) -> float:
        """Return a row's mean curvature."""

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """Return the first and second derivative of the value at F + t D, as a function of t."""


class SquaredHinge:
    """The squared hinge of one class against the rest, weighted; every column is a problem.

    Parameters
    ----------
    sign : array of shape (n, problems), ±1
    weight : array of shape (n, problems)
        Zero for rows that take no part.
    fold : array of shape (problems,)
    """

    intercept_penalty = 1.0  # as liblinear does
    smooth = False

    def __init__(self, sign: Array, weight: Array, fold: Array) -> None:
        self.sign, self.weights, self.fold = sign[..., None], weight[..., None], fold

    def active(self, F: Array) -> Array:
        """Return which rows take part and are inside the margin, of shape (n, problems, 1)."""
        return (self.sign * F < 1) & (self.weights > 0)

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """See :class:`Loss`."""
        y, s = self.sign[:, p], self.weights[:, p]
        short = np.maximum(1 - y * F, 0)
        lost = s * short
        return _sum(lost * short), -2 * lost * y, (2 * s * (short > 0),)

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """See :class:`Loss`."""
        return state[0] * D

    def weight(self, state: tuple[Array, ...]) -> float:
        """See :class:`Loss`."""
        return float(state[0].mean(dtype=np.float64))

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """See :class:`Loss`."""
        y, s = self.sign[:, p], self.weights[:, p]
        margin, change, bent = 1 - y * F, y * D, 2 * s * D * D
        slope = -2 * s * change

        def derivatives(t: Array) -> tuple[Array, Array]:
            short = margin - t[:, None].astype(F.dtype) * change
            active = short > 0
            return _sum(slope * np.where(active, short, 0)), _sum(np.where(active, bent, 0))

        return derivatives


class Softmax:
    """Cross-entropy of a softmax over all columns of a problem.

    Parameters
    ----------
    y : array of shape (n,), of integers
        Column of each row's class.
    weight : array of shape (n, problems)
    fold : array of shape (problems,)
    """

    intercept_penalty = 0.0  # as scikit-learn does
    smooth = True

    def __init__(self, y: Array, weight: Array, fold: Array) -> None:
        self.own, self.weights, self.fold = y[:, None, None], weight[..., None], fold

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """See :class:`Loss`."""
        s = self.weights[:, p]
        F = F - F.max(axis=2, keepdims=True)
        P = np.exp(F)
        total = P.sum(axis=2, keepdims=True)
        P /= total
        value = _sum(s * (np.log(total) - np.take_along_axis(F, self.own, axis=2)))
        slope = P.copy()
        np.put_along_axis(slope, self.own, np.take_along_axis(P, self.own, axis=2) - 1, axis=2)
        return value, s * slope, (P, s)

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """See :class:`Loss`."""
        P, s = state
        PD = P * D
        return s * (PD - P * PD.sum(axis=2, keepdims=True))

    def weight(self, state: tuple[Array, ...]) -> float:
        """See :class:`Loss`."""
        P, s = state
        return float((s * P * (1 - P)).mean(dtype=np.float64))

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """See :class:`Loss`."""
        own = np.take_along_axis(D, self.own, axis=2)

        def derivatives(t: Array) -> tuple[Array, Array]:
            _, _, (P, s) = self.at(F + t[:, None].astype(F.dtype) * D, p)
            mean = (P * D).sum(axis=2, keepdims=True)
            return _sum(s * (mean - own)), _sum(s * P * (D - mean) ** 2)

        return derivatives


@dataclass
class Newton:
    """Problems, and where the search for their minimum has come to.

    Attributes
    ----------
    W : array of shape (d + 1, problems, width)
    F : array of shape (n, problems, width)
        Decisions of W on all rows.
    gap : array of shape (problems,)
        About (objective − minimum) / objective. For the squared hinge ½‖gradient‖² over the
        objective: the duality gap, of the dual variables 2 C max(0, 1 − y f). For the softmax the
        smaller of that and the Newton decrement, what a quadratic model says is left to gain.
    iterations : array of shape (problems,)
        Newton steps so far.
    """

    rows: Rows
    loss: Loss
    max_iter: int
    W: Array
    F: Array
    gap: Array
    iterations: Array
    slow: bool = False  # whether conjugate gradients took long: preconditioned from then on

    @classmethod
    def at_zero(cls, rows: Rows, loss: Loss, width: int, max_iter: int) -> Newton:
        """Start with weights of zero."""
        (n, d), problems = rows.shape, len(loss.fold)
        W, F = (np.zeros((m, problems, width), rows.dtype) for m in (d + 1, n))
        gap, iterations = np.full(problems, np.inf), np.zeros(problems, int)
        return cls(rows, loss, max_iter, W, F, gap, iterations)

    def as_type(self, dtype: Any) -> None:
        """Go on in another precision."""
        self.W, self.F = self.W.astype(dtype), self.F.astype(dtype)

    def minimise(self, C: float, tol: float) -> None:
        """Lower every problem's objective until its gap is at most ``tol``.

        A problem is left where steps do not lower its gap any more: only rounding remains.
        """
        penalty = np.ones((len(self.W), 1, 1), self.W.dtype)
        penalty[-1] = self.loss.intercept_penalty
        todo, done = np.arange(self.W.shape[1]), 0
        last, left = (np.full(len(todo), np.inf) for _ in range(2))
        while True:
            value, slope, state = self.loss.at(self.F[:, todo], todo)
            W = self.W[:, todo]
            objective = C * value + 0.5 * _sum(penalty * W * W)
            gradient = penalty * W + C * self.rows.back(slope, self.loss.fold[todo])
            now = 0.5 * _sum(gradient * gradient) / objective
            self.gap[todo] = np.minimum(now, left[todo])
            keep = (self.gap[todo] > tol) & ((now < 0.7 * last[todo]) | (now > 1e-2))
            # With a tiny C weights of zero are good enough for the objective, but answer nothing.
            keep |= (self.iterations[todo] == 0) & (now > 0)
            if not keep.any() or done == self.max_iter:
                return
            todo, W, gradient, now = todo[keep], W[:, keep], gradient[:, keep], now[keep]
            state = tuple(part[:, keep] for part in state)
            # Superlinear near the minimum, but no more precise than the last step needs.
            forcing = np.clip(0.5 * np.sqrt(tol / now), 0.01, 0.25)
            D, FD = self._step(C, penalty, gradient, state, todo, forcing)
            along = self.loss.along(self.F[:, todo], FD, todo)
            t = minimise_along(along, C, _sum(penalty * W * D), _sum(penalty * D * D))
            self.W[:, todo] += (t := t[None, :, None].astype(D.dtype)) * D
            self.F[:, todo] += t * FD
            self.iterations[todo] += 1
            last[todo] = now
            if self.loss.smooth:
                left[todo] = np.abs(_sum(gradient * D)) / 2 / objective[keep]
            done += 1

    def _step(
        self,
        C: float,
        penalty: Array,
        gradient: Array,
        state: tuple[Array, ...],
        todo: Array,
        forcing: Array,
    ) -> tuple[Array, Array]:
        """Solve the Newton systems by conjugate gradients; return steps, and what they do to F."""
        precondition: Callable[[Array], Array] = _unchanged
        if self.slow:
            precondition = self.rows.preconditioner(C * self.loss.weight(state))
        D = np.zeros_like(gradient)
        FD = np.zeros((self.rows.shape[0], *gradient.shape[1:]), gradient.dtype)
        r = -gradient
        p = z = precondition(r)
        rz, limit, left = _sum(r * z), forcing**2 * _sum(r * r), np.arange(len(todo))
        for number in range(_CG_STEPS):
            self.slow |= number > _SLOW
            bend = partial(self._bend, state)
            Hp, Fp = self.rows.normal(p, self.loss.fold[todo[left]], bend)
            Hp = penalty * p + C * Hp
            step = (rz / _sum(p * Hp))[None, :, None].astype(r.dtype)
            D[:, left] += step * p
            FD[:, left] += step * Fp
            r = r - step * Hp
            keep = _sum(r * r) > limit
            if not keep.any():
                break
            if not keep.all():
                left, limit, rz, r, p = left[keep], limit[keep], rz[keep], r[:, keep], p[:, keep]
                state = tuple(part[:, keep] for part in state)
            z = precondition(r)
            rz, last = _sum(r * z), rz
            p = z + (rz / last)[None, :, None].astype(r.dtype) * p
        return D, FD

    def _bend(self, state: tuple[Array, ...], rows: slice, D: Array) -> Array:
        return self.loss.bend(tuple(part[rows] for part in state), D)


def minimise_along(
    loss: Callable[[Array], tuple[Array, Array]], C: float, linear: Array, square: Array
) -> Array:
    """Minimise t·linear + ½ t²·square + C·loss(t) for each problem, by Newton inside a bracket.

    ``loss`` gives its first and second derivative.
    """
    t = np.ones(len(linear))
    low, high, steepest = np.zeros_like(t), np.full_like(t, np.inf), None
    for _ in range(40):
        first, second = loss(t)
        slope, bend = linear + t * square + C * first, square + C * second
        if steepest is None:
            start = linear + C * loss(np.zeros_like(t))[0]
            steepest = np.abs(start)
        done = np.abs(slope) <= _PRECISE * steepest
        if done.all():
            break
        low, high = np.where(slope < 0, t, low), np.where(slope > 0, t, high)
        newton = t - slope / bend
        middle = np.where(np.isinf(high), 2 * t, (low + np.minimum(high, 1e300)) / 2)
        inside = (newton > low) & (newton < high)
        t = np.where(done, t, np.where(inside, newton, middle))
    return t


def _unchanged(values: Array) -> Array:
    return values


def _sum(values: Array) -> Array:
    """Add up over rows or features and over a problem's columns, in double precision."""
    return values.sum(axis=(0, 2), dtype=np.float64)
