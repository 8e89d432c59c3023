"""Metrics against scikit-learn, brute force and textbook values; nothing undefined is a number."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from featpipe.errors import ResultError
from featpipe.evaluation.metrics import (
    Predictions,
    classification_metrics,
    metrics_from_confusion,
    reliability_curve,
)

SETTINGS = settings(deadline=None, max_examples=20, derandomize=True)


def make(n=60, k=4, seed=0, *, other=False, skill=1.5, probabilities=True):
    """Rows of a method that is right more often than not; every class occurs."""
    rng = np.random.default_rng(seed)
    y_true = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    scores = rng.normal(size=(n, k + other))
    scores[np.arange(n), y_true] += skill
    likely = np.exp(scores)
    likely /= likely.sum(axis=1, keepdims=True)
    return Predictions(
        ids=np.array([f"test/{i}" for i in range(n)]),
        y_true=y_true,
        y_pred=scores.argmax(axis=1),
        classes=tuple(f"class {i}" for i in range(k)),
        scores=scores,
        probabilities=likely if probabilities else None,
        other=other,
    )


@st.composite
def anything(draw):
    """Predictions with absent, never predicted and single classes, tied scores and no scores."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    other = draw(st.booleans())
    labels = st.lists(st.integers(0, k - 1), min_size=n, max_size=n)
    answers = st.lists(st.integers(0, k - 1 + other), min_size=n, max_size=n)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    likely = rng.integers(1, 4, size=(n, k + other)).astype(float)
    likely /= likely.sum(axis=1, keepdims=True)
    return Predictions(
        np.arange(n).astype(str),
        np.array(draw(labels)),
        np.array(draw(answers)),
        tuple("abcdefg"[:k]),
        draw(st.sampled_from([None, rng.integers(0, 3, size=(n, k)).astype(np.float32)])),
        draw(st.sampled_from([None, likely])),
        other,
    )


@SETTINGS
@given(anything())
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_every_missing_value_has_a_reason_and_nothing_is_nan(p):
    values = classification_metrics(p, without_source=p.classes[:1])
    json.dumps(values, allow_nan=False)
    missing = {name for name, value in values.items() if value is None}
    missing |= {
        f"{metric}[{entry['class']}]"
        for entry in values["per_class"]
        for metric, value in entry.items()
        if value is None
    }
    assert missing == set(values["undefined"])
    assert all(values["undefined"].values())


@SETTINGS
@given(st.integers(0, 10_000), st.booleans())
def test_agrees_with_scikit_learn(seed, other):
    p = make(seed=seed, other=other)
    values = classification_metrics(p)
    labels = range(len(p.classes))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        p.y_true, p.y_pred, labels=labels, zero_division=np.nan
    )
    for i, entry in enumerate(values["per_class"]):
        ours = [math.nan if entry[m] is None else entry[m] for m in ("precision", "recall", "f1")]
        np.testing.assert_allclose(ours, [precision[i], recall[i], f1[i]])
        assert entry["support"] == support[i]
        np.testing.assert_allclose(
            [entry["roc_auc"], entry["average_precision"]],
            [
                sk.roc_auc_score(p.y_true == i, p.scores[:, i]),
                sk.average_precision_score(p.y_true == i, p.scores[:, i]),
            ],
        )
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(p.y_true, p.y_pred))
    assert values["balanced_accuracy"] == pytest.approx(recall.mean())
    assert values["macro_f1"] == pytest.approx(f1.mean())
    assert values["weighted_f1"] == pytest.approx(np.average(f1, weights=support))
    assert values["weighted_recall"] == pytest.approx(values["accuracy"])
    for k in (2, 3):
        theirs = sk.top_k_accuracy_score(p.y_true, p.scores, k=k, labels=range(len(p.columns)))
        assert values[f"top_{k}_accuracy"] == pytest.approx(theirs)
    if not other:
        for average in ("macro", "weighted"):
            theirs = sk.roc_auc_score(p.y_true, p.probabilities, multi_class="ovr", average=average)
            ours = classification_metrics(replace(p, scores=None))[f"roc_auc_{average}"]
            assert ours == pytest.approx(theirs)


