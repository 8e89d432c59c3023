"""Exact steps on the active rows: minima, duality gaps that hold, kernels that are singular."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from featpipe.probes.active_set import Dual
from featpipe.probes.linear import Solver
from featpipe.probes.losses import SquaredHinge
from featpipe.probes.newton import Newton
from featpipe.probes.rows import Rows


def problems(X: np.ndarray, sign: np.ndarray, weight: np.ndarray) -> Dual:
    """Start from weights of zero; every column of ``sign`` and ``weight`` is a problem."""
    loss = SquaredHinge(sign, weight, np.zeros(sign.shape[1], int))
    at = Newton(Rows(X), loss, 100)
    return Dual(at, np.arange(len(X)), np.arange(sign.shape[1]))


def random(n: int, d: int, duplicates: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + d)
    X = rng.normal(size=(n, d))
    if duplicates:
        X[n // 2 :] = X[: n - n // 2]
    sign = np.where(X[:, :3] + 0.5 * rng.normal(size=(n, 3)) > 0.5, 1.0, -1.0)
    return X, sign, rng.exponential(size=(n, 3)) * (rng.random((n, 3)) < 0.9)


def both_sides(
    dual: Dual, X: np.ndarray, C: float, sign: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the objectives of the weights, and the duality gap of their dual variables."""
    Z = np.c_[X, np.ones(len(X))]
    W, alpha = Z.T @ dual.beta, np.maximum(sign * dual.beta, 0)
    V = Z.T @ (sign * alpha)
    primal = 0.5 * (W**2).sum(0) + C * (weight * np.maximum(1 - sign * (Z @ W), 0) ** 2).sum(0)
    paid = alpha**2 / (4 * C * np.where(weight > 0, weight, 1))
    return primal, primal - (alpha - paid).sum(0) + 0.5 * (V**2).sum(0)


@pytest.mark.parametrize("shape", [(60, 5), (60, 200), (61, 8)])
@pytest.mark.parametrize("duplicates", [False, True])
def test_minima_are_those_of_linear_svc_and_gaps_are_those_of_its_dual(shape, duplicates):
    X, sign, weight = random(*shape, duplicates)
    dual = problems(X, sign, weight)
    for C in (1e-6, 1e-3, 1.0, 1e3, 0.1):  # from each to the next, also downwards
        dual.minimise(C, 1e-9, Solver())
        primal, gap = both_sides(dual, X, C, sign, weight)
        assert (dual.gap <= 1e-9).all()
        np.testing.assert_allclose(gap / primal, dual.gap, atol=1e-9)
        assert not dual.beta[weight == 0].any()
        if C > 1:
            continue  # liblinear takes long
        for j in range(3):
            mine = weight[:, j] > 0
            svm = LinearSVC(C=C, tol=1e-10, max_iter=200_000, random_state=0)
            svm.fit(X[mine], sign[mine, j], weight[mine, j])
            w = np.r_[svm.coef_[0], svm.intercept_]
            np.testing.assert_allclose(np.c_[X, np.ones(len(X))].T @ dual.beta[:, j], w, atol=1e-4)


@pytest.mark.parametrize("C", [1e8, 1e12])
def test_a_ridge_below_the_kernels_rounding_is_no_end(C):
    X, sign, weight = random(40, 60, duplicates=True)
    sign[20:] = sign[:20]
    dual = problems(X, sign, weight)
    dual.minimise(C, 1e-6, Solver())
    primal, gap = both_sides(dual, X, C, sign, weight)
    assert (dual.gap <= 1e-6).all()
    # Decisions computed from weights are off by rounding, which so large a C shows.
    noise = C * weight.sum(axis=0) * 1e-28
    assert (gap <= 1e-5 * primal + 100 * noise).all()


def test_what_double_precision_cannot_solve_is_not_called_solved():
    X, sign, weight = random(40, 60, duplicates=True)
    dual = problems(1e4 * X, sign, weight)
    dual.minimise(1e14, 1e-6, Solver())
    assert np.isfinite(dual.beta).all()
    assert (dual.gap > 1e-6).all()


def test_a_problem_without_positive_rows_and_one_without_rows_are_solved():
    X, _, _ = random(30, 4)
    sign, weight = -np.ones((30, 2)), np.ones((30, 2))
    weight[:, 1] = 0
    weight[3, 1] = 1
    dual = problems(X, sign, weight)
    dual.minimise(10.0, 1e-8, Solver())
    assert (dual.gap <= 1e-8).all()
    W = np.c_[X, np.ones(30)].T @ dual.beta
    alone = np.r_[X[3], 1]
    np.testing.assert_allclose(W[:, 1], -alone / (alone @ alone + 1 / 20))


def test_steps_that_end_early_leave_a_gap():
    X, sign, weight = random(200, 10)
    dual = problems(X, sign, weight)
    dual.minimise(100.0, 1e-9, Solver(max_iter=1))
    primal, gap = both_sides(dual, X, 100.0, sign, weight)
    assert dual.gap.max() > 1e-9
    assert (dual.iterations == 1).all()
    np.testing.assert_allclose(gap / primal, dual.gap, rtol=1e-6)


def test_no_active_row_leads_back_to_some():
    X, sign, weight = random(50, 4)
    dual = problems(X, sign, weight)
    dual.short[:] = -1.0  # every row beyond the margin, as no weights of norm 0 would have it
    dual.minimise(1.0, 1e-8, Solver())
    assert (dual.gap <= 1e-8).all()
