"""The mapped classifier: three policies over the same logits, nothing learned."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from featpipe.probes import MappedClassifier
from featpipe.probes.mapped import POLICIES

# Six source classes stand for: cat, other, dog, cat, other, dog. There is no deer (2).
COLUMNS = np.array([0, 3, 1, 0, 3, 1])
logits = arrays(np.float32, (4, 6), elements=st.floats(-30, 30, width=32))


def mapped(policy: str) -> MappedClassifier:
    return MappedClassifier(COLUMNS, 3, policy)


# scikit-learn's own checks make up features of their own, which no map has columns for.
def test_it_keeps_the_contract_of_parameters():
    model = mapped("group")
    assert model.get_params() == {"columns": COLUMNS, "n_targets": 3, "policy": "group"}
    assert model.set_params(policy="argmax").policy == "argmax"
    assert set(vars(model)) == {"columns", "n_targets", "policy"}  # the constructor only stores
    assert model.fit(np.zeros((1, 6))) is model
    assert set(vars(model)) == {"columns", "n_targets", "policy", "classes_"}
    assert repr(model).startswith("MappedClassifier(")


def test_it_is_cloned_pickled_and_searched_over():
    X = np.random.default_rng(0).normal(size=(12, 6))
    again = pickle.loads(pickle.dumps(clone(mapped("group"))))
    assert (again.predict(X) == mapped("group").predict(X)).all()
    search = GridSearchCV(mapped("argmax"), {"policy": list(POLICIES)}, cv=2)
    search.fit(X, mapped("restricted").predict(X))
    assert search.best_params_ == {"policy": "restricted"}


@given(X=logits)
def test_argmax_is_the_highest_source_class_mapped(X):
    assert (mapped("argmax").predict(X) == _lowest_target_of_ties(X)).all()


def _lowest_target_of_ties(X: np.ndarray) -> np.ndarray:
    probabilities = softmax(X.astype(np.float64), axis=1)
    return np.array([COLUMNS[row == row.max()].min() for row in probabilities])


@given(X=logits)
def test_group_sums_the_probabilities_of_each_target(X):
    source = softmax(X.astype(np.float64), axis=1)
    expected = np.stack([source[:, target == COLUMNS].sum(axis=1) for target in range(4)], axis=1)
    assert np.allclose(mapped("group").predict_proba(X), expected)


@given(X=logits)
def test_restricted_never_answers_other(X):
    targets = np.flatnonzero(COLUMNS < 3)
    probabilities = mapped("restricted").predict_proba(X)
    best = X[:, targets].max(axis=1, keepdims=True) == X[:, targets]
    predicted = mapped("restricted").predict(X)
    assert (probabilities[:, 3] == 0).all()
    for row, answer in enumerate(predicted):
        # float32 logits that differ may give equal probabilities; equal logits always do.
        assert answer in COLUMNS[targets][best[row]] or np.isclose(
            X[row, targets[COLUMNS[targets] == answer]].max(), X[row, targets].max(), atol=1e-5
        )


@pytest.mark.parametrize("policy", POLICIES)
@given(X=logits)
def test_probabilities_are_such_and_their_highest_is_the_prediction(policy, X):
    probabilities = mapped(policy).predict_proba(X)
    assert probabilities.shape == (4, 4)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[:, 2] == 0).all()  # a target without source
    assert (probabilities.argmax(axis=1) == mapped(policy).predict(X)).all()


def test_a_sum_of_small_probabilities_can_win_over_the_highest():
    X = np.log([[0.22, 0.3, 0.05, 0.22, 0.05, 0.16]])  # cat 0.44, other 0.35, dog 0.21
    assert mapped("argmax").predict(X).tolist() == [3]
    assert mapped("group").predict(X).tolist() == [0]


@pytest.mark.parametrize("policy", POLICIES)
def test_huge_logits_do_not_overflow(policy):
    X = np.array([[9000.0, -9000, 8999, 0, 0, 0]], dtype=np.float32)
    assert np.isfinite(mapped(policy).predict_proba(X)).all()
    assert mapped(policy).predict(X).tolist() == [0]


@pytest.mark.parametrize(
    ("X", "message"),
    [(np.zeros((2, 5)), "5 columns, the map 6"), (np.full((1, 6), np.nan), "NaN")],
)
def test_logits_that_do_not_fit_the_map_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        mapped("argmax").predict(X)


def test_an_unknown_policy_is_refused_when_it_is_used():
    with pytest.raises(ValueError, match="policy must be one of"):
        mapped("best").predict(np.zeros((1, 6)))
