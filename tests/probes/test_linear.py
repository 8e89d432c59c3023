"""Batched linear classifiers minimise what scikit-learn's do, for all folds and values of C."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.probes import rows
from featpipe.probes.linear import (
    BatchedLinearSVC,
    BatchedLogisticRegression,
    Fit,
    Solver,
    Task,
    fit_path,
    thread_pool,
)
from featpipe.probes.rows import Rows

BOTH = pytest.mark.parametrize(
    "kind", [BatchedLinearSVC, BatchedLogisticRegression], ids=["svm", "logistic"]
)


class Stored:
    """Float16 rows that are read and converted when asked for."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.shape, self.dtype = X.astype(np.float16), X.shape, np.dtype(np.float32)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.X[rows].astype(self.dtype)


# Probabilities are compared to 1e-7; those of scikit-learn's own classifiers are with such a
# tolerance, too.
@parametrize_with_checks([BatchedLinearSVC(), BatchedLogisticRegression(tol=1e-17)])
def test_estimators_pass_scikit_learns_checks(estimator, check):
    check(estimator)


# --- against scikit-learn ---


@dataclass(frozen=True)
class Problem:
    X: np.ndarray
    y: np.ndarray
    C: float
    class_weight: str | None
    weight: np.ndarray | None

    @property
    def positive(self) -> np.ndarray:
        """Return which rows are positive, of each problem of one class against the rest."""
        classes = np.unique(self.y)
        return self.y[:, None] == (classes[1:] if len(classes) == 2 else classes)

    def row_weights(self, hinge: bool) -> np.ndarray:
        """Return weights as liblinear and as scikit-learn use them, (n, problems) and (n, 1)."""
        classes = np.unique(self.y)
        weight = (np.ones(len(self.y)) if self.weight is None else self.weight)[:, None]
        counts = weight[:, 0] @ (self.y[:, None] == classes)
        own = counts.sum() / len(classes) / counts
        own = np.ones_like(own) if self.class_weight is None else own
        by_row = own[np.searchsorted(classes, self.y)][:, None]
        one_column = len(own) == 2 or not hinge
        return weight * (by_row if one_column else np.where(self.positive, own, 1))

    def hinge(self, W: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return LinearSVC's objective of each class."""
        short = np.maximum(1 - np.where(self.positive, 1, -1) * (self.X @ W.T + b), 0)
        lost = self.C * (self.row_weights(hinge=True) * short**2).sum(axis=0)
        return 0.5 * (W**2).sum(axis=1) + 0.5 * b**2 + lost

    def softmax(self, W: np.ndarray, b: np.ndarray) -> float:
        """Return LogisticRegression's objective."""
        F = self.X @ W.T + b
        F = np.hstack([np.zeros_like(F), F]) if F.shape[1] == 1 else F
        F -= F.max(axis=1, keepdims=True)
        own = np.searchsorted(np.unique(self.y), self.y)
        loss = np.log(np.exp(F).sum(axis=1)) - F[np.arange(len(F)), own]
        return 0.5 * (W**2).sum() + self.C * self.row_weights(hinge=False)[:, 0] @ loss


def problem(seed: int, most: int, classes: int) -> Problem:
    """Return a random problem of at most so many rows, features and classes."""
    rng = np.random.default_rng(seed)

    def up_to(low: float, high: float) -> int:
        return int(np.exp(rng.uniform(np.log(low), np.log(high))))

    n, d = up_to(10, most), up_to(10, most)
    k = min(n // 2, up_to(2, classes + 1))
    y = rng.choice(k, n, p=rng.dirichlet(np.full(k, rng.choice([0.5, 5]))))
    y[:k] = np.arange(k)  # some have that row alone
    rank = rng.integers(2, d + 1)
    noise = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) / np.sqrt(rank)
    X = rng.choice([0.1, 1]) * rng.normal(size=(k, d))[y] + rng.choice([0.3, 1, 5]) * noise
    if rng.random() < 0.3:
        X[n // 2 :] = X[: n - n // 2]  # of other labels, perhaps
    if rng.random() < 0.3:
        X[:, ::3] = 1.5
    if rng.random() < 0.6:
        X = StandardScaler().fit_transform(X)
    weight = [None, rng.exponential(size=n), rng.integers(0, 3, n).astype(float)][rng.integers(3)]
    if weight is not None:
        weight[:k] = np.maximum(weight[:k], 1)
    C, class_weight = 10 ** rng.uniform(-6, 3), [None, "balanced"][rng.integers(2)]
    return Problem(X, y, C, class_weight, weight)


def compare(
    case: Problem,
    kind: Any,
    dtype: Any,
    above: float = 1e-5,
    duals: tuple[bool, ...] = (True, False),
) -> None:
    """Compare objectives and decisions with those of scikit-learn."""
    case = replace(case, X=case.X.astype(dtype).astype(np.float64))
    own = kind(case.C, class_weight=case.class_weight)
    own.fit(case.X.astype(dtype), case.y, case.weight)
    assert own.gap_ <= own.tol
    if kind is BatchedLinearSVC:
        weights = case.row_weights(hinge=True)
        found = case.hinge(own.coef_, own.intercept_)
        least, F = np.full(len(found), np.inf), np.empty((len(case.y), len(found)))
        for j, positive in enumerate(case.positive.T):
            # Either solver may be slow to converge; the better one is the reference.
            for dual in duals:
                svm = LinearSVC(C=case.C, tol=1e-8, dual=dual, max_iter=20_000, random_state=0)
                svm.fit(case.X, positive, weights[:, j])
                W, b = np.zeros_like(own.coef_), np.zeros_like(own.intercept_)
                W[j], b[j] = svm.coef_[0], svm.intercept_[0]
                if (value := case.hinge(W, b)[j]) < least[j]:
                    least[j], F[:, j] = value, svm.decision_function(case.X)
    else:
        found, least = case.softmax(own.coef_, own.intercept_), np.inf
        for solver in ("newton-cg", "lbfgs"):
            model = LogisticRegression(
                C=case.C, tol=1e-8, max_iter=5000, solver=solver, class_weight=case.class_weight
            ).fit(case.X, case.y, case.weight)
            if (value := case.softmax(model.coef_, model.intercept_)) < least:
                least, F = value, model.decision_function(case.X).reshape(len(case.y), -1)
    assert ((found - least) <= above * least).all()
    F = np.hstack([-F, F]) if F.shape[1] == 1 else F
    second, first = np.sort(F, axis=1)[:, -2:].T
    sure = first - second > 1e-2 * np.abs(F).max(axis=1) + 1e-3
    same = own.predict(case.X) == np.unique(case.y)[F.argmax(axis=1)]
    assert same[sure].mean() >= 0.999 if sure.any() else True


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore")  # of what scikit-learn's solvers do not reach
def test_small_problems_end_where_scikit_learn_does(kind, dtype, seed):
    compare(problem(seed, 120, 12), kind, dtype)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.filterwarnings("ignore")
def test_problems_of_every_size_end_where_scikit_learn_does(kind, dtype, seed):
    compare(problem(seed, 1000, 30), kind, dtype)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize(("n", "d", "k"), [(5000, 200, 100), (800, 5000, 10), (5000, 1000, 3)])
@pytest.mark.parametrize("C", [1e-5, 1e-2, 10.0])
@pytest.mark.filterwarnings("ignore")
def test_large_problems_are_solved_to_their_tolerance(kind, n, d, k, C):
    rng = np.random.default_rng(n)
    y = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    X = StandardScaler().fit_transform(rng.normal(size=(k, d))[y] + 3 * rng.normal(size=(n, d)))
    case = Problem(X, y, C, None, None)
    single, double = (kind(C, tol=1e-6).fit(X.astype(t), y) for t in (np.float32, np.float64))
    value = case.hinge if kind is BatchedLinearSVC else case.softmax
    first, second = (value(model.coef_, model.intercept_) for model in (single, double))
    assert max(single.gap_, double.gap_) <= 1e-6
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize(
    ("n", "d", "k", "C", "noise"),
    [
        (5000, 20, 100, 1e-3, 1.0),
        (5000, 20, 5, 1e3, 3.0),
        (3000, 100, 10, 1e-6, 3.0),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_large_and_odd_problems_end_where_scikit_learn_does(kind, n, d, k, C, noise):
    rng = np.random.default_rng(n + d + k)
    y = np.r_[np.arange(k), rng.integers(0, k - 1, n - k)]  # a single row of the last class
    X = StandardScaler().fit_transform(rng.normal(size=(k, d))[y] + noise * rng.normal(size=(n, d)))
    X[:, ::10] = 1.5
    X[n // 2 :: 3] = X[: len(X[n // 2 :: 3])]  # duplicates, most of other classes
    compare(Problem(X, y, C, None, None), kind, np.float32, above=1e-4, duals=(n < d,))


# --- paths ---


def folds(n: int, d: int, hinge: bool, k: int = 4) -> tuple[np.ndarray, Task]:
    """Return features and three folds, each of which leaves some rows out."""
    rng = np.random.default_rng(n * d)
    y = rng.integers(0, k, n)
    X = 2 + rng.normal(size=(k, d))[y] + 2 * rng.normal(size=(n, d))
    weight = np.ones((3, n))
    for fold in range(3):
        weight[fold, fold::3] = 0
    return X, Task(hinge, y, k, weight)


SHAPES = pytest.mark.parametrize(("n", "d"), [(90, 150), (1000, 60), (900, 700)])
LOSSES = pytest.mark.parametrize("hinge", [True, False], ids=["hinge", "softmax"])
VALUES = (1e-4, 1e-2, 1.0)


def path(X: Any, task: Task, values: Any = VALUES, jobs: int = 1, **options: Any) -> list[Fit]:
    with thread_pool(jobs) as pool:
        fits = list(fit_path(X, task, values, Solver(1e-9, 100, pool), **options))
    return sorted(fits, key=lambda fit: (fit.value, fit.fold))


@SHAPES
@LOSSES
def test_folds_together_are_each_fold_alone_standardised_on_its_own_rows(n, d, hinge):
    X, task = folds(n, d, hinge)
    fits = path(X, task, standardise=True)
    assert [(fit.value, fit.fold) for fit in fits] == [(v, f) for v in range(3) for f in range(3)]
    for fit in fits:
        mine = task.weight[fit.fold] > 0
        Z = StandardScaler().fit(X[mine]).transform(X)
        kind = BatchedLinearSVC if hinge else BatchedLogisticRegression
        alone = kind(VALUES[fit.value], tol=1e-9).fit(Z[mine], task.target[mine])
        assert fit.gap <= 1e-9
        np.testing.assert_allclose(fit.F, Z @ fit.W[:-1] + fit.W[-1], atol=1e-8)
        np.testing.assert_allclose(fit.F, alone.decision_function(Z), atol=2e-2)


@SHAPES
@LOSSES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(n, d, hinge, dtype):
    X, task = folds(n, d, hinge)
    one, *others = (path(X.astype(dtype), task, jobs=jobs, standardise=True) for jobs in (1, 2, 3))
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert (a.gap, a.iterations) == (b.gap, b.iterations)
            np.testing.assert_array_equal(a.W, b.W)
            np.testing.assert_array_equal(a.F, b.F)
    kind = BatchedLinearSVC if hinge else BatchedLogisticRegression
    fits = [kind(n_jobs=jobs).fit(X.astype(dtype), task.target) for jobs in (1, 2, 3)]
    for fit in fits[1:]:
        np.testing.assert_array_equal(fit.coef_, fits[0].coef_)
        np.testing.assert_array_equal(fit.intercept_, fits[0].intercept_)


@SHAPES
@LOSSES
def test_rows_that_are_read_give_what_an_array_gives(n, d, hinge):
    X, task = folds(n, d, hinge)
    kept = Stored(X)
    for standardise in (True, False):
        read = path(kept, task, standardise=standardise)
        array = path(kept[:], task, standardise=standardise)
        for a, b in zip(read, array, strict=True):
            np.testing.assert_allclose(a.F, b.F, atol=1e-3 * np.abs(b.F).max())
            assert a.gap <= 1e-9


@SHAPES
@LOSSES
def test_values_in_any_order_and_twice_are_told_apart(n, d, hinge):
    X, task = folds(n, d, hinge)
    fits = list(fit_path(X, task, [1.0, 1e-3, 1.0], Solver(1e-6), standardise=True))
    for fold in range(3):
        assert [fit.value for fit in fits if fit.fold == fold] == [1, 0, 2]
    one = {(fit.value, fit.fold): fit for fit in fits}
    for fold in range(3):
        np.testing.assert_allclose(one[0, fold].F, one[2, fold].F, atol=1e-2)
        assert np.linalg.norm(one[1, fold].W[:-1]) < np.linalg.norm(one[0, fold].W[:-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_steps_and_truncated_newton_agree(monkeypatch, dtype):
    X, task = folds(1000, 60, hinge=True)
    usual = path(X.astype(dtype), task, (1e-4, 1.0, 1e3), standardise=True)
    monkeypatch.setattr(rows, "LARGEST", 0)
    other = path(X.astype(dtype), task, (1e-4, 1.0, 1e3), standardise=True)
    for a, b in zip(usual, other, strict=True):
        assert max(a.gap, b.gap) <= 1e-9  # single precision alone would not do
        np.testing.assert_allclose(a.F, b.F, atol=1e-2)


@LOSSES
@pytest.mark.parametrize(("n", "d"), [(900, 1000), (900, 700)])
def test_no_square_matrix_is_larger_than_affordable(monkeypatch, hinge, n, d):
    X, task = folds(n, d, hinge)
    usual = path(X, task, standardise=True)
    monkeypatch.setattr(rows, "LARGEST", 500)
    for name in ("in_span", "kernel", "preconditioner"):
        monkeypatch.setattr(Rows, name, None)
    for a, b in zip(usual, path(X, task, standardise=True), strict=True):
        assert max(a.gap, b.gap) <= 1e-9
        np.testing.assert_allclose(a.F, b.F, atol=1e-2)


@pytest.mark.parametrize(("n", "d"), [(90, 150), (1000, 60), (900, 700)])
def test_a_class_that_a_fold_lacks_is_never_decided_for(n, d):
    for hinge in (True, False):
        X, task = folds(n, d, hinge)
        task.weight[1, task.target == 2] = 0
        for fit in path(X, task, standardise=True):
            assert fit.gap <= 1e-9
            assert np.isfinite(fit.W[:-1]).all()
            if fit.fold == 1 and not hinge:
                mine = task.weight[1] > 0
                Z = StandardScaler().fit(X[mine]).transform(X)
                model = BatchedLogisticRegression(VALUES[fit.value], tol=1e-9)
                expected = model.fit(Z[mine], task.target[mine]).decision_function(Z)
                np.testing.assert_allclose(fit.F[:, [0, 1, 3]], expected, atol=1e-2)
                assert (fit.F[:, 2] == -np.inf).all()
                assert fit.W[-1, 2] == -np.inf
            if fit.fold == 1 and hinge:
                assert (fit.F[:, 2] < 0).mean() > 0.99


@BOTH
def test_rows_of_weight_zero_are_as_if_removed(kind):
    X, task = folds(200, 20, hinge=True)
    weight = task.weight[0]
    whole = kind(tol=1e-12).fit(X, task.target, weight)
    part = kind(tol=1e-12).fit(X[weight > 0], task.target[weight > 0])
    np.testing.assert_allclose(whole.coef_, part.coef_, atol=1e-5)


def test_the_smallest_c_still_tells_classes_apart():
    X, task = folds(1000, 60, hinge=True)
    for fit in path(X, task, [1e-12], standardise=True):
        assert (fit.F.argmax(axis=1) == task.target).mean() > 0.8


# --- mistakes ---


@LOSSES
@pytest.mark.parametrize("C", [0.0, -1.0, np.nan, np.inf])
def test_paths_and_estimators_refuse_a_c_that_is_not_positive(hinge, C):
    X, task = folds(90, 5, hinge)
    with pytest.raises(ValueError, match="C must be a positive, finite number"):
        path(X, task, [1.0, C])
    kind = BatchedLinearSVC if hinge else BatchedLogisticRegression
    with pytest.raises(ValueError, match="C must be a positive, finite number"):
        kind(C).fit(X, task.target)


@LOSSES
def test_a_fold_of_one_class_and_weights_that_are_none_are_refused(hinge):
    X, task = folds(90, 5, hinge)
    task.weight[2, task.target != 1] = 0
    with pytest.raises(ValueError, match="fold 2 has 1 in"):
        path(X, task)
    for wrong in (-1.0, np.nan, np.inf):
        task.weight[2] = wrong
        with pytest.raises(ValueError, match="finite and not negative"):
            path(X, task)


@BOTH
def test_estimators_refuse_what_cannot_be_learned(kind):
    X, task = folds(90, 5, hinge=True)
    y = np.array(list("abcd"))[task.target]
    with pytest.raises(ValueError, match="at least 2 classes"):
        kind().fit(X, np.zeros(90))
    with pytest.raises(ValueError, match=r"without: \['c'\]"):
        kind().fit(X, y, y != "c")
    with pytest.raises(ValueError, match=r"without: \['a' 'b'\]"):
        kind(class_weight={"a": 0, "b": 0}).fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        kind().fit(np.where(X[3, 2] == X, np.nan, X), y)
    with pytest.raises(ValueError, match="egative"):
        kind().fit(X, y, -np.ones(90))


@BOTH
def test_a_gap_that_is_left_is_told(kind):
    X, task = folds(300, 20, hinge=True)
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        model = kind(10.0, tol=1e-12, max_iter=1).fit(X, task.target)
    assert model.gap_ > 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(10.0).fit(X, task.target)
