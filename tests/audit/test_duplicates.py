"""Near-duplicates are found whatever was done to a copy, and others are not."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.audit import duplicates
from tests.images import pictures
from tests.looks import seen


def test_the_nearest_rows_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 12)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries, among = np.arange(0, 200), np.arange(50, 300)
    found, cosines = duplicates.nearest(rows, queries, among, 5)
    products = rows @ rows.T
    np.fill_diagonal(products, -2)
    for query, near, values in zip(queries, found, cosines, strict=True):
        order = among[np.argsort(-products[query, among])[:5]]
        np.testing.assert_array_equal(near, order)
        np.testing.assert_allclose(values, products[query, order], rtol=1e-5)


def test_few_rows_have_few_neighbours():
    rows = np.eye(3, dtype=np.float32)
    found, _ = duplicates.nearest(rows, np.arange(3), np.arange(3), 5)
    assert all(set(near[:2]) == {0, 1, 2} - {row} for row, near in enumerate(found))
    assert (found[:, 2:] == -1).all()
    none, _ = duplicates.nearest(rows, np.arange(3), np.arange(0), 2)
    assert (none == -1).all()


def test_many_rows_are_searched_approximately(monkeypatch):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    rows[1::2] = rows[::2] + 0.1 * rng.normal(size=(1500, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    every = np.arange(3000)
    exact = duplicates.nearest(rows, every, every[500:], 5)
    monkeypatch.setattr(duplicates, "EXACT_ROWS", 1000)
    found, cosines = duplicates.nearest(rows, every, every[500:], 5)
    assert (found[500:, 0] == exact[0][500:, 0]).mean() > 0.99
    same = [len({*a} & {*b}) for a, b in zip(found, exact[0], strict=True)]
    assert np.mean(same) > 0.7 * 5
    assert not (found == every[:, None]).any()
    right = (found >= 0) & (found == exact[0])
    np.testing.assert_allclose(cosines[right], exact[1][right], atol=2e-3)


@pytest.mark.parametrize("change", ["same", "mirrored", "shifted", "brighter", "noisy"])
def test_a_changed_thumbnail_correlates_with_its_origin(change):
    smooth = np.random.default_rng(1).integers(0, 256, (20, 8, 8), np.uint8)
    images = smooth.repeat(4, axis=1).repeat(4, axis=2)
    changed = {
        "same": images,
        "mirrored": images[:, :, ::-1],
        "shifted": np.roll(images, (3, -2), axis=(1, 2)),
        "brighter": (images * 0.6 + 60).astype(np.uint8),
        "noisy": (images + np.random.default_rng(2).normal(0, 10, images.shape)).clip(0, 255),
    }[change].astype(np.uint8)
    own = duplicates.correlation(images, changed)
    other = duplicates.correlation(images, np.roll(changed, 1, axis=0))
    assert own.min() > 0.95
    assert other.max() < 0.8


def test_what_has_no_contrast_correlates_with_nothing():
    flat = np.full((1, 32, 32), 9, np.uint8)
    some = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    assert duplicates.correlation(flat, flat) == 0
    assert abs(duplicates.correlation(some, flat)) < 0.05


def test_pairs_are_scored_once_and_the_best_come_first(tmp_path):
    images = list(pictures(80, 32))
    features = np.random.default_rng(0).normal(size=(80, 24)).astype(np.float32)
    images[40], features[40] = images[3][:, ::-1], features[3] * 1.01
    features[50] = features[4]  # like it for the network alone
    store = seen(tmp_path / "store.h5", images, arrays={"avgpool": features}, dims=24)
    rows = duplicates.whitened([store], None)
    every = np.arange(80)
    near = duplicates.nearest(rows, every, every)
    thumbnails = store.looks("thumbnail")
    pairs = duplicates.score_pairs(
        rows, every, near[0][:, 0], near, lambda numbers: np.asarray(thumbnails[numbers])
    )
    assert (pairs.a.tolist(), pairs.b.tolist()) == ([3], [40])
    assert pairs.score[0] > 0.95
    alone = duplicates.score_pairs(rows, every, near[0][:, 0], near, None)
    assert {(3, 40), (4, 50)} <= set(zip(alone.a.tolist(), alone.b.tolist(), strict=True))
    assert (np.diff(alone.score) <= 0).all()


def test_clusters_join_what_is_joined_by_others():
    found = duplicates.clusters(6, np.array([0, 4]), np.array([2, 2]))
    assert found[0] == found[2] == found[4] >= 0
    assert (found[[1, 3, 5]] == -1).all()
    assert (duplicates.clusters(3, np.array([], int), np.array([], int)) == -1).all()