@SETTINGS
@given(st.integers(0, 10_000))
def test_order_of_rows_does_not_matter(seed):
    p = make(seed=seed, other=True)
    order = np.random.default_rng(seed).permutation(len(p.ids))
    parts = ("ids", "y_true", "y_pred", "scores", "probabilities")
    shuffled = replace(p, **{name: getattr(p, name)[order] for name in parts})
    first, second = classification_metrics(p), classification_metrics(shuffled)
    assert first["confusion"] == second["confusion"]
    for name in ("accuracy", "roc_auc_micro", "average_precision_macro", "log_loss", "ece"):
        assert first[name] == pytest.approx(second[name], abs=1e-12)


def test_auc_is_the_share_of_pairs_ranked_right():
    # Hanley and McNeil 1982: the area is P(score of a member > score of another), ties half.
    p = replace(make(n=30), scores=np.random.default_rng(0).integers(0, 4, size=(30, 4)))
    values = classification_metrics(p)
    for i, entry in enumerate(values["per_class"]):
        member, rest = p.scores[p.y_true == i, i], p.scores[p.y_true != i, i]
        above = (member[:, None] > rest).mean() + 0.5 * (member[:, None] == rest).mean()
        assert entry["roc_auc"] == pytest.approx(above)


def test_a_class_that_is_never_predicted_has_no_precision():
    values = metrics_from_confusion([[3, 1, 0], [2, 2, 0], [4, 0, 0]], ("cat", "dog", "deer"))
    deer = values["per_class"][2]
    assert (deer["precision"], deer["recall"], deer["f1"]) == (None, 0.0, 0.0)
    assert values["undefined"]["precision[deer]"] == "never predicted"
    assert values["macro_precision"] is None
    assert "never predicted: 1" in values["undefined"]["macro_precision"]
    assert values["macro_f1"] is not None


