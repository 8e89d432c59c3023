"""Policies of a label map: three ways from the same logits to the target classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from featpipe.labelmap import OTHER, LabelMap, Row
from featpipe.probes.zeroshot import POLICIES

# Six source classes stand for: cat, other, dog, cat, other, dog. There is no deer (2).
TARGETS = ("cat", OTHER, "dog", "cat", OTHER, "dog")
PETS = LabelMap(
    "pets",
    ("cat", "dog", "deer"),
    tuple(Row(0, f"s{i}", f"source {i}", target, "") for i, target in enumerate(TARGETS)),
)
COLUMNS = np.array([0, 3, 1, 0, 3, 1])
logits = arrays(np.float32, (4, 6), elements=st.floats(-30, 30, width=32))


def predict(X: np.ndarray, policy: str) -> np.ndarray:
    return PETS.probabilities(X, policy).argmax(axis=1)


def test_columns_are_those_of_the_rows():
    assert PETS.columns().tolist() == COLUMNS.tolist()


@given(X=logits)
def test_argmax_is_the_highest_source_class_mapped(X):
    source = softmax(X.astype(np.float64), axis=1)
    lowest_of_ties = [COLUMNS[row == row.max()].min() for row in source]
    assert (predict(X, "argmax") == lowest_of_ties).all()


@given(X=logits)
def test_group_sums_the_probabilities_of_each_target(X):
    source = softmax(X.astype(np.float64), axis=1)
    expected = np.stack([source[:, target == COLUMNS].sum(axis=1) for target in range(4)], axis=1)
    assert np.allclose(PETS.probabilities(X, "group"), expected)


@given(X=logits)
def test_restricted_never_answers_other(X):
    targets = np.flatnonzero(COLUMNS < 3)
    best = X[:, targets].max(axis=1, keepdims=True) == X[:, targets]
    assert (PETS.probabilities(X, "restricted")[:, 3] == 0).all()
    for row, answer in enumerate(predict(X, "restricted")):
        # float32 logits that differ may give equal probabilities; equal logits always do.
        assert answer in COLUMNS[targets][best[row]] or np.isclose(
            X[row, targets[COLUMNS[targets] == answer]].max(), X[row, targets].max(), atol=1e-5
        )


@pytest.mark.parametrize("policy", POLICIES)
@given(X=logits)
def test_probabilities_add_up_to_one_and_a_target_without_source_has_none(policy, X):
    probabilities = PETS.probabilities(X, policy)
    assert probabilities.shape == (4, 4)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[:, 2] == 0).all()


def test_a_sum_of_small_probabilities_can_win_over_the_highest():
    X = np.log([[0.22, 0.3, 0.05, 0.22, 0.05, 0.16]])  # cat 0.44, other 0.35, dog 0.21
    assert predict(X, "argmax").tolist() == [3]
    assert predict(X, "group").tolist() == [0]


@pytest.mark.parametrize("policy", POLICIES)
def test_huge_logits_do_not_overflow(policy):
    X = np.array([[9000.0, -9000, 8999, 0, 0, 0]], dtype=np.float32)
    assert np.isfinite(PETS.probabilities(X, policy)).all()
    assert predict(X, policy).tolist() == [0]


@pytest.mark.parametrize(
    ("X", "message"),
    [(np.zeros((2, 5)), "5 columns, the map 6"), (np.full((1, 6), np.nan), "NaN")],
)
def test_logits_that_do_not_fit_the_map_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        PETS.probabilities(X)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="no policy 'best'"):
        PETS.probabilities(np.zeros((1, 6)), "best")
