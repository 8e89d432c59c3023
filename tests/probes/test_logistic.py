"""The logistic probe: one multinomial model of standardised features, and what C weighs in it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featpipe.probes.logistic import Logistic


def test_the_logistic_probe_is_multinomial(data):
    X, y = data
    fitted = Logistic().estimator(*X.shape).fit(X, y)
    assert fitted[-1].coef_.shape == (3, 12)
    assert np.allclose(fitted.predict_proba(X).sum(axis=1), 1)


@pytest.mark.parametrize("solver", ["batched", "sklearn"])
def test_its_weights_are_where_the_penalised_loss_is_least(solver, data):
    X, y = data
    probe = Logistic(c=(0.1,), solver=solver)
    fitted, _ = probe.strategy(*X.shape).fit(X, y, 0.1, 1)
    missing = np.eye(3)[y] - fitted.predict_proba(X)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    # There the gradients of C times the summed loss and of half the squared norm are opposites.
    np.testing.assert_allclose(fitted[-1].coef_, 0.1 * missing.T @ standard, atol=1e-3)
    np.testing.assert_allclose(missing.sum(axis=0), 0, atol=1e-2)  # the intercept has no penalty


def test_balanced_logistic_regression_weighs_rows_by_the_inverse_of_their_class(imbalanced):
    X, y = imbalanced
    fitted = Logistic(class_weight="balanced").estimator(*X.shape).fit(X, y)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    weights = len(y) / (3 * np.bincount(y)[y])
    by_hand = LogisticRegression(max_iter=2000).fit(standard, y, sample_weight=weights)
    assert np.allclose(fitted[-1].coef_, by_hand.coef_, atol=1e-2)
