"""Rows as folds see them: standardised, projected, multiplied, whatever holds them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from featpipe.probes.rows import Rows, moments


class Stored:
    """Rows that are read and converted when asked for, as from a file of float16 features."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.shape, self.dtype = X, X.shape, np.dtype(np.float32)

    def __getitem__(self, rows: object) -> np.ndarray:
        return self.X[rows].astype(self.dtype)


@pytest.fixture(name="X")
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.normal(3, rng.uniform(0.1, 10, 30), (700, 30))
    X[:, 4] = 0.3
    X[:400, 5] = 7  # constant in the first fold alone
    return X


@pytest.fixture
def member() -> np.ndarray:
    """Which rows are in which of three folds; they overlap and leave out the last rows."""
    member = np.zeros((3, 700), bool)
    member[0, :400] = member[1, 200:650] = member[2, ::2] = True
    return member


def seen(X: np.ndarray, member: np.ndarray) -> list[np.ndarray]:
    """Return what each fold sees, by scikit-learn, with a column of ones."""
    return [np.c_[StandardScaler().fit(X[m]).transform(X), np.ones(len(X))] for m in member]


@pytest.mark.parametrize("kept", [np.asarray, Stored])
def test_moments_are_those_of_the_standard_scaler(X, member, kept):
    mean, scale = moments(kept(X), member)
    tolerance = 1e-11 if kept is np.asarray else 1e-6
    for k, mine in enumerate(member):
        scaler = StandardScaler().fit(X[mine])
        np.testing.assert_allclose(mean[k], scaler.mean_, rtol=tolerance)
        np.testing.assert_allclose(scale[k], scaler.scale_, rtol=tolerance)
    assert scale[0, 5] == 1
    assert (scale[:, 4] == 1).all()


def test_moments_far_from_zero_keep_their_precision(X, member):
    mean, scale = moments(X + 1e6, member)
    near, spread = moments(X, member)
    np.testing.assert_allclose(mean - 1e6, near, atol=1e-8)
    np.testing.assert_allclose(scale, spread, rtol=1e-6)


@pytest.mark.parametrize("kept", [np.asarray, Stored])
@pytest.mark.parametrize("width", [1, 3])
def test_products_are_those_of_the_rows_that_a_fold_sees(X, member, kept, width):
    rng = np.random.default_rng(1)
    fold = np.array([2, 0, 1, 0])
    rows, views = Rows(kept(X), *moments(X, member)), seen(X, member)
    W, R = rng.normal(size=(31, 4, width)), rng.normal(size=(700, 4, width))
    F, G = rows.forward(W, fold), rows.back(R, fold)
    H, again = rows.normal(W, fold, lambda part, D: D * R[part])
    close = {"atol": 1e-9} if kept is np.asarray else {"rtol": 1e-3, "atol": 2e-3}
    for p, k in enumerate(fold):
        np.testing.assert_allclose(F[:, p], views[k] @ W[:, p], **close)
        np.testing.assert_allclose(G[:, p], views[k].T @ R[:, p], **close)
        np.testing.assert_allclose(again[:, p], F[:, p], **close)
        np.testing.assert_allclose(H[:, p], views[k].T @ (R[:, p] * F[:, p]), **close)
    some = np.array([3, 650, 8])
    np.testing.assert_allclose(rows.seen(some, 1), views[1][some, :-1], **close)
    np.testing.assert_allclose(rows.kernel(some, 1), views[1][some] @ views[1][some].T, **close)


def test_a_kernel_of_several_blocks_is_in_double_precision(X):
    rows, mine = Rows(X.astype(np.float32)), np.arange(0, 700)
    K, Z = rows.kernel(mine, 0), np.c_[X.astype(np.float32).astype(float), np.ones(700)]
    np.testing.assert_allclose(K, Z @ Z.T, rtol=1e-12)


