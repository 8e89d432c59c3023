"""The nearest class mean as a probe: of rows of length 1, with nothing to choose."""

from __future__ import annotations

import numpy as np

from featpipe.probes.nearest_mean import Centroid
from tests.evaluation.methods import evaluated, pair


def test_the_class_means_are_those_of_rows_of_length_one(data):
    X, y = data
    fitted = Centroid().estimator(*X.shape).fit(X, y)
    directions = X / np.linalg.norm(X, axis=1, keepdims=True)
    means = np.stack([directions[y == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(fitted[-1].means_, means, atol=1e-6)
    distances = np.linalg.norm(directions[:, None] - means, axis=2)
    assert (fitted.predict(X) == distances.argmin(axis=1)).all()


def test_the_length_of_a_row_has_no_weight(data):
    X, y = data
    lengths = np.random.default_rng(0).uniform(0.1, 100, (len(X), 1))
    plain, scaled = (Centroid().estimator(*X.shape).fit(rows, y) for rows in (X, X * lengths))
    np.testing.assert_allclose(plain[-1].means_, scaled[-1].means_, atol=1e-6)
    np.testing.assert_array_equal(plain.predict(X), scaled.predict(X * lengths))


def test_nothing_is_chosen_and_one_row_per_class_is_enough(tmp_path):
    step = Centroid(train_per_class=(1,), repeats=1)
    assert (step.candidates(), step.chooses) == ((), False)
    result = evaluated(step, tmp_path, *pair(tmp_path))
    (split,) = result.splits
    assert (split["n_train"], split["chosen"], split["search"]) == (3, {}, [])
    assert result.summary["accuracy"]["value"] > 1 / 3
