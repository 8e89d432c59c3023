"""The nearest class mean keeps scikit-learn's contract, and scores as it predicts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.probes.estimators import NearestMean


@parametrize_with_checks([NearestMean()])
def test_the_nearest_mean_passes_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_nearest_mean_scores_as_it_predicts(data):
    X, y = data
    model = NearestMean().fit(X, y)
    means = np.stack([X[y == c].mean(axis=0) for c in range(3)])
    distances = ((X[:, None] - means) ** 2).sum(axis=2)
    assert (model.predict(X) == distances.argmin(axis=1)).all()
    assert (model.decision_function(X).argmax(axis=1) == model.predict(X)).all()
    # Half the squared distance, but for a number that all classes of a row share.
    differences = model.decision_function(X) + distances / 2
    assert np.ptp(differences, axis=1).max() < 1e-4


def test_the_nearest_mean_of_one_row_per_class_is_the_nearest_row():
    model = NearestMean().fit([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 2])
    assert model.predict([[0.1, 1.0], [0.9, 0.1]]).tolist() == [0, 1]
    assert np.isfinite(model.decision_function([[5.0, 5.0]])).all()


def test_two_classes_have_one_decision_value_above_zero_for_the_second():
    model = NearestMean().fit([[0.0], [2.0]], ["a", "b"])
    scores = model.decision_function([[0.5], [1.5]])
    assert scores.shape == (2,)
    assert (scores > 0).tolist() == [False, True]


def test_an_unfitted_nearest_mean_says_so():
    with pytest.raises(NotFittedError):
        NearestMean().predict([[1.0]])