def test_the_span_of_some_rows_keeps_their_products_and_lifts_weights(X, member):
    mine = np.array([4, 9, 9, 300])  # a duplicate leaves the span smaller than their number
    rows = Rows(X, *(part[:1] for part in moments(X, member)))
    spanned = rows.in_span(mine)
    assert spanned.shape == (4, 3)
    W = np.random.default_rng(2).normal(size=(4, 2))
    fold = np.zeros(2, int)
    F = spanned.forward(W[..., None], fold)
    np.testing.assert_array_equal(np.sort(spanned.numbers), mine)
    kernel = rows.kernel(spanned.numbers, 0)
    np.testing.assert_allclose(spanned.kernel(np.arange(4), 0), kernel, rtol=1e-10)
    lifted = rows.forward(spanned.lift(W)[..., None], fold)
    np.testing.assert_allclose(lifted[spanned.numbers], F, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(spanned.lift(W)), np.linalg.norm(W))
    assert rows.lift(W) is W


def test_products_in_a_span_of_several_parts_are_those_of_the_rows():
    rng = np.random.default_rng(3)
    rows, fold = Rows(rng.normal(size=(700, 900))), np.zeros(2, int)
    spanned = rows.in_span(rng.permutation(700)[:600])
    W, R = rng.normal(size=(601, 2, 1)), rng.normal(size=(600, 2, 1))
    F = spanned.forward(W, fold)
    lifted = rows.forward(spanned.lift(W[..., 0])[..., None], fold)
    np.testing.assert_allclose(F, lifted[spanned.numbers], atol=1e-9)
    np.testing.assert_allclose((spanned.back(R, fold) * W).sum(), (R * F).sum())
    H, again = spanned.normal(W, fold, lambda rows, D: R[rows] * D)
    np.testing.assert_allclose(again, F, atol=1e-9)
    np.testing.assert_allclose(H, spanned.back(R * F, fold), atol=1e-8)


def test_the_preconditioner_inverts_the_gram_matrix_of_weighted_rows(X):
    rng = np.random.default_rng(3)
    weight, G = rng.exponential(size=len(X)), rng.normal(size=(30, 2, 1))
    inverse = np.linalg.inv(np.eye(30) + (X.T * weight) @ X)
    applied = Rows(X).preconditioner(weight)(G)
    # Rows of next to no weight are left out.
    np.testing.assert_allclose(applied[..., 0], inverse @ G[..., 0], atol=1e-2)
    weight[::2] = 0
    exact = np.linalg.inv(np.eye(30) + X[1::2].T @ X[1::2])
    applied = Rows(X).preconditioner(np.sign(weight))(G)
    np.testing.assert_allclose(applied[..., 0], exact @ G[..., 0], atol=1e-10)


def test_the_preconditioner_is_positive_where_features_repeat_and_weights_are_large(X):
    X = np.repeat(X, 2, axis=1).astype(np.float32)
    weight = np.full(len(X), 1e8, np.float32)  # the identity is below the rounding of the rest
    G = np.random.default_rng(3).normal(size=(X.shape[1], 3)).astype(np.float32)
    applied = Rows(X).preconditioner(weight)(G)
    assert np.isfinite(applied).all()
    assert ((G * applied).sum(axis=0) > 0).all()


def test_threads_change_no_bit_of_a_product(X, member):
    rng, fold = np.random.default_rng(4), np.array([0, 1, 2])
    big = np.tile(X, (4, 8)).astype(np.float32)
    W = rng.normal(size=(241, 3, 2)).astype(np.float32)
    stats = moments(big, np.tile(member, 4))

    def products(pool: ThreadPoolExecutor | None) -> list[np.ndarray]:
        rows = Rows(big, *stats, pool=pool)
        F = rows.forward(W, fold)
        bent = rows.normal(W, fold, lambda part, D: np.maximum(D, 0))
        return [F, rows.back(F, fold), *bent, rows.kernel(np.arange(900), 1)]

    alone = products(None)
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(alone, products(pool), strict=True):
            np.testing.assert_array_equal(one, other)