def test_a_class_without_test_rows_has_no_recall_and_leaves_the_macro_mean():
    values = metrics_from_confusion([[3, 1, 0], [2, 2, 0], [0, 0, 0]], ("cat", "dog", "deer"))
    assert values["classes_absent"] == ["deer"]
    assert values["per_class"][2]["recall"] is None
    assert values["undefined"]["recall[deer]"] == "no test row of this class"
    assert values["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert values["macro_precision"] == pytest.approx((3 / 5 + 2 / 3) / 2)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_one_class_only_gives_accuracy_and_reasons():
    ones = np.ones((3, 1))
    zeros = np.zeros(3, dtype=int)
    values = classification_metrics(Predictions(zeros, zeros, zeros, ("cat",), ones, ones))
    assert values["accuracy"] == 1.0
    assert values["roc_auc_macro"] is None
    assert values["undefined"]["roc_auc_macro"] == "all test rows are of one class"
    assert values["undefined"]["log_loss"] == "there is only one class"


def test_coverage_and_classes_without_source():
    # Ten rows: cat 4 right, 2 to other; deer has no source class: 3 to other, 1 called cat.
    y_true = np.array([0] * 6 + [1] * 4)
    y_pred = np.array([0] * 4 + [2] * 2 + [2] * 3 + [0])
    p = Predictions(np.arange(10), y_true, y_pred, ("cat", "deer"), other=True)
    values = classification_metrics(p, without_source=["deer"])
    assert values["confusion"] == [[4, 0, 2], [1, 0, 3]]
    assert values["accuracy"] == pytest.approx(0.4)
    assert values["coverage"] == pytest.approx(0.5)
    assert values["accuracy_covered"] == pytest.approx(0.8)
    assert values["accuracy_with_source"] == pytest.approx(4 / 6)
    assert values["classes_without_source"] == ["deer"]
    everything_other = replace(p, y_pred=np.full(10, 2))
    values = classification_metrics(everything_other)
    assert values["accuracy_covered"] is None
    assert "other" in values["undefined"]["accuracy_covered"]


def test_a_tie_counts_against_the_method():
    # Only one of ten classes has votes; the true class is tied with eight others at 0.
    scores = np.zeros((1, 10))
    scores[0, 3] = 5
    p = Predictions(np.array(["a"]), np.array([9]), np.array([3]), tuple("abcdefghij"), scores)
    assert classification_metrics(p)["top_5_accuracy"] == 0.0
    assert classification_metrics(replace(p, y_true=np.array([3])))["top_5_accuracy"] == 1.0


def test_probability_scores_of_known_cases():
    k, rows = 4, 8
    uniform = replace(make(n=rows, k=k), probabilities=np.full((rows, k), 1 / k))
    values = classification_metrics(uniform)
    assert values["log_loss"] == pytest.approx(math.log(k))
    assert values["brier"] == pytest.approx(1 - 1 / k)
    certain = np.eye(k)[uniform.y_true]
    values = classification_metrics(replace(uniform, probabilities=certain, y_pred=uniform.y_true))
    assert values["log_loss"] == pytest.approx(0, abs=1e-9)
    assert values["brier"] == values["ece"] == 0


def test_metrics_of_repeated_rows_pool_all_predictions():
    p = make(n=20)
    twice = replace(
        p,
        **{
            name: np.concatenate([getattr(p, name)] * 2)
            for name in ("ids", "y_true", "y_pred", "scores", "probabilities")
        },
    )
    assert classification_metrics(twice)["n"] == 40
    assert classification_metrics(twice)["accuracy"] == classification_metrics(p)["accuracy"]


@pytest.mark.parametrize(
    "matrix",
    [[[1, 2]], [[1, 2, 3], [4, 5, 6]], [[-1, 2], [1, 1]], [[0, 0], [0, 0]], [[0.5, 1], [1, 1]]],
)
def test_a_matrix_that_is_none_is_refused(matrix):
    with pytest.raises(ResultError, match="confusion matrix"):
        metrics_from_confusion(matrix, ("cat", "dog"))


def test_float16_and_float32_probabilities_are_accepted():
    p = make(n=200, k=10)
    exact = classification_metrics(p)
    for dtype in (np.float16, np.float32):
        rounded = classification_metrics(replace(p, probabilities=p.probabilities.astype(dtype)))
        assert rounded["log_loss"] == pytest.approx(exact["log_loss"], abs=1e-3)


# -- predictions -----------------------------------------------------------------------------------


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


# -- calibration -----------------------------------------------------------------------------------


def answered(confidence, correct):
    """Predictions of the first of two classes with this confidence."""
    wrong, zeros = (~np.asarray(correct)).astype(int), np.zeros(len(correct), int)
    probabilities = np.column_stack([confidence, 1 - confidence])
    return Predictions(zeros, wrong, zeros, ("a", "b"), probabilities=probabilities)


def test_calibration_needs_probabilities():
    with pytest.raises(ResultError, match="needs probabilities"):
        reliability_curve(make(probabilities=False))


@SETTINGS
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_ece_is_the_weighted_gap_of_the_bins(rows, bins):
    confidence = np.array([c for c, _ in rows])
    correct = np.array([r for _, r in rows])
    result = reliability_curve(answered(confidence, correct), bins)
    edges = np.linspace(0, 1, bins + 1)
    gap = 0.0
    for i in range(bins):
        inside = (confidence > edges[i]) & (confidence <= edges[i + 1])
        inside |= (i == 0) & (confidence == 0)
        assert result["bins"][i]["count"] == inside.sum()
        if inside.any():
            gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
            assert result["bins"][i]["accuracy"] == pytest.approx(correct[inside].mean())
        else:
            assert result["bins"][i]["accuracy"] is None
    assert result["ece"] == pytest.approx(gap, abs=1e-12)


def test_bins_are_closed_on_the_right():
    p = answered(np.array([0.0, 0.5, 0.51, 1.0]), np.ones(4, bool))
    bins = reliability_curve(p, bins=2)["bins"]
    assert [b["count"] for b in bins] == [2, 2]


def test_a_calibrated_method_has_a_small_ece_and_an_overconfident_one_a_large_one():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 20_000)
    honest = rng.random(20_000) < confidence
    assert reliability_curve(answered(confidence, honest))["ece"] < 0.02
    overconfident = answered(np.full(20_000, 0.99), honest)
    assert reliability_curve(overconfident)["ece"] == pytest.approx(0.39, abs=0.02)
