"""Products with all training rows, in blocks: any number of columns in bounded memory.

A sum over rows has a fixed number of parts, each added up block by block on one thread. With one
BLAS thread per part, which :func:`featpipe.probes.linear.thread_pool` ensures, the number of
threads changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[Any]

_PARTS = 8
_KERNEL_ROWS = 256  # computed at once
_TILE = 512  # columns of a Gram matrix that are computed at once
_GRAM_ROWS = 8192  # and rows
_NEGLIGIBLE = 0.01  # of the mean weight of a row
LARGEST = 8192  # rows of a square matrix: half a GiB in double precision
_BLOCK_VALUES = 1 << 20  # numbers in a block: about what a core's cache holds


def affordable(size: int) -> bool:
    """Return whether a square matrix with this many rows may be computed and factorised.

    This decides on the span and the kernel of n rows and on the Gram matrix of d features. Without
    them conjugate gradients do all the work, in memory that is linear in n and d.
    """
    return size <= LARGEST


class Rows:
    """Rows of features, and a one for the intercept, as the problems of several folds see them.

    Arrays of weights are (d + 1, problems, width), those of decisions (n, problems, width): each
    problem is minimised separately and has ``width`` columns. ``fold`` gives for each problem the
    fold whose features it sees.

    Parameters
    ----------
    X : array of shape (n, d)
        Features: an array, or anything that has a shape and a dtype and is indexed by rows.
    mean, scale : array of shape (n_folds, d), optional
        A fold sees (X − mean) / scale. Default: a single fold sees X itself.
    pool : Executor, optional
        Threads that work on parts of the rows.
    """

    def __init__(
        self,
        X: Any,
        mean: Array | None = None,
        scale: Array | None = None,
        *,
        pool: Executor | None = None,
    ) -> None:
        n, d = self.shape = X.shape
        self._X, self._pool = X, pool
        self.dtype = np.dtype(np.float64 if X.dtype == np.float64 else np.float32)
        self.stored = not isinstance(X, np.ndarray)  # read again for every product
        self.whole: Rows = self  # the rows of which these are a projection,
        self.numbers = np.arange(n)  # and the indices of these among them
        self._lower = False  # whether X is lower triangular
        self._basis: tuple[Array, Array] | None = None  # rows, and the factor of their products
        self._products: tuple[Array, Array] | None = None  # rows, and their kernel
        self._common: tuple[Array, Array] | None = None
        self._own: tuple[Array, Array] | None = None
        if mean is not None and scale is not None:
            # Blocks are standardised by the averages over all folds; how a fold's own mean and
            # scale differ from these is applied to the weights.
            center, spread = mean.mean(axis=0), scale.mean(axis=0)
            self._common = center.astype(self.dtype), (1 / spread).astype(self.dtype)
            if len(mean) > 1:
                shift, stretch = (mean - center) / spread, spread / scale
                self._own = shift.T[..., None], stretch.T[..., None]  # (d, n_folds, 1)
        edges = np.linspace(0, n, min(_PARTS, -(-n // 256)) + 1).astype(int)
        step = max(64, _BLOCK_VALUES // d)
        self._parts = [
            [slice(i, min(i + step, last)) for i in range(first, last, step)]
            for first, last in pairwise(edges)
        ]
        if not self.stored:  # rows in memory are standardised once
            self._X, self._common = self.block(slice(None)), None

    def in_span(self, mine: Array) -> Rows:
        """Return some rows in an orthonormal basis of their span, as a single fold sees them.

        Weights outside of it change no decision on these rows. Their coordinates are the pivoted
        Cholesky factor of their products, K = L Lᵀ (Golub and Van Loan, *Matrix Computations*,
        4.2.8), which takes a quarter of the time of a QR decomposition; K is needed again.
        """
        K = self.kernel(mine, 0)
        L, order, rank, _ = linalg.lapack.dpstrf(K - 1, lower=1)  # counts from 1
        L, order = np.tril(L)[:, :rank], order - 1
        Z = self.seen(mine[order[:rank]], 0).astype(np.float64)
        spanned = Rows(L.astype(self.dtype), pool=self._pool)
        spanned.whole, spanned.numbers, spanned._basis = self, mine[order], (Z, L[:rank])
        spanned._lower = True
        self._products = spanned.numbers, K[np.ix_(order, order)]
        return spanned

    def lift(self, W: Array) -> Array:
        """Return weights (d + 1, columns) as those of the ``whole`` rows' features."""
        if self._basis is None:
            return W
        Z, L = self._basis
        lifted = Z.T @ linalg.solve_triangular(L, W[:-1], lower=True, trans=1, check_finite=False)
        return np.concatenate([lifted.astype(W.dtype), W[-1:]])

    def block(self, rows: Any) -> Array:
        """Return some rows, standardised by the averages over all folds."""
        block = self._X[rows].astype(self.dtype, copy=False)
        if self._common is None:
            return block
        center, factor = self._common
        block = block - center
        block *= factor
        return block

    def seen(self, rows: Any, fold: int) -> Array:
        """Return some rows as a fold sees them."""
        block = self.block(rows)
        if self._own is None:
            return block
        shift, stretch = (part[:, fold, 0].astype(block.dtype) for part in self._own)
        return (block - shift) * stretch

    def kernel(self, rows: Array, fold: int) -> Array:
        """Return inner products of some rows as a fold sees them, ones included, in float64."""
        if self._products is not None and np.array_equal(rows, self._products[0]):
            return self._products[1]
        Z = self.seen(rows, fold).astype(np.float64)
        K = np.empty((len(Z), len(Z)))

        def work(first: int) -> None:
            last = min(first + _KERNEL_ROWS, len(Z))
            K[first:last, :last] = Z[first:last] @ Z[:last].T + 1
            K[:first, first:last] = K[first:last, :first].T

        # The longest first, so that threads finish together.
        self._each(work, reversed(range(0, len(Z), _KERNEL_ROWS)))
        return K

    def forward(self, W: Array, fold: Array) -> Array:
        """Return the decisions of weights."""
        U, c = self._to_common(W, fold)
        out = np.empty((self.shape[0], U.shape[1]), U.dtype)

        def work(part: list[slice]) -> None:
            for rows in part:
                block = self._not_zero(rows)
                np.matmul(block, U[: block.shape[1]], out=out[rows])

        self._each(work, self._parts)
        return out.reshape(-1, *W.shape[1:]) + c

    def back(self, R: Array, fold: Array) -> Array:
        """Return the transposed product, which maps gradients of decisions to those of weights."""
        flat = R.reshape(len(R), -1)

        def work(part: list[slice]) -> tuple[Array, Array]:
            return _total(self._transposed(self._not_zero(r), flat[r]) for r in part)

        return self._from_common(*_total(self._each(work, self._parts)), fold, R.shape[1:])

    def normal(
        self, V: Array, fold: Array, between: Callable[[slice, Array], Array]
    ) -> tuple[Array, Array]:
        """Return back(between(forward(V))) and forward(V), in one pass over the rows."""
        U, c = self._to_common(V, fold)
        out = np.empty((self.shape[0], *V.shape[1:]), U.dtype)

        def one(rows: slice) -> tuple[Array, Array]:
            block = self._not_zero(rows)
            out[rows] = (block @ U[: block.shape[1]]).reshape(-1, *V.shape[1:]) + c
            R = between(rows, out[rows]).reshape(-1, U.shape[1])
            return self._transposed(block, R)

        parts = self._each(lambda part: _total(one(rows) for rows in part), self._parts)
        return self._from_common(*_total(parts), fold, V.shape[1:]), out

    def _not_zero(self, rows: slice) -> Array:
        block = self.block(rows)
        return block[:, : rows.stop] if self._lower else block

    def _transposed(self, block: Array, R: Array) -> tuple[Array, Array]:
        # Rᵀ X instead of Xᵀ R: OpenBLAS multiplies few columns a fifth faster that way.
        G = np.zeros((R.shape[1], self.shape[1]), np.result_type(block, R))
        np.matmul(R.T, block, out=G[:, : block.shape[1]])
        return G.T, R.sum(axis=0)

    def preconditioner(self, weight: Array) -> Callable[[Array], Array]:
        """Return a function that applies (I + Σ weightᵢ xᵢ xᵢᵀ)⁻¹ to weights of features."""
        d = self.shape[1]
        A, on = self._gram(weight), np.diag_indices(d)
        diagonal, ridge = A[on], 1.0
        factorise, invert = linalg.get_lapack_funcs(("potrf", "potri"), (A,))
        while True:
            A[on] = diagonal + ridge
            U, failed = factorise(A.T)
            if not failed or np.isinf(ridge):
                break
            # Features repeat, and rounding hides the ridge; a larger one costs only iterations.
            ridge = max(10 * ridge, np.finfo(A.dtype).eps * float(diagonal.max()))
        inverse, _ = invert(U, overwrite_c=True)
        inverse += np.triu(inverse, 1).T

        def apply(G: Array) -> Array:
            flat = G.reshape(d, -1)
            out = np.empty(flat.shape, np.result_type(flat, inverse))

            def tile(first: int) -> None:
                rows = slice(first, first + _TILE)
                np.matmul(inverse[rows], flat, out=out[rows])

            self._each(tile, range(0, d, _TILE))
            return out.reshape(G.shape)

        return apply

    def _gram(self, weight: Array) -> Array:
        """Return the lower half of Σ weightᵢ xᵢ xᵢᵀ over the rows that matter, in tiles."""
        n, d = self.shape
        gram = np.zeros((d, d), self.dtype)
        edges, root = range(0, d, _TILE), np.sqrt(weight).astype(self.dtype)[:, None]
        counts = weight > _NEGLIGIBLE * weight.mean()
        for start in range(0, n, _GRAM_ROWS):
            rows = start + np.flatnonzero(counts[start : start + _GRAM_ROWS])
            if not len(rows):
                continue
            block = self.block(rows) * root[rows]

            def tile(corner: tuple[int, int], block: Array = block) -> None:
                rows, columns = (slice(edge, edge + _TILE) for edge in corner)
                gram[rows, columns] += block[:, rows].T @ block[:, columns]

            corners = [(row, column) for row in edges for column in edges if column <= row]
            self._each(tile, corners)
        return gram

    def _to_common(self, W: Array, fold: Array) -> tuple[Array, Array]:
        V, c = W[:-1], W[-1]
        if self._own is not None:
            shift, stretch = (part[:, fold].astype(W.dtype) for part in self._own)
            V = V * stretch
            c = c - (shift * V).sum(axis=0)
        return V.reshape(len(V), -1), c

    def _from_common(self, G: Array, g: Array, fold: Array, shape: tuple[int, ...]) -> Array:
        G, g = G.reshape(-1, *shape), g.reshape(1, *shape)
        if self._own is not None:
            shift, stretch = (part[:, fold].astype(G.dtype) for part in self._own)
            G = (G - shift * g) * stretch
        return np.concatenate([G, g])

    def _each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list((self._pool.map if self._pool else map)(work, items))


