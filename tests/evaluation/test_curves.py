"""Curves keep their areas when they are thinned."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from featpipe.errors import ResultError
from featpipe.evaluation.curves import MAX_POINTS, pr_curves, roc_curves
from featpipe.evaluation.metrics import Predictions, classification_metrics

SETTINGS = settings(deadline=None, max_examples=25, derandomize=True)


def predictions(n, k=3, seed=0, skill=1.0, ties=False, absent=None):
    rng = np.random.default_rng(seed)
    labels = [i for i in range(k) if i != absent]
    y_true = np.concatenate([labels, rng.choice(labels, n - len(labels))])
    scores = rng.normal(size=(n, k))
    scores[np.arange(n), y_true] += skill
    scores = scores.round() if ties else scores
    names = tuple("abcdefghij"[:k])
    return Predictions(np.arange(n), y_true, scores.argmax(axis=1), names, scores)


def step_area(curve):
    return float(np.diff(curve["recall"]) @ np.array(curve["precision"])[1:])


@SETTINGS
@given(st.integers(5, 3000), st.integers(0, 99), st.sampled_from([0.0, 1.0, 4.0]), st.booleans())
def test_thinning_keeps_the_area(n, seed, skill, ties):
    p = predictions(n, seed=seed, skill=skill, ties=ties)
    for curve in roc_curves(p)["curves"]:
        assert len(curve["fpr"]) == len(curve["tpr"]) <= MAX_POINTS
        assert abs(sk.auc(curve["fpr"], curve["tpr"]) - curve["auc"]) <= 0.0026
        assert (curve["fpr"][0], curve["tpr"][0]) == (0, 0)
        assert (curve["fpr"][-1], curve["tpr"][-1]) == (1, 1)
        assert np.all(np.diff(curve["fpr"]) >= 0)
        assert np.all(np.diff(curve["tpr"]) >= -1e-5)  # rounded to 5 decimals
    for curve in pr_curves(p)["curves"]:
        assert len(curve["recall"]) == len(curve["precision"]) <= MAX_POINTS
        assert abs(step_area(curve) - curve["average_precision"]) < 2e-5
        assert (curve["recall"][0], curve["recall"][-1]) == (0, 1)


def test_the_bound_of_the_roc_is_reached_by_the_worst_staircase():
    # One stair per drawing step, so that every drawn point is an inner corner.
    y_true = np.tile([1, 1, 0, 0], MAX_POINTS - 1)
    n = len(y_true)
    scores = -np.arange(n, dtype=float)
    p = Predictions(np.arange(n), y_true, y_true, ("a", "b"), np.column_stack([-scores, scores]))
    curve = roc_curves(p)["curves"][1]
    lost = abs(sk.auc(curve["fpr"], curve["tpr"]) - curve["auc"])
    assert 0.0025 < lost <= 0.0026


@pytest.mark.parametrize("skill", [0.5, 3.0])
def test_areas_are_those_of_the_metrics(skill):
    p = predictions(4000, k=5, skill=skill)
    values = classification_metrics(p)
    for key, area, curves in (
        ("roc_auc", "auc", roc_curves(p)["curves"]),
        ("average_precision", "average_precision", pr_curves(p)["curves"]),
    ):
        for curve in curves:
            expected = (
                values[f"{key}_{curve['average']}"]
                if curve["average"]
                else next(e[key] for e in values["per_class"] if e["class"] == curve["class"])
            )
            assert curve[area] == pytest.approx(expected, abs=1e-9)


def test_short_curves_are_exact():
    p = predictions(60)
    curve = roc_curves(p)["curves"][1]
    fpr, tpr, _ = sk.roc_curve(p.y_true == 1, p.scores[:, 1])
    np.testing.assert_allclose(curve["fpr"], fpr, atol=1e-5)
    np.testing.assert_allclose(curve["tpr"], tpr, atol=1e-5)


def test_precision_at_recall_0_repeats_the_first_step():
    # The highest score belongs to the wrong class; scikit-learn's first point would be (0, 1).
    scores = np.array([[0.9], [0.8], [0.1]]) * [[-1, 1]]
    p = Predictions(np.arange(3), np.array([0, 1, 0]), np.array([1, 1, 1]), ("a", "b"), scores)
    curve = pr_curves(p)["curves"][1]
    assert curve["recall"] == [0.0, 1.0, 1.0]
    assert curve["precision"] == [0.5, 0.5, 0.33333]


def test_a_class_without_rows_has_a_reason_instead_of_a_curve():
    p = predictions(50, k=3, absent=2)
    for curves in (roc_curves(p), pr_curves(p)):
        assert [c["class"] for c in curves["curves"]] == ["a", "b", None, None]
        assert curves["undefined"] == {"c": "no test row of this class"}
    alone = Predictions(np.arange(3), np.zeros(3, int), np.zeros(3, int), ("a", "b"), np.eye(3, 2))
    assert roc_curves(alone)["curves"] == []
    assert roc_curves(alone)["undefined"]["a"] == "every test row is of this class"


def test_same_input_same_bytes():
    first, second = (json.dumps([roc_curves(p), pr_curves(p)]) for p in [predictions(3000)] * 2)
    assert first == second


def test_without_scores_the_message_says_what_is_missing():
    p = Predictions(np.arange(2), np.array([0, 1]), np.array([0, 1]), ("a", "b"))
    for curve in (roc_curves, pr_curves):
        with pytest.raises(ResultError, match="neither"):
            curve(p)
