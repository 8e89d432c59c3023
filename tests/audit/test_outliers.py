"""Images of another kind are far from all others, even if there are several of them."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.audit.outliers import isolated

DIMS = 40


def around(direction, n, seed):
    """Return vectors of any length that point in about one direction."""
    rng = np.random.default_rng(seed)
    vectors = np.eye(DIMS)[direction] + 0.05 * rng.normal(size=(n, DIMS))
    return vectors * rng.uniform(0.1, 10, (n, 1))


@pytest.mark.parametrize("n_odd", [1, 3, 5])
def test_a_few_images_of_another_kind_are_far_though_near_to_each_other(n_odd):
    features = around(0, 200, seed=0)
    odd = np.array([3, 50, 51, 120, 199])[:n_odd]
    features[odd] = around(1, n_odd, seed=1)
    far, distances = isolated(np.arange(200), features.__getitem__)
    assert far.tolist() == odd.tolist()
    assert distances == pytest.approx(1, abs=0.3)  # at right angles to all others


def test_the_distance_is_that_to_the_fifth_nearest():
    features = around(0, 60, seed=0)
    features[7] = around(1, 1, seed=1)[0]
    far, distances = isolated(np.arange(60), features.__getitem__)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.sort(np.delete(units @ units[7], 7))
    assert far.tolist() == [7]
    assert distances[0] == pytest.approx(1 - cosines[-5], abs=1e-5)


def test_images_go_by_their_numbers_and_others_take_no_part():
    features = around(0, 300, seed=0)
    features[[30, 31]] = around(1, 2, seed=1)
    rows = np.arange(0, 300, 3)
    asked = []

    def features_of(some):
        asked.extend(some.tolist())
        return features[some]

    assert isolated(rows, features_of)[0].tolist() == [30]
    assert {*asked} == {*rows.tolist()}


@pytest.mark.parametrize(
    "features",
    [np.eye(DIMS)[np.arange(19) // 18], np.ones((100, DIMS)), around(0, 100, seed=0)],
    ids=["too few", "all alike", "of one kind"],
)
def test_where_nothing_is_unusual_nothing_is_far(features):
    far, distances = isolated(np.arange(len(features)), features.__getitem__)
    assert (len(far), len(distances)) == (0, 0)


def test_of_many_images_only_some_are_compared_and_all_are_judged():
    features = around(0, 10_100, seed=0).astype(np.float32)
    odd = np.arange(0, 10_100, 2500)
    features[odd] = around(1, len(odd), seed=1)
    asked = []

    def features_of(some):
        asked.append(some)
        return features[some]

    far, distances = isolated(np.arange(10_100), features_of)
    assert far[distances > 0.5].tolist() == odd.tolist()
    compared, *judged = asked
    assert len({*compared.tolist()}) == 10_000
    assert np.concatenate(judged).tolist() == [*range(10_100)]
