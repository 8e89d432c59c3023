"""Linear classifiers for all classes, folds and values of C together, and as estimators.

The objectives are those of scikit-learn: LinearSVC's (liblinear's L2-regularised squared hinge
with a penalised intercept) and LogisticRegression's (multinomial, without a penalty on the
intercept), so the coefficients can be stored in those classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Self

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from featpipe.probes.active_set import Dual
from featpipe.probes.losses import Loss, Softmax, SquaredHinge
from featpipe.probes.newton import Newton
from featpipe.probes.rows import Rows, affordable, moments

Array = NDArray[Any]

# The exact solver takes over at this many active rows, or this share of the features if larger.
_EXACT_ROWS = 512
_EXACT_SHARE = 0.7
_LOOSE = 1e-2  # gap for values of C between those asked for


@dataclass(frozen=True)
class Task:
    """What is learned: the classes of weighted rows, for several folds.

    Parameters
    ----------
    hinge : bool
        Squared hinge of every class against the rest, or the cross-entropy of a softmax.
    target : array of shape (n,), of integers
        The class of each row.
    classes : int
        Number of classes.
    weight : array of shape (n_folds, n)
        Of each row in each fold; 0 for rows that a fold does not train on.
    class_weight : array of shape (n_folds, classes, 2), optional
        Weights of a class and, for the squared hinge, of the rest.
    """

    hinge: bool
    target: Array
    classes: int
    weight: Array
    class_weight: Array | None = None

    def only(self, rows: Array) -> Task:
        """Return the task restricted to some rows."""
        return replace(self, target=self.target[rows], weight=self.weight[:, rows])

    def of(self, folds: Array, dtype: Any) -> Loss:
        """Return the loss of some folds."""
        weight = self.weight[folds].T
        balance = np.ones((len(folds), self.classes, 2))
        if self.class_weight is not None:
            balance = self.class_weight[folds]
        if not self.hinge:
            counts = weight * balance[:, self.target, 0].T
            fold = np.arange(len(folds))
            return Softmax(self.target, counts.astype(dtype), fold, self.classes)
        first = int(self.classes == 2)  # of two classes, only the second has a column
        columns = np.arange(first, self.classes)
        fold = np.repeat(np.arange(len(folds)), len(columns))
        own = self.target[:, None] == np.tile(columns, len(folds))
        counts = weight[:, fold] * np.where(own, *balance[:, first:].reshape(-1, 2).T)
        return SquaredHinge(np.where(own, 1, -1).astype(dtype), counts.astype(dtype), fold)


@dataclass(frozen=True)
class Solver:
    """How precisely problems are solved, and with which threads (:func:`thread_pool`)."""

    tol: float = 1e-5  # relative gap at which a problem is solved
    max_iter: int = 100  # Newton steps for one C, at most
    pool: Executor | None = None


@dataclass
class Fit:
    """The classifiers of one fold with one C: a column for each class, or one for two classes."""

    value: int  # index of C among the values
    fold: int
    W: Array  # (d + 1, columns): weights of (standardised) features, the intercept last
    F: Array  # decisions on all rows, (n, columns)
    gap: float  # bound on objective − minimum, relative to the objective or its gain
    iterations: int  # Newton steps since the smallest C
    mean: Array | None = None  # (d,) of standardised features, on the fold's rows
    scale: Array | None = None


@contextmanager
def thread_pool(jobs: int | None) -> Iterator[Executor | None]:
    """Provide threads that compute with one BLAS thread each; None for a single job."""
    number = joblib.effective_n_jobs(jobs)
    with threadpool_limits(1):
        if number == 1:
            yield None
        else:
            with ThreadPoolExecutor(number) as pool:
                yield pool


def fit_path(
    X: Any, task: Task, values: Sequence[float], solver: Solver, *, standardise: bool = False
) -> Iterator[Fit]:
    """Fit every fold with every C, warm from the next smaller one.

    Parameters
    ----------
    X : array of shape (n, d)
        Features, or anything that has a shape and a dtype and is indexed by rows.
    task : Task
    values : sequence of float
        Values of C.
    solver : Solver
    standardise : bool
        Whether features have mean 0 and standard deviation 1 on each fold's own rows.

    Yields
    ------
    Fit
        In ascending order of C within a fold.
    """
    _check(task, values)
    # Two columns of a softmax share a penalty that a single one would bear alone.
    two_columns = task.classes == 2 and not task.hinge
    values = [C / 2 for C in values] if two_columns else values
    trained = [np.flatnonzero(weight) for weight in task.weight]
    views: tuple[Array, Array] | None = None  # mean and scale, (n_folds, d) each
    if standardise:
        views = moments(X, task.weight > 0)
    elif not task.hinge:
        # Without a penalty on the intercept, any origin has the same minimum; far from the rows,
        # the intercept is hard to tell from the weights.
        used = task.weight.max(axis=0, keepdims=True) > 0
        mean = np.repeat(moments(X, used)[0], len(trained), axis=0)
        views = mean, np.ones_like(mean)
    # With fewer rows than features, each fold is solved in the span of its own rows.
    most = max(map(len, trained))
    spans = most < X.shape[1] and affordable(most)
    for folds in np.arange(len(trained)).reshape(-1, 1 if spans else len(trained)):
        own = [part[folds] for part in views or ()]
        rows, seen, mine = Rows(X, *own, pool=solver.pool), task, trained[folds[0]]
        if spans and len(mine) > _EXACT_ROWS:
            rows = rows.in_span(mine)
            seen = task.only(rows.numbers)
        for fit in _fit_folds(rows, seen, folds, values, solver):
            if views is not None:
                mean, scale = (part[fit.fold] for part in views)
                if standardise:
                    fit.mean, fit.scale = mean, scale
                else:
                    fit.W[-1] -= mean @ fit.W[:-1]
            if two_columns:
                fit.W, fit.F = (np.diff(columns, axis=1) for columns in (fit.W, fit.F))
            yield fit


def _check(task: Task, values: Sequence[float]) -> None:
    """Raise an error if there is nothing to minimise."""
    for C in values:
        if not (isinstance(C, Real) and 0 < C < np.inf):
            raise ValueError(f"C must be a positive, finite number; got {C!r}")
    if not (np.isfinite(task.weight).all() and (task.weight >= 0).all()):
        raise ValueError("weights of rows must be finite and not negative")
    for fold, weight in enumerate(task.weight):
        classes = np.unique(task.target[weight > 0])
        if len(classes) < 2:
            raise ValueError(
                f"a fold must train on at least 2 classes; fold {fold} has {len(classes)} "
                f"in {np.count_nonzero(weight)} rows"
            )


def _fit_folds(
    rows: Rows, task: Task, folds: Array, values: Sequence[float], solver: Solver
) -> Iterator[Fit]:
    """Fit folds together by truncated Newton, then each by its active set once that is small."""
    n, d = rows.shape
    loss = task.of(folds, rows.dtype)
    at = Newton(rows, loss, solver.max_iter)
    trained = [np.flatnonzero(task.weight[fold]) for fold in folds]
    most = max(map(len, trained))
    limit = max(_EXACT_ROWS, _EXACT_SHARE * min(d, most))
    hinge = loss if isinstance(loss, SquaredHinge) and affordable(most) else None
    steps = _with_steps_between(values, 1 / most)
    while steps and (hinge is None or hinge.active(at.F).sum(axis=0).mean() > limit):
        C, value = steps.pop(0)
        at.minimise(C, solver.tol if value is not None else _LOOSE)
        if value is None:
            continue
        precise = rows.dtype == np.float32 and (at.gap > solver.tol).any()
        if precise:
            at.as_type(np.float64)
            at.minimise(C, solver.tol)
        for k, fold in enumerate(folds):
            mine = np.flatnonzero(loss.fold == k)
            W, F = rows.lift(at.W[:, mine].reshape(d + 1, -1)), at.F[:, mine].reshape(n, -1)
            if rows.whole is not rows:
                F = rows.whole.forward(W[:, None], np.zeros(1, int))[:, 0]
            if isinstance(loss, Softmax):  # the limit for classes without rows
                W[-1, loss.absent[k]] = -np.inf
                F[:, loss.absent[k]] = -np.inf
            gap, iterations = float(at.gap[mine].max()), int(at.iterations[mine].max())
            yield Fit(value, int(fold), W, F, gap, iterations)
        if precise:
            at.as_type(np.float32)
    for k, fold in enumerate(folds if steps else ()):
        mine = np.flatnonzero(loss.fold == k)
        dual = Dual(at, trained[k], mine)
        for C, value in steps:
            dual.minimise(C, solver.tol if value is not None else _LOOSE, solver)
            if value is None:
                continue
            beta = np.zeros((rows.whole.shape[0], len(mine), 1))
            beta[rows.numbers[trained[k]], :, 0] = dual.beta
            W = rows.whole.back(beta, loss.fold[mine])
            F = rows.whole.forward(W.astype(rows.dtype), loss.fold[mine])
            gap, iterations = float(dual.gap.max()), int(dual.iterations.max())
            yield Fit(value, int(fold), W[..., 0], F[..., 0], gap, iterations)


def _with_steps_between(values: Sequence[float], last: float) -> list[tuple[float, int | None]]:
    """Return the values, ascending, with their numbers; None marks those that bridge a gap."""
    steps: list[tuple[float, int | None]] = []
    for number in np.argsort(values, kind="stable"):
        while values[number] > 10.5 * last:
            last *= 10
            steps.append((last, None))
        steps.append((float(values[number]), int(number)))
        last = max(last, float(values[number]))
    return steps


class _Linear(ClassifierMixin, BaseEstimator):
    """A linear classifier whose classes are fitted together."""

    _hinge: bool
    classes_: Array
    coef_: Array
    intercept_: Array

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        tol: float = 1e-5,
        max_iter: int = 100,
        n_jobs: int | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn ``coef_`` and ``intercept_`` of features X (n, d) and labels y (n,)."""
        rows, labels = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(labels)
        weight = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        self.classes_, target = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"There must be at least 2 classes; there is 1 class: {self.classes_}")
        counts = np.bincount(target, weight)
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            own = counts.sum() / (len(counts) * np.maximum(counts, 1e-300))
        else:
            own = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
        without = self.classes_[own * counts <= 0]
        if len(without):
            raise ValueError(f"Every class needs a row of positive weight; without: {without}")
        # As in liblinear: a class has its own weight and the rest 1; of two, each has its own.
        rest = own[::-1] if len(own) == 2 else np.ones_like(own)
        balance = np.stack([own, rest], axis=-1)[None]
        task = Task(self._hinge, target, len(own), weight[None], balance)
        with thread_pool(self.n_jobs) as pool:
            (fit,) = fit_path(rows, task, [self.C], Solver(self.tol, self.max_iter, pool))
        W = fit.W.astype(np.float64)
        self.coef_, self.intercept_ = W[:-1].T, W[-1]
        self.n_iter_, self.gap_ = fit.iterations, fit.gap
        if fit.gap > self.tol:
            warnings.warn(
                f"the relative gap is {fit.gap:.1e} after {fit.iterations} Newton steps, more than "
                f"tol={self.tol:g}: scale the features, lower C or raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """Return the decisions, (n, n_classes), or (n,) for two classes."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        F = rows @ self.coef_.T + self.intercept_
        return F.ravel() if F.shape[1] == 1 else F

    def predict(self, X: ArrayLike) -> Array:
        """Return the class with the highest decision, (n,)."""
        F = self.decision_function(X)
        return self.classes_[(F > 0).astype(int) if F.ndim == 1 else F.argmax(axis=1)]


class BatchedLinearSVC(_Linear):
    """One-vs-rest linear SVM, all classes at once; minimises what LinearSVC does.

    For each class ½‖w‖² + ½b² + C Σ max(0, 1 − y (w·x + b))², to a relative gap of ``tol``.

    Attributes
    ----------
    coef_ : array of shape (n_classes, d), or (1, d) for two classes
    intercept_ : array of shape (n_classes,) or (1,)
    n_iter_ : int
        Newton steps.
    gap_ : float
        The largest duality gap of a class, relative to the objective or to how far that is below a
        constant classifier's, whichever is less.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = BatchedLinearSVC(C=1e-3).fit(X, y)
    >>> bool(model.gap_ <= 1e-5), model.coef_.shape
    (True, (10, 64))
    """

    _hinge = True


class BatchedLogisticRegression(_Linear):
    """Multinomial logistic regression, all classes at once; minimises what scikit-learn's does.

    ½‖W‖² + C Σ −log softmax(W x + b), the intercept not penalised; of two classes, one column.

    Attributes
    ----------
    coef_ : array of shape (n_classes, d), or (1, d) for two classes
    intercept_ : array of shape (n_classes,) or (1,)
    n_iter_ : int
        Newton steps.
    gap_ : float
        Bound on how far the objective is above its minimum, relative as the SVM's.
    """

    _hinge = False

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return probabilities, (n, n_classes)."""
        F = self.decision_function(X)
        if F.ndim == 1:
            return np.column_stack([expit(-F), expit(F)])
        return softmax(F, axis=1)