def _total(terms: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Add up pairs, in their order."""
    (first, second), *rest = terms
    for a, b in rest:
        first, second = first + a, second + b
    return first, second


def moments(X: Any, member: Array) -> tuple[Array, Array]:
    """Return the mean and standard deviation of the rows of each fold, (n_folds, d) each.

    ``member`` (n_folds, n) says which rows are in which fold. A feature that is constant in a fold
    has the deviation 1, as in StandardScaler. One pass over the rows, in double precision; means
    and squared deviations are merged block by block (Chan, Golub and LeVeque, 1983).
    """
    # Rows that are in the same folds form a part; the parts of a fold are merged at the end.
    patterns, part = np.unique(member, axis=1, return_inverse=True)
    n, d = X.shape
    count = np.zeros((patterns.shape[1], 1))
    mean, squares = np.zeros((2, patterns.shape[1], d))
    step = max(64, _BLOCK_VALUES // d)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        block = np.asarray(X[rows], np.float64)
        for p in np.unique(part[rows]):
            mine = block[part[rows] == p]
            center = mine.mean(axis=0)
            away, total = center - mean[p], count[p] + len(mine)
            squares[p] += ((mine - center) ** 2).sum(axis=0)
            squares[p] += away**2 * count[p] * len(mine) / total
            mean[p] += away * len(mine) / total
            count[p] = total
    means, variances = np.zeros((2, len(member), d))
    for k, mine in enumerate(patterns.astype(bool)):
        total = count[mine].sum()
        means[k] = (count[mine] * mean[mine]).sum(axis=0) / total
        between = count[mine] * (mean[mine] - means[k]) ** 2
        variances[k] = (squares[mine] + between).sum(axis=0) / total
    # Rounding explains the variance: scikit-learn's bound.
    rounding = n * np.finfo(np.float64).eps
    constant = variances <= rounding * variances + (rounding * means) ** 2
    return means, np.where(constant, 1.0, np.sqrt(variances))
