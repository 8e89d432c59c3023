"""The linear SVM: one binary machine per class on standardised features, by either solver."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.svm import LinearSVC

from featpipe.probes.svm import Svm


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_svm_is_one_binary_svm_per_class(data, n_classes):
    X, y = data
    keep = y < n_classes
    probe = Svm(c=(0.01,))
    X, y = X[keep], y[keep]
    fitted = probe.estimator(*X.shape).set_params(**{probe.parameter: 0.01}).fit(X, y)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    solvers = fitted[-1].estimators_
    assert len(solvers) == (n_classes if n_classes > 2 else 1)
    for number, solver in enumerate(solvers):
        mine = LinearSVC(C=0.01, dual=False, tol=1e-8).fit(
            standard, y == max(number, 3 - n_classes)
        )
        assert np.allclose(mine.coef_, solver.coef_, atol=1e-3)


@pytest.mark.parametrize(("rows", "dual"), [(50, True), (400, False)])
def test_both_solvers_of_the_svm_find_the_same(rows, dual):
    X, y = make_classification(rows, 20, n_informative=10, n_classes=3, random_state=1)
    probe = Svm(c=(0.01,))
    chosen = probe.estimator(*X.shape).fit(X, y)
    assert chosen[-1].estimator.dual is dual
    path = probe.parameter.replace("C", "dual")
    other = probe.estimator(*X.shape).set_params(**{path: not dual}).fit(X, y)
    assert (chosen.predict(X) == other.predict(X)).mean() > 0.97


def test_the_balanced_svm_weighs_both_sides_of_each_problem_alike(imbalanced):
    X, y = imbalanced
    probe = Svm(class_weight="balanced")
    fitted = probe.estimator(*X.shape).set_params(**{probe.parameter: 0.01}).fit(X, y)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    for label, solver in enumerate(fitted[-1].estimators_):
        member = y == label
        weights = np.where(member, len(y) / (2 * member.sum()), len(y) / (2 * (~member).sum()))
        by_hand = LinearSVC(C=0.01, dual=False, tol=1e-8).fit(standard, member, weights)
        assert np.allclose(solver.coef_, by_hand.coef_, atol=1e-3)
