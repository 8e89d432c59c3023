"""Nearest neighbours: near is what has a like direction, and the majority of k decides."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from featpipe.probes.neighbours import Knn


def test_neighbours_are_nearest_by_cosine(data):
    X, y = data
    nearest = cosine_similarity(X[60:], X[:60]).argmax(axis=1)
    probe = Knn(k=(1,))
    fitted = probe.estimator(60, 12).set_params(**{probe.parameter: 1}).fit(X[:60], y[:60])
    assert (fitted.predict(X[60:]) == y[:60][nearest]).all()


@pytest.mark.parametrize(("k", "answer"), [(1, 1), (2, 0), (3, 0), (4, 0), (5, 1)])
def test_the_majority_decides_and_of_equals_the_first_class(k, answer):
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # from the row that is asked about
    X = np.column_stack([np.cos(angles), np.sin(angles)])
    y = np.array([1, 0, 0, 1, 1])
    asked = np.array([[1.0, 0.0]])
    probe = Knn(k=(k,))
    fitted, _ = probe.strategy(*X.shape).fit(X, y, k, 1)
    assert fitted.predict(asked).tolist() == [answer]
    # The search, which counts the votes itself, agrees.
    folds = [(np.arange(5), np.array([5]))]
    (found,) = probe.strategy(6, 2).search(np.vstack([X, asked]), np.append(y, 1), folds, [k], 1)
    assert found["accuracy"] == answer


def test_neighbours_above_the_number_of_rows_are_not_admitted():
    probe = Knn(k=(1, 5, 50))
    assert probe.candidates() == (50, 5, 1)  # more neighbours are smoother: they go first
    assert [probe.admits(k, 20) for k in probe.candidates()] == [False, True, True]
    assert probe.default() == 1
