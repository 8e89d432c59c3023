"""Exact Newton steps on the few active rows of squared-hinge problems with a large C.

If all rows but A are beyond the margin, a problem's minimum is w = Σ βᵢ xᵢ over A with
(K_AA + diag(1 / 2 C s)) β = y_A: as many unknowns as active rows, however many features there are
(Chapelle, *Training a support vector machine in the primal*, 2007). Neither ill-conditioned
features nor a large C slows it down, and the next C starts with nearly the right set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from featpipe.probes.losses import SquaredHinge, minimise_along, squared_hinge_along
from featpipe.probes.newton import Newton

Array = NDArray[Any]


class Dual:
    """Problems with one kernel, and the state of the search for their minimum.

    It starts from the state of truncated Newton, with the rows that one fold trains on. K (n, n)
    includes the intercept's ones; ``sign`` (n, m) is ±1, ``weight`` (n, m) not negative. All are in
    double precision: the kernel's rounding has to stay below 1 / C.

    Attributes
    ----------
    short : array of shape (n, m)
        By how much decisions f miss the margin, 1 − y f.
    square : array of shape (m,)
        ‖w‖² of those decisions.
    beta : array of shape (n, m)
    gap : array of shape (m,)
        (primal − dual) / primal of each problem.
    iterations : array of shape (m,)
    """

    def __init__(self, at: Newton, trained: Array, problems: Array) -> None:
        assert isinstance(at.loss, SquaredHinge)
        self.sign, self.weight, F = (
            part[trained][:, problems, 0].astype(np.float64)
            for part in (at.loss.sign, at.loss.weights, at.F)
        )
        self.K = at.rows.whole.kernel(at.rows.numbers[trained], int(at.loss.fold[problems[0]]))
        self.short, self.beta = 1 - self.sign * F, np.zeros(F.shape)
        self.square = (at.W[:, problems, 0].astype(np.float64) ** 2).sum(axis=0)
        self.gap, self.iterations = np.full(len(problems), np.inf), at.iterations[problems]

    def minimise(self, C: float, tol: float, solver: Any) -> None:
        """Find every problem's minimum, from the current state."""
        each: Callable[..., Any] = solver.pool.map if solver.pool else map
        todo = np.arange(self.sign.shape[1])
        self.gap[:] = np.inf
        for _ in range(solver.max_iter):
            y, s, old = self.sign[:, todo], self.weight[:, todo], self.short[:, todo]
            active = (old > 0) & (s > 0)
            sets = [np.flatnonzero(mine) for mine in active.T]
            beta, solved = np.zeros(y.shape), np.ones(len(todo), bool)
            ridge = 0.5 / (C * np.where(s > 0, s, 1))
            parts = each(partial(_solve, self.K), sets, y.T, ridge.T)
            for j, (A, part) in enumerate(zip(sets, parts, strict=True)):
                beta[A, j], solved[j] = part
            F = self.K @ beta
            # On active rows from the equation: cancellation would swamp it if C is large.
            short = np.where(active & solved, ridge * y * beta, 1 - y * F)
            square = (beta * F).sum(axis=0)
            gap = self._gap(C, y, s, beta, short, square)
            done = gap <= tol
            # Along the line from the weights so far, of squared norm q, to the new ones.
            q, cross = self.square[todo], (beta * y * (1 - old)).sum(axis=0)
            along = squared_hinge_along(*(part[..., None] for part in (old, short - old, s)))
            start = cross - q + C * along(np.zeros_like(q))[0]
            t = minimise_along(along, C, cross - q, q - 2 * cross + square, start)
            t = np.where(done, 1.0, t)
            self.short[:, todo] = old + t * (short - old)
            self.square[todo] = (1 - t) ** 2 * q + 2 * t * (1 - t) * cross + t * t * square
            better = gap < self.gap[todo]
            self.beta[:, todo[better]], self.gap[todo[better]] = beta[:, better], gap[better]
            self.iterations[todo] += 1
            todo = todo[~done]
            if not len(todo):
                return

    def _gap(self, C: float, y: Array, s: Array, beta: Array, short: Array, square: Array) -> Array:
        """Return the relative duality gap, with negative dual variables set to 0."""
        alpha = np.maximum(y * beta, 0)
        primal = 0.5 * square + C * (s * np.maximum(short, 0) ** 2).sum(axis=0)
        dual = (alpha - alpha**2 / (4 * C * np.where(s > 0, s, 1))).sum(axis=0) - 0.5 * square
        for j in np.flatnonzero((y * beta < 0).any(axis=0)):
            N = np.flatnonzero(y[:, j] * beta[:, j] < 0)
            change = beta[N, j]
            dual[j] += change @ (y[N, j] * (1 - short[N, j]) - 0.5 * self.K[np.ix_(N, N)] @ change)
        # Below zero only by rounding, which is then the uncertainty of the solution.
        return np.abs(primal - dual) / primal


def _solve(K: Array, A: Array, y: Array, ridge: Array) -> tuple[Array, bool]:
    """Return β of the active rows A, and whether it solves their equations."""
    if not len(A):
        return np.zeros(0), True
    M = K[np.ix_(A, A)]
    M[np.diag_indices(len(A))] += ridge[A]
    try:
        L = np.linalg.cholesky(M)
    except np.linalg.LinAlgError:  # the ridge is below the kernel's rounding
        root, V = np.linalg.eigh(M)
        rounding = len(A) * np.finfo(np.float64).eps * root[-1]
        return V @ ((V.T @ y[A]) / np.maximum(root, rounding)), False
    half = solve_triangular(L, y[A], lower=True, check_finite=False)
    return solve_triangular(L, half, lower=True, trans=1, check_finite=False), True
