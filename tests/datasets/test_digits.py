"""scikit-learn's digits, read without importing scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets.dataset import open_source


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("sklearn.datasets").load_digits()


def test_values_are_those_of_scikit_learn(theirs, options):
    for split in ("train", "test"):
        source = open_source("digits", split, options)
        rows = [int(name.removeprefix("digits/")) for name in source.ids]
        read = np.stack([source.read(row)[..., 0] for row in range(len(source))])
        np.testing.assert_array_equal(read, np.rint(theirs.images[rows] * (255 / 16)))
        np.testing.assert_array_equal(source.labels, theirs.target[rows])


def test_splits_are_disjoint_complete_and_stratified(options):
    train, test = (open_source("digits", split, options) for split in ("train", "test"))
    assert len(train) + len(test) == len({*train.ids, *test.ids}) == 1797
    shares = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    np.testing.assert_allclose(shares, 0.3, atol=0.01)


def test_the_seed_draws_the_split(options):
    first, second = (open_source("digits", "test", replace(options, seed=k)).ids for k in (0, 1))
    assert list(first) != list(second)


def test_ink_is_scaled_to_the_full_range(options):
    train = open_source("digits", "train", options)
    images = np.stack([train.read(row) for row in range(len(train))])
    assert images.shape[1:] == (8, 8, 3)
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
