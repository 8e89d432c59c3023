"""Predictions refuse parts that do not belong together, and say what follows from them."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import ResultError
from featpipe.evaluation.predictions import Predictions


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"y_true": np.array([0, 1, 9])}, "true class is none of the classes"),
        ({"y_true": np.array([0, -1, 1])}, "expected: 0 to 1"),
        ({"y_pred": np.array([0, 2, 1])}, "predicted class is none"),
        ({"ids": np.array(["a"])}, "lengths differ"),
        ({"classes": ("cat", "cat")}, "same name"),
        ({"classes": ("cat", "other"), "other": True}, "same name"),
        ({"scores": np.zeros((3, 5))}, "one column per class"),
        ({"scores": np.zeros(3)}, "one column per class"),
        ({"scores": np.array([[0, 1], [0, np.nan], [0, 0]])}, "row 1 \\(b\\)"),
        ({"probabilities": np.full((3, 2), 0.7)}, "add up to 1"),
        ({"probabilities": np.array([[1.5, -0.5]] * 3)}, "between 0 and 1"),
        ({"ids": [], "y_true": np.array([]), "y_pred": np.array([])}, "no test rows"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(parts, message):
    good = {
        "ids": np.array(["a", "b", "c"]),
        "y_true": np.array([0, 1, 1]),
        "y_pred": np.array([0, 1, 0]),
        "classes": ("cat", "dog"),
    }
    Predictions(**good)
    with pytest.raises(ResultError, match=message):
        Predictions(**{**good, **parts})


def test_scores_rank_before_probabilities():
    parts = np.array(["a"]), np.array([0]), np.array([1]), ("x", "y")
    scores, likely = np.array([[2, 1]], np.float32), np.array([[0.5, 0.5]])
    assert Predictions(*parts).ranking is None
    assert Predictions(*parts, probabilities=likely).ranking.tolist() == [[0.5, 0.5]]
    ranking = Predictions(*parts, scores, likely).ranking
    assert (ranking.dtype, ranking.tolist()) == (np.float64, [[2, 1]])


def test_confidence_is_the_probability_of_the_answer_given():
    # A mapped classifier may answer with a class that is not the likeliest of the summed ones.
    parts = np.array(["a"]), np.array([0]), np.array([0]), ("x", "y")
    assert Predictions(*parts).confidence is None
    assert Predictions(*parts, probabilities=np.array([[0.3, 0.7]])).confidence.tolist() == [0.3]
