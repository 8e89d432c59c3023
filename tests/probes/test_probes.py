"""Probes keep scikit-learn's contract; what is inside them is what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.errors import UsageError
from featpipe.evaluation.fitting import n_parameters
from featpipe.probes.estimators import NearestMean
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.solvers import converged
from featpipe.probes.svm import Svm

PROBES = {
    "svm": Svm(c=(1e-3, 1e-1)),
    "logistic": Logistic(c=(1e-3, 1e-1)),
    "knn": Knn(k=(3, 5)),
    "centroid": Centroid(),
}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(90, 12, n_informative=8, n_classes=3, random_state=0)
    return X.astype(np.float32), y


@parametrize_with_checks([NearestMean()])
def test_the_nearest_mean_passes_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_cloned_searched_and_cross_validated(name, data):
    probe = PROBES[name]
    estimator = probe.estimator(*data[0].shape)
    again = clone(estimator)
    assert repr(again) == repr(estimator)
    grid = {probe.parameter: list(probe.candidates())} if probe.tuned else {}
    search = GridSearchCV(estimator, grid, cv=3).fit(*data)
    assert search.score(*data) > 0.5
    assert len(cross_val_score(again, *data, cv=3)) == 3
    assert not hasattr(estimator[-1], "classes_")  # the definition itself stays unfitted


@pytest.mark.parametrize("name", PROBES)
def test_normalisation_is_inside_the_pipeline(name, data):
    X, y = data
    fitted = PROBES[name].estimator(60, 12).fit(X[:60], y[:60])
    if name in ("svm", "logistic"):
        assert np.allclose(fitted[0].mean_, X[:60].mean(axis=0), atol=1e-6)
    else:
        assert np.allclose(np.linalg.norm(fitted[0].transform(X), axis=1), 1, atol=1e-6)


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


def test_the_logistic_probe_is_multinomial(data):
    X, y = data
    fitted = PROBES["logistic"].estimator(*X.shape).fit(X, y)
    assert fitted[-1].coef_.shape == (3, 12)
    assert np.allclose(fitted.predict_proba(X).sum(axis=1), 1)


def test_neighbours_are_nearest_by_cosine(data):
    X, y = data
    nearest = cosine_similarity(X[60:], X[:60]).argmax(axis=1)
    probe = Knn(k=(1,))
    fitted = probe.estimator(60, 12).set_params(**{probe.parameter: 1}).fit(X[:60], y[:60])
    assert (fitted.predict(X[60:]) == y[:60][nearest]).all()


def test_neighbours_above_the_number_of_rows_are_not_admitted():
    probe = Knn(k=(1, 5, 50))
    assert probe.candidates() == (50, 5, 1)  # more neighbours are smoother: they go first
    assert [probe.admits(k, 20) for k in probe.candidates()] == [False, True, True]
    assert probe.default() == 1


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


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_a_solver_that_was_stopped_is_found_out(kind, data):
    shape = data[0].shape
    with pytest.warns(UserWarning, match="converge"):
        stopped = kind(max_iter=1).estimator(*shape).fit(*data)
    assert not converged(stopped)
    assert converged(kind().estimator(*shape).set_params(**{kind.parameter: 1e-3}).fit(*data))


def test_what_has_no_solver_has_converged(data):
    assert converged(Knn().estimator(*data[0].shape).fit(*data))
    assert converged(LogisticRegression())  # not fitted: nothing was stopped


@pytest.mark.parametrize(("name", "numbers"), [("svm", 39), ("logistic", 39), ("centroid", 36)])
def test_learned_numbers_are_counted(name, numbers, data):
    assert n_parameters(PROBES[name].estimator(*data[0].shape).fit(*data)) == numbers


# -- class weights --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbalanced() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(
        400, 6, n_informative=4, n_classes=3, weights=[0.85, 0.1], class_sep=0.6, random_state=0
    )
    return X.astype(np.float32), y


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_balanced_weights_find_more_of_rare_classes(kind, unbalanced):
    X, y = unbalanced
    recalls = []
    for weight in ("none", "balanced"):
        probe = kind(c=(0.1,), class_weight=weight)
        fitted = probe.estimator(*X.shape).set_params(**{probe.parameter: 0.1}).fit(X, y)
        recalls.append(balanced_accuracy_score(y, fitted.predict(X)))
    assert recalls[1] > recalls[0] + 0.05


def test_balanced_logistic_regression_weighs_rows_by_the_inverse_of_their_class(unbalanced):
    X, y = unbalanced
    fitted = Logistic(class_weight="balanced").estimator(*X.shape).fit(X, y)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    weights = len(y) / (3 * np.bincount(y)[y])
    by_hand = LogisticRegression(max_iter=2000).fit(standard, y, sample_weight=weights)
    assert np.allclose(fitted[-1].coef_, by_hand.coef_, atol=1e-2)


def test_the_balanced_svm_weighs_both_sides_of_each_problem_alike(unbalanced):
    X, y = unbalanced
    probe = Svm(class_weight="balanced")
    fitted = probe.estimator(*X.shape).set_params(**{probe.parameter: 0.01}).fit(X, y)
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    for label, solver in enumerate(fitted[-1].estimators_):
        member = y == label
        weights = np.where(member, len(y) / (2 * member.sum()), len(y) / (2 * (~member).sum()))
        by_hand = LinearSVC(C=0.01, dual=False, tol=1e-8).fit(standard, member, weights)
        assert np.allclose(solver.coef_, by_hand.coef_, atol=1e-3)


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_no_weights_is_what_was_done_before(kind):
    plain, balanced = kind(), kind(class_weight="balanced")
    assert plain.class_weight == "none"
    assert "class_weight" not in plain.identity({})["options"]
    assert balanced.identity({})["options"]["class_weight"] == "balanced"
    with pytest.raises(UsageError, match="not a choice of --class-weight"):
        kind(class_weight="equal")
