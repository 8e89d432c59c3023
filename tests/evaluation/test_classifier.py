"""Linear classifiers as numbers: the same answers as the estimator, or none at all."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from featpipe.evaluation.classifier import SoftmaxClassifier, linear_form
from featpipe.probes.estimators import NearestMean

LINEAR = {
    "svm": LinearSVC(),
    "scaled svm": make_pipeline(StandardScaler(), LinearSVC()),
    "logistic, unit length": make_pipeline(Normalizer(), LogisticRegression()),
    "discriminant": LinearDiscriminantAnalysis(),
    "ridge": RidgeClassifier(),
    "perceptron": Perceptron(),
    "hinge": SGDClassifier(),
    "one-vs-rest": OneVsRestClassifier(LinearSVC()),
    "nearest mean": NearestMean(),
}
OTHERS = {
    "kernel": SVC(),
    "neighbours": KNeighborsClassifier(),
    "naive Bayes": GaussianNB(),
    "unknown scaling": make_pipeline(MinMaxScaler(), LinearSVC()),
    "probabilities by another rule": SGDClassifier(loss="modified_huber"),
    "normalised sigmoids": OneVsRestClassifier(LogisticRegression()),
}


def fitted(estimator, classes, scale):
    X, y = make_blobs(120, 6, centers=classes, cluster_std=3.0, random_state=classes)
    return estimator.fit(X * scale, y), X * scale


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", LINEAR)
def test_numbers_answer_as_the_estimator_does(name, classes, scale):
    estimator, X = fitted(LINEAR[name], classes, scale)
    form = linear_form(estimator)
    assert form is not None
    np.testing.assert_array_equal(form.predict(X), estimator.predict(X))
    scores = form.decision_function(X)
    expected = estimator.decision_function(X)
    np.testing.assert_allclose(scores if classes > 2 else scores[:, 1], expected, rtol=1e-6)
    assert isinstance(form, SoftmaxClassifier) == hasattr(estimator, "predict_proba")
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(form.predict_proba(X), estimator.predict_proba(X), atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_known_to_be_linear_is_left_as_it_is(name, classes, scale):
    estimator, _ = fitted(OTHERS[name], classes, scale)
    assert linear_form(estimator) is None
