"""Truncated Newton: minima, and gaps that can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from featpipe.probes import newton
from featpipe.probes.losses import Loss
from featpipe.probes.newton import Newton
from featpipe.probes.rows import Rows


def start(loss: Loss, max_iter: int = 100, factor: float = 1.0) -> Newton:
    X = factor * np.random.default_rng(1).normal(1, 2, (40, 6))
    return Newton(Rows(X), loss, max_iter)


def objective(at: Newton, C: float, W: np.ndarray) -> np.ndarray:
    """Return every problem's objective, from its weights alone."""
    W = W.reshape(at.W.shape)
    F = at.rows.forward(W, at.loss.fold)
    penalised = W if at.loss.intercept_penalty else W[:-1]
    return C * at.loss.at(F, np.arange(F.shape[1]))[0] + 0.5 * (penalised**2).sum(axis=(0, 2))


def minimum(at: Newton, C: float) -> np.ndarray:
    """Return every problem's minimal objective, by another method."""
    problems = np.arange(at.W.shape[1])

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W = flat.reshape(at.W.shape)
        slope = at.loss.at(at.rows.forward(W, at.loss.fold), problems)[1]
        gradient = C * at.rows.back(slope, at.loss.fold)
        gradient[:-1] += W[:-1]
        gradient[-1] += at.loss.intercept_penalty * W[-1]
        return float(objective(at, C, W).sum()), gradient.ravel()

    options = {"maxiter": 20000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-10}
    found = minimize(both, np.zeros(at.W.size), jac=True, method="L-BFGS-B", options=options)
    return objective(at, C, found.x)


def test_the_constant_classifier_has_the_lowest_objective_without_features(loss):
    at, problems = start(loss, factor=0.0), np.arange(len(loss.fold))
    for C in (1e-6, 1.0, 1e3):
        at.minimise(C, 1e-12)
        np.testing.assert_allclose(at.loss.constant(C, problems), objective(at, C, at.W))
        assert not at.W[:-1].any()


@pytest.mark.parametrize("C", [1e-6, 1e-2, 1.0, 1e3])
def test_minimise_ends_at_the_minimum_and_its_gap_bounds_the_distance(loss, C):
    at = start(loss)
    at.minimise(C, 1e-7)
    least = minimum(at, C)
    gained = at.loss.constant(C, np.arange(len(least))) - least
    above = (objective(at, C, at.W) - least) / np.minimum(least, gained)
    assert (at.gap <= 1e-7).all()
    assert (above <= 2 * at.gap + 1e-9).all()


@pytest.mark.parametrize("C", [1e-10, 1e-8, 1e-6, 1e-4])
def test_weights_are_precise_however_small_they_are(loss, C):
    """With a tiny C they hardly lower the objective, but they alone tell rows apart."""
    rough, precise = start(loss, factor=10.0), start(loss, factor=10.0)
    rough.minimise(C, 1e-6)
    precise.minimise(C, 1e-14)
    off = rough.W[:-1] - precise.W[:-1]
    assert np.linalg.norm(off) <= 3e-3 * np.linalg.norm(precise.W[:-1])


@pytest.mark.parametrize("max_iter", [0, 1, 2])
def test_a_gap_that_is_left_says_so(loss, max_iter):
    at = start(loss, max_iter)
    at.minimise(3.0, 1e-12)
    least = minimum(at, 3.0)
    assert at.iterations.max() == max_iter
    assert at.gap.max() > 1e-12
    assert ((objective(at, 3.0, at.W) - least) / least <= at.gap + 1e-9).all()


def test_decisions_are_those_of_the_weights(loss):
    at = start(loss)
    at.minimise(1.0, 1e-6)
    np.testing.assert_allclose(at.F, at.rows.forward(at.W, at.loss.fold), atol=1e-12)
    at.as_type(np.float32)
    assert at.W.dtype == np.float32
    np.testing.assert_array_equal(at.F, at.rows.forward(at.W, at.loss.fold))


def test_a_solved_problem_takes_no_step(loss):
    at = start(loss)
    at.minimise(0.1, 1e-6)
    W, steps = at.W.copy(), at.iterations.copy()
    at.minimise(0.1, 1e-6)
    np.testing.assert_allclose(at.W, W, atol=1e-14)
    np.testing.assert_array_equal(at.iterations, steps)


def test_the_preconditioned_systems_have_the_same_solution(loss, monkeypatch):
    plain, other = start(loss, factor=30.0), start(loss, factor=30.0)
    plain.minimise(0.1, 1e-10)
    monkeypatch.setattr(newton, "THIN", -2 * other.W[0].size + 1 + len(other.W))  # at once
    other.minimise(0.1, 1e-10)
    assert other.weight is not None
    for at in (plain, other):
        assert (at.gap <= 1e-10).all()
    np.testing.assert_allclose(other.F, plain.F, atol=1e-3)


def test_the_next_value_of_a_softmax_starts_where_the_last_two_point_to(softmax):
    first, second = start(softmax), start(softmax)
    for at in (first, second):
        for C in (1e-3, 1e-2):
            at.minimise(C, 1e-9)
    first.before = ()
    for at in (first, second):
        at.max_iter = 0
        at.minimise(1e-1, 1e-9)
    assert (objective(second, 1e-1, second.W) < objective(first, 1e-1, first.W)).all()
    np.testing.assert_allclose(second.F, second.rows.forward(second.W, second.loss.fold))
