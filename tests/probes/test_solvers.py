"""Ways to search and to fit: they agree with scikit-learn, and leave its own classes behind."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featpipe.probes.logistic import Logistic
from featpipe.probes.neighbours import Knn
from featpipe.probes.solvers import ScikitLearn, converged
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluate, pair

GRID = (1e-4, 1e-2, 1.0)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X.astype(np.float32)[:600], y[:600]


def folds_of(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(StratifiedKFold(3, shuffle=True, random_state=0).split(y, y))


def unbalanced(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(
        400,
        20,
        n_informative=8,
        n_classes=n_classes,
        weights=[0.7] + [0.3 / (n_classes - 1)] * (n_classes - 2),
        flip_y=0.1,
        random_state=1,
    )
    return X.astype(np.float32), y


def reference(probe: Svm | Logistic) -> ScikitLearn:
    return ScikitLearn(probe, tol=1e-8)


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_a_search_finds_what_scikit_learn_finds(digits, kind):
    X, y = digits
    probe = kind(c=GRID, solver="batched")
    found = probe.strategy(*X.shape).search(X, y, folds_of(y), GRID, 2)
    expected = reference(probe).search(X, y, folds_of(y), GRID, 1)
    assert [row["converged"] for row in found] == [True] * 3
    for mine, other in zip(found, expected, strict=True):
        assert mine["accuracy"] == pytest.approx(other["accuracy"], abs=2 / len(y))


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_a_fit_has_the_scores_of_scikit_learn(kind, n_classes, class_weight):
    X, y = unbalanced(n_classes)
    probe = kind(c=(0.1,), class_weight=class_weight, solver="batched")
    fitted, facts = probe.strategy(*X.shape).fit(X, y, 0.1, 1)
    expected, _ = reference(probe).fit(X, y, 0.1, 1)
    assert facts["converged"]
    np.testing.assert_allclose(
        fitted.decision_function(X), expected.decision_function(X), atol=5e-3
    )
    if class_weight == "balanced":
        plain, _ = probe.replace(class_weight="none").strategy(*X.shape).fit(X, y, 0.1, 1)
        assert not np.allclose(fitted.decision_function(X), plain.decision_function(X), atol=0.05)


@pytest.mark.parametrize(("kind", "learned"), [(Svm, LinearSVC), (Logistic, LogisticRegression)])
def test_what_was_learned_needs_nothing_of_featpipe(digits, kind, learned):
    X, y = digits
    fitted, _ = kind(c=GRID, solver="batched").strategy(*X.shape).fit(X, y, 1e-2, 1)
    scaler, classifier = fitted
    assert (type(scaler), type(classifier)) == (StandardScaler, learned)
    assert classifier.C == 1e-2
    assert fitted.score(X, y) > 0.95
    scores = (X - scaler.mean_) / scaler.scale_ @ classifier.coef_.T + classifier.intercept_
    np.testing.assert_allclose(fitted.decision_function(X), scores, atol=1e-4)


def test_neighbours_are_searched_as_scikit_learn_does(digits):
    X, y = digits
    probe = Knn(k=(1, 2, 5, 50))
    ks = list(probe.candidates())
    found = probe.strategy(*X.shape).search(X, y, folds_of(y), ks, 2)
    assert found == ScikitLearn(probe).search(X, y, folds_of(y), ks, 1)


@pytest.mark.parametrize("solver", ["batched", "sklearn"])
def test_the_reference_is_compared_where_that_is_asked_for(tmp_path, solver):
    train, test = pair(tmp_path, 90, 60, noise=3.0)
    result = evaluate(Svm(c=(0.01,), solver=solver, check_solver=True), train, test)
    split = result.splits[0]
    said = [note for note in result.notes if "scikit-learn's own solver" in note]
    assert split["solver"]["name"] == solver
    assert len(said) == (solver == "batched")  # scikit-learn is not compared with itself
    if solver == "batched":
        assert split["reference"]["answers"] == 60
        assert split["reference"]["different_answers"] == 0
        assert 0 < split["reference"]["largest_difference"] < 0.01
        assert "0 of 60 test images" in said[0]


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
