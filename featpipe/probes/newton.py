"""Truncated Newton for many linear classifiers at once: columns of the same products.

A problem has weights W, of shape (d + 1, width), and minimises ½‖W‖² + C Σ loss(X W). Newton steps
solve their linear systems by conjugate gradients (Lin, Weng and Keerthi, *Trust region Newton
method for large-scale logistic regression*, 2008), preconditioned by the rows' Gram matrix;
converged problems are left out of further products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.probes.losses import Loss, minimise_along, summed
from featpipe.probes.rows import Rows, affordable

Array = NDArray[Any]

_CG_STEPS = 200
THIN = 50  # columns: half as many are multiplied in nearly the same time
_READING = 380  # columns that are multiplied in the time it takes to read the rows
_CHANGED = 0.7  # a relative change of the rows' weights that requires a new preconditioner
_STALLED = 4  # steps in a row without progress
_COARSE = 1e-3  # rounding hardly changes a gap this large
_NOTHING = 1e-16  # share of the objective: any real gain is larger
_TINY = 1e-30


class Newton:
    """Problems, and the state of the search for their minimum, at first with weights of zero.

    Attributes
    ----------
    W : array of shape (d + 1, problems, width)
    F : array of shape (n, problems, width)
        Decisions of W on all rows.
    gap : array of shape (problems,)
        Bound on objective − minimum, ½‖gradient‖², relative to the objective or to its gain over a
        constant classifier's, whichever is less: with a tiny C weights of zero nearly reach the
        minimum, but classify nothing. For the squared hinge the bound is the duality gap with the
        dual variables 2 C max(0, 1 − y f). For the softmax it holds if the intercepts are the best
        for the other weights, as ``minimise`` leaves them.
    iterations : array of shape (problems,)
        Newton steps so far.
    """

    def __init__(self, rows: Rows, loss: Loss, max_iter: int) -> None:
        self.rows, self.loss, self.max_iter = rows, loss, max_iter
        (n, d), problems = rows.shape, len(loss.fold)
        self.W, self.F = (np.zeros((m, problems, loss.width), rows.dtype) for m in (d + 1, n))
        self.gap, self.iterations = np.full(problems, np.inf), np.zeros(problems, int)
        # The rows' weights in the preconditioner, and the preconditioner, once there is one.
        self.weight: Array | None = None
        self.inverse: Callable[[Array], Array] = np.asarray
        self.C = 0.0  # whose minimum W is, or will be
        self.before: tuple[Array, ...] = ()  # W and F of the previous C

    def as_type(self, dtype: Any) -> None:
        """Continue in another precision."""
        self.W = self.W.astype(dtype)
        self.F = self.rows.forward(self.W, self.loss.fold)
        self.before = tuple(part.astype(dtype) for part in self.before)

    def minimise(self, C: float, tol: float) -> None:
        """Lower every problem's objective until its gap is at most ``tol``.

        A problem is abandoned if steps lower neither its gap nor its objective: only rounding
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
                # Nothing depends on the sum of a problem's intercepts; it is kept at zero.
                add -= (self.W[-1, todo] + add).mean(axis=1, keepdims=True)
                self.W[-1, todo] += add.astype(self.W.dtype)
                self.F[:, todo] += add.astype(self.F.dtype)
            value, slope, state = self.loss.at(self.F[:, todo], todo)
            W = self.W[:, todo]
            objective = C * value + 0.5 * summed(penalty * W * W)
            gradient = penalty * W + C * self.rows.back(slope, self.loss.fold[todo])
            # At the minimum the gain is at least ½‖W‖², which involves no cancellation.
            gained = np.maximum(self.loss.constant(C, todo) - objective, 0.5 * summed(W[:-1] ** 2))
            least = np.clip(gained, _NOTHING * objective, objective)
            now = 0.5 * summed(penalty * gradient * gradient) / least
            self.gap[todo] = now
            progress = (now < 0.7 * best[todo]) | (objective < lowest[todo] * (1 - 0.1 * tol))
            stalled[todo] = np.where(progress, 0, stalled[todo] + 1)
            best[todo] = np.minimum(now, best[todo])
            lowest[todo] = np.minimum(objective, lowest[todo])
            keep = (now > tol) & (stalled[todo] < _STALLED)
            if not keep.any() or done == self.max_iter:
                if not drifted or tol >= _COARSE:
                    return
                # F was updated step by step; the result must be that of the weights themselves.
                self.F = self.rows.forward(self.W, self.loss.fold)
                todo, drifted = np.arange(problems), False
                continue
            todo, W, gradient, now = todo[keep], W[:, keep], gradient[:, keep], now[keep]
            state = tuple(part[:, keep] for part in state)
            # Superlinear near the minimum, but no more precise than the last step needs. More so
            # after a stall: a small residual of an intercept may matter much for the weights.
            forcing = np.clip(0.5 * np.sqrt(tol / now), 0.01, 0.25) * 0.1 ** stalled[todo]
            D, FD = self._step(C, penalty, gradient, state, todo, forcing)
            along = self.loss.along(self.F[:, todo], FD, todo)
            linear, square = summed(penalty * W * D), summed(penalty * D * D)
            t = minimise_along(along, C, linear, square, summed(gradient * D))
            self.W[:, todo] += (t := t[None, :, None].astype(D.dtype)) * D
            self.F[:, todo] += t * FD
            self.iterations[todo] += 1
            done, drifted = done + 1, True

    def _extrapolate(self, C: float, penalty: Array) -> None:
        """Continue in the direction of the last change of C, as far as it leads downhill.

        For a squared hinge it would lead beyond the margin of nearly all rows, where the loss is
        flat.
        """
        last = self.W.copy(), self.F.copy()
        if self.before:
            D, FD = (now - then for now, then in zip(last, self.before, strict=True))
            along = self.loss.along(self.F, FD, np.arange(self.W.shape[1]))
            linear, square = summed(penalty * self.W * D), summed(penalty * D * D)
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
        """Solve the Newton systems by conjugate gradients; return the steps of W and F."""
        D = np.zeros_like(gradient)
        curvature = self.loss.curvature(state)
        sums = curvature.sum(axis=0, dtype=np.float64)
        intercept = (1 / np.maximum(penalty[-1] + C * sums, _TINY)).astype(gradient.dtype)
        weight = C * curvature.mean(axis=(1, 2), dtype=np.float64)
        if self.weight is not None:
            self._precondition(weight)
        # A Gram matrix and its inverse cost about as much as this many steps.
        slow = len(D) // ((_READING if self.rows.stored else THIN) + 2 * D[0].size)
        FD = np.zeros((self.rows.shape[0], *gradient.shape[1:]), gradient.dtype)
        r, left = -gradient, np.arange(len(todo))
        limit = forcing**2 * summed(r * r)
        p, last = np.zeros_like(r), np.full(len(todo), np.inf)  # no previous direction

        def bend(rows: slice, D: Array) -> Array:
            return self.loss.bend(tuple(part[rows] for part in state), D)

        for number in range(_CG_STEPS):
            if number == slow and self.weight is None and affordable(self.rows.shape[1]):
                self._precondition(weight)
                last = np.full(len(left), np.inf)
            z = np.concatenate([self.inverse(r[:-1]), intercept * r[-1:]])
            rz = summed(r * z)
            p = z + (rz / last)[None, :, None].astype(r.dtype) * p
            Hp, Fp = self.rows.normal(p, self.loss.fold[todo[left]], bend)
            Hp = penalty * p + C * Hp
            step = (rz / summed(p * Hp))[None, :, None].astype(r.dtype)
            where = left if len(left) < len(todo) else slice(None)  # faster than by indices
            D[:, where] += step * p
            FD[:, where] += step * Fp
            r = r - step * Hp
            keep = summed(r * r) > limit
            if not keep.any():
                break
            if not keep.all():
                left, limit, rz, r, p = left[keep], limit[keep], rz[keep], r[:, keep], p[:, keep]
                intercept = intercept[keep]
                state = tuple(part[:, keep] for part in state)
            last = rz
        return D, FD

    def _precondition(self, weight: Array) -> None:
        """Keep the preconditioner while the rows' weights change little."""
        old = self.weight
        if old is None or np.abs(weight - old).sum() > _CHANGED * (weight + old).sum():
            self.weight, self.inverse = weight, self.rows.preconditioner(weight)
