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
from scipy.special import entr

from featpipe.probes.rows import Rows, affordable

Array = NDArray[Any]

_CG_STEPS = 200
_THIN = 50  # columns: half as many are multiplied in nearly the same time
_READING = 380  # columns that are multiplied in the time that it takes to read rows
_CHANGED = 0.7  # of the weights of rows, old and new: the preconditioner is computed again
_INTERCEPT_STEPS = 20
_NEAR = 0.5  # a step of intercepts so short needs no line search
_STALLED = 4  # steps in a row without progress
_COARSE = 1e-3  # a gap so large is hardly changed by rounding
_NOTHING = 1e-16  # of the objective: what is gained is more, but for rounding
_TINY = 1e-30
_PRECISE = 0.05  # of the slope along a step may be left by the line search


class Loss(Protocol):
    """A loss summed over rows, of all problems; decisions are (n, problems, width)."""

    fold: Array  # of each problem
    intercept_penalty: float
    smooth: bool  # so that the path over C is, too

    def constant(self, C: float, p: Array) -> Array:
        """Return the lowest objective of a constant classifier, (problems,)."""

    def intercepts(self, F: Array, p: Array) -> Array | None:
        """Return what to add to intercepts that are not penalised, (problems, width)."""

    def at(self, F: Array, p: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """Return value and gradient at decisions F of problems p, and arrays for ``bend``."""

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """Return the second derivative's product with D, for the rows of the state."""

    def curvature(self, state: tuple[Array, ...]) -> Array:
        """Return the second derivative with respect to each decision, (n, problems, width)."""

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
        self.count = np.stack([_sum(self.weights * (self.sign == side)) for side in (1, -1)])

    def constant(self, C: float, p: Array) -> Array:
        """See :class:`Loss`."""
        own, rest = C * self.count[:, p]
        b = 2 * (own - rest) / (1 + 2 * (own + rest))
        value: Array = 0.5 * b**2 + own * (1 - b) ** 2 + rest * (1 + b) ** 2
        return value

    def intercepts(self, F: Array, p: Array) -> Array | None:
        """See :class:`Loss`."""
        return None

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

    def curvature(self, state: tuple[Array, ...]) -> Array:
        """See :class:`Loss`."""
        return state[0]

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

    intercept_penalty = 0.0  # as scikit-learn does
    smooth = True

    def __init__(self, y: Array, weight: Array, fold: Array, columns: int) -> None:
        self.own, self.weights, self.fold = y[:, None, None], weight[..., None], fold
        self.count = np.zeros((weight.shape[1], columns))  # weight of each class
        np.add.at(self.count.T, y, weight)
        self.absent = self.count == 0

    def constant(self, C: float, p: Array) -> Array:
        """See :class:`Loss`."""
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
            # Every row of the second derivative adds up to zero; by that its diagonal is exact. The
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
        """See :class:`Loss`."""
        s = self.weights[:, p]
        P, highest, total = _softmax(self._by_class(F, p))
        all_classes = np.moveaxis(np.log(total) + highest, 2, 0)
        value = _sum(s * (all_classes - np.take_along_axis(F, self.own, axis=2)))
        P = np.moveaxis(P, 2, 0).copy()
        slope = P.copy()
        slope[np.arange(len(P)), :, self.own[:, 0, 0]] -= 1
        return value, s * slope, (P, s)

    def _by_class(self, F: Array, p: Array) -> Array:
        """Return decisions as (problems, classes, n), −∞ for classes that a problem lacks.

        To reduce a short last axis takes numpy four times as long.
        """
        G = np.moveaxis(F, 0, 2).copy()
        G[self.absent[p]] = -np.inf
        return G

    def bend(self, state: tuple[Array, ...], D: Array) -> Array:
        """See :class:`Loss`."""
        P, s = state
        return s * P * (D - np.einsum("npk,npk->np", P, D)[..., None])

    def curvature(self, state: tuple[Array, ...]) -> Array:
        """See :class:`Loss`."""
        P, s = state
        return s * P * (1 - P)

    def along(self, F: Array, D: Array, p: Array) -> Callable[[Array], tuple[Array, Array]]:
        """See :class:`Loss`."""
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


def _softmax(G: Array) -> tuple[Array, Array, Array]:
    """Turn decisions (problems, classes, n) into probabilities, in place.

    Return them, the highest decisions and the sums of exponentials below these, (problems, 1, n).
    """
    highest = G.max(axis=1, keepdims=True)
    G -= highest
    total = np.exp(G, out=G).sum(axis=1, keepdims=True)
    G /= total
    return G, highest, total


def _unchanged(values: Array) -> Array:
    return values


@dataclass
class Newton:
    """Problems, and where the search for their minimum has come to.

    Attributes
    ----------
    W : array of shape (d + 1, problems, width)
    F : array of shape (n, problems, width)
        Decisions of W on all rows.
    gap : array of shape (problems,)
        Bound on objective − minimum, ½‖gradient‖², over the objective or what that has gained over
        a constant classifier's, whichever is less: with a tiny C weights of zero nearly reach the
        minimum, but answer nothing. For the squared hinge the bound is the duality gap, of the dual
        variables 2 C max(0, 1 − y f). For the softmax it holds where intercepts are the best for
        the other weights, as ``minimise`` leaves them.
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
    # Once conjugate gradients took long: the rows' weights in the preconditioner, and it.
    weight: Array | None = None
    inverse: Callable[[Array], Array] = _unchanged
    C: float = 0.0  # that W is, or will be, the minimum of
    before: tuple[Array, ...] = ()  # W and F of the C before

    @classmethod
    def at_zero(cls, rows: Rows, loss: Loss, width: int, max_iter: int) -> Newton:
        """Start with weights of zero."""
        (n, d), problems = rows.shape, len(loss.fold)
        W, F = (np.zeros((m, problems, width), rows.dtype) for m in (d + 1, n))
        gap, iterations = np.full(problems, np.inf), np.zeros(problems, int)
        return cls(rows, loss, max_iter, W, F, gap, iterations)

    def as_type(self, dtype: Any) -> None:
        """Go on in another precision."""
        self.W = self.W.astype(dtype)
        self.F = self.rows.forward(self.W, self.loss.fold)
        self.before = tuple(part.astype(dtype) for part in self.before)

    def minimise(self, C: float, tol: float) -> None:
        """Lower every problem's objective until its gap is at most ``tol``.

        A problem is left where steps neither lower its gap nor its objective: only rounding
        remains.
        """
        penalty = np.ones((len(self.W), 1, 1), self.W.dtype)
        penalty[-1] = self.loss.intercept_penalty
        problems = self.W.shape[1]
        todo, done, drifted = np.arange(problems), 0, False
        best, lowest = np.full((2, problems), np.inf)
        stalled = np.zeros(problems, int)
        if self.loss.smooth and C != self.C:
            self._extrapolate(C, penalty)
        while True:
            add = self.loss.intercepts(self.F[:, todo], todo)
            if add is not None:
                # Nothing depends on the sum of a problem's intercepts: it is zero.
                add -= (self.W[-1, todo] + add).mean(axis=1, keepdims=True)
                self.W[-1, todo] += add.astype(self.W.dtype)
                self.F[:, todo] += add.astype(self.F.dtype)
            value, slope, state = self.loss.at(self.F[:, todo], todo)
            W = self.W[:, todo]
            objective = C * value + 0.5 * _sum(penalty * W * W)
            gradient = penalty * W + C * self.rows.back(slope, self.loss.fold[todo])
            # At the minimum that is at least ½‖W‖², which no cancellation spoils.
            gained = np.maximum(self.loss.constant(C, todo) - objective, 0.5 * _sum(W[:-1] ** 2))
            least = np.clip(gained, _NOTHING * objective, objective)
            now = 0.5 * _sum(penalty * gradient * gradient) / least
            self.gap[todo] = now
            progress = (now < 0.7 * best[todo]) | (objective < lowest[todo] * (1 - 0.1 * tol))
            stalled[todo] = np.where(progress, 0, stalled[todo] + 1)
            best[todo] = np.minimum(now, best[todo])
            lowest[todo] = np.minimum(objective, lowest[todo])
            keep = (now > tol) & (stalled[todo] < _STALLED)
            if not keep.any() or done == self.max_iter:
                if not drifted or tol >= _COARSE:
                    return
                # Decisions were added up step by step; only those of the weights themselves count.
                self.F = self.rows.forward(self.W, self.loss.fold)
                todo, drifted = np.arange(problems), False
                continue
            todo, W, gradient, now = todo[keep], W[:, keep], gradient[:, keep], now[keep]
            state = tuple(part[:, keep] for part in state)
            # Superlinear near the minimum, but no more precise than the last step needs.
            # Where that did not help: an intercept's small residual may mean much for the weights.
            forcing = np.clip(0.5 * np.sqrt(tol / now), 0.01, 0.25) * 0.1 ** stalled[todo]
            D, FD = self._step(C, penalty, gradient, state, todo, forcing)
            along = self.loss.along(self.F[:, todo], FD, todo)
            linear, square = _sum(penalty * W * D), _sum(penalty * D * D)
            t = minimise_along(along, C, linear, square, _sum(gradient * D))
            self.W[:, todo] += (t := t[None, :, None].astype(D.dtype)) * D
            self.F[:, todo] += t * FD
            self.iterations[todo] += 1
            done, drifted = done + 1, True

    def _extrapolate(self, C: float, penalty: Array) -> None:
        """Go on in the direction that the last change of C led to, as far as that is downhill.

        Of a squared hinge it leads beyond the margin of nearly all rows, where nothing is bent.
        """
        last = self.W.copy(), self.F.copy()
        if self.before:
            D, FD = (now - then for now, then in zip(last, self.before, strict=True))
            along = self.loss.along(self.F, FD, np.arange(self.W.shape[1]))
            linear, square = _sum(penalty * self.W * D), _sum(penalty * D * D)
            start = linear + C * along(np.zeros_like(linear))[0]
            t = minimise_along(along, C, linear, square, start)[None, :, None].astype(D.dtype)
            self.W += t * D
            self.F += t * FD
        self.before, self.C = last, C

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
        D = np.zeros_like(gradient)
        curvature = self.loss.curvature(state)
        sums = curvature.sum(axis=0, dtype=np.float64)
        intercept = (1 / np.maximum(penalty[-1] + C * sums, _TINY)).astype(gradient.dtype)
        weight = C * curvature.mean(axis=(1, 2), dtype=np.float64)
        if self.weight is not None:
            self._precondition(weight)
        # A Gram matrix and its inverse cost about as much as so many steps.
        slow = len(D) // ((_READING if self.rows.stored else _THIN) + 2 * D[0].size)
        r, left = -gradient, np.arange(len(todo))
        limit = forcing**2 * _sum(r * r)
        p, last = np.zeros_like(r), np.full(len(todo), np.inf)  # as if there were none before
        for number in range(_CG_STEPS):
            if number == slow and self.weight is None and affordable(self.rows.shape[1]):
                self._precondition(weight)
                last = np.full(len(left), np.inf)
            z = np.concatenate([self.inverse(r[:-1]), intercept * r[-1:]])
            rz = _sum(r * z)
            p = z + (rz / last)[None, :, None].astype(r.dtype) * p
            bend = partial(self._bend, state)
            Hp = self.rows.normal(p, self.loss.fold[todo[left]], bend)
            Hp = penalty * p + C * Hp
            step = (rz / _sum(p * Hp))[None, :, None].astype(r.dtype)
            D[:, left] += step * p
            r = r - step * Hp
            keep = _sum(r * r) > limit
            if not keep.any():
                break
            if not keep.all():
                left, limit, rz, r, p = left[keep], limit[keep], rz[keep], r[:, keep], p[:, keep]
                intercept = intercept[keep]
                state = tuple(part[:, keep] for part in state)
            last = rz
        return D, self.rows.forward(D, self.loss.fold[todo])

    def _precondition(self, weight: Array) -> None:
        """Keep the preconditioner while the rows' weights change little."""
        old = self.weight
        if old is None or np.abs(weight - old).sum() > _CHANGED * (weight + old).sum():
            self.weight, self.inverse = weight, self.rows.preconditioner(weight)

    def _bend(self, state: tuple[Array, ...], rows: slice, D: Array) -> Array:
        return self.loss.bend(tuple(part[rows] for part in state), D)


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


def _sum(values: Array) -> Array:
    """Add up over rows or features and over a problem's columns, in double precision."""
    return values.sum(axis=0, dtype=np.float64).sum(axis=1)
