"""Losses of linear classifiers: their derivatives, the best intercepts, searches along a line."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.probes.losses import Softmax, minimise_along


def test_derivatives_are_those_of_the_value(loss):
    rng, h = np.random.default_rng(2), 1e-6
    problems = np.arange(len(loss.fold))[::-1]  # also in another order
    shape = (40, len(problems), loss.width)
    F, E = rng.normal(size=(2, *shape))
    _, slope, state = loss.at(F, problems)
    low, high = loss.at(F - h * E, problems), loss.at(F + h * E, problems)
    np.testing.assert_allclose((high[0] - low[0]) / 2 / h, (slope * E).sum(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose((high[1] - low[1]) / 2 / h, loss.bend(state, E), atol=1e-5)
    first, second = loss.along(F, E, problems)(np.full(len(problems), 0.3))
    _, slope, state = loss.at(F + 0.3 * E, problems)
    np.testing.assert_allclose(first, (slope * E).sum(axis=(0, 2)))
    np.testing.assert_allclose(second, (E * loss.bend(state, E)).sum(axis=(0, 2)))
    one = np.zeros(shape)
    one[:, :, 0] = 1
    expected = (one * loss.bend(state, one))[..., 0]
    np.testing.assert_allclose(loss.curvature(state)[..., 0], expected)


def test_rows_of_weight_zero_do_not_count(loss):
    problems = np.arange(len(loss.fold))
    F = np.random.default_rng(3).normal(size=(40, len(problems), loss.width))
    _, slope, _ = loss.at(F, problems)
    assert not slope[loss.weights[..., 0] == 0].any()


def test_intercepts_of_the_softmax_are_the_best():
    rng, problems = np.random.default_rng(4), np.arange(2)
    weight = rng.exponential(size=(40, 2)) * (rng.random((40, 2)) < 0.8)
    loss = Softmax(rng.integers(0, 4, 40), weight, problems, 4)
    F = 5 * rng.normal(size=(40, 2, 4))
    add = loss.intercepts(F, problems)
    surplus = loss.at(F + add, problems)[1].sum(axis=0)
    np.testing.assert_allclose(surplus, 0, atol=1e-4)
    np.testing.assert_allclose(add.sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(loss.intercepts(F + add, problems), 0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_intercepts_of_rare_classes_that_are_far_off_are_found(dtype):
    y = np.r_[np.zeros(5000, int), [1, 2]]
    loss = Softmax(y, np.ones((5002, 1)), np.zeros(1, int), 3)
    F = np.zeros((5002, 1, 3), dtype)
    F[:, 0, 0] = -30  # every row is sure of the wrong class
    add = loss.intercepts(F, np.zeros(1, int))
    np.testing.assert_allclose((F[0] + add)[0, 0] - (F[0] + add)[0, 1:], np.log(5000), rtol=1e-4)


def test_a_class_that_a_fold_lacks_has_no_probability_and_no_gradient():
    y = np.array([0, 1, 2, 0, 1, 2])
    weight = np.array([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], float).T
    loss = Softmax(y, weight, np.arange(2), 3)
    F = np.random.default_rng(5).normal(size=(6, 2, 3))
    F[:, 0, 2] = 900  # has no say
    value, slope, (P, _) = loss.at(F, np.arange(2))
    two = Softmax(y[weight[:, 0] > 0], np.ones((4, 1)), np.zeros(1, int), 2)
    np.testing.assert_allclose(value[0], two.at(F[weight[:, 0] > 0, :1, :2], np.zeros(1, int))[0])
    assert not P[:, 0, 2].any()
    assert not slope[:, 0, 2].any()
    assert np.isfinite(loss.intercepts(F, np.arange(2))).all()


def test_minimise_along_finds_minima_of_every_curvature():
    curve = np.array([1e-9, 1.0, 1e9])
    for least in (1e-3, 1.0, 40.0):

        def loss(t: np.ndarray, least: float = least) -> tuple[np.ndarray, np.ndarray]:
            short = np.maximum(least + 1 - t, 0)  # its bend ends beyond the minimum
            return -2 * curve * (short - 1), 2 * curve * (short > 0)

        none = np.zeros(3)
        start = loss(none)[0]
        t = minimise_along(loss, 1.0, none, none, start)
        assert (np.abs(loss(t)[0]) <= 0.05 * np.abs(start)).all()
