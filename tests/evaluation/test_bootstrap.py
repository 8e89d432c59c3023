"""Bootstrap intervals against resampling by brute force with scikit-learn's metrics."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from featpipe.evaluation import bootstrap
from featpipe.evaluation.bootstrap import auc_contributions, metric_intervals
from featpipe.evaluation.metrics import Predictions, classification_metrics, reliability_curve


def predictions(n=150, k=3, models=1, seed=0, *, skill=1.2, other=False, rounded=False):
    """Return probabilities of several models for the same rows, their rows and their models."""
    rng = np.random.default_rng(seed)
    true = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])[:n]
    shared = rng.normal(size=(n, k + other))
    shared[np.arange(n), true] += skill
    scores = np.concatenate([shared + 0.7 * rng.normal(size=shared.shape) for _ in range(models)])
    likely = np.exp(scores.round() if rounded else scores)
    likely /= likely.sum(axis=1, keepdims=True)
    row, model = np.tile(np.arange(n), models), np.repeat(np.arange(models), n)
    classes = tuple(f"class {i}" for i in range(k))
    return (
        Predictions(
            row.astype(str), true[row], likely.argmax(axis=1), classes, None, likely, other
        ),
        row,
        model,
    )


def values_of(pooled: Predictions, model: np.ndarray) -> dict[str, float]:
    """Return the metrics, computed again: AUC as the mean over models, the rest of all together."""
    labels, areas = range(len(pooled.classes)), []
    for number in np.unique(model):
        for label in labels:
            score = pooled.probabilities[model == number, label]
            member = pooled.y_true[model == number] == label
            difference = score[member][:, None] - score[~member]
            areas.append(((difference > 0) + 0.5 * (difference == 0)).mean())
    _, recall, f1, _ = sk.precision_recall_fscore_support(
        pooled.y_true, pooled.y_pred, labels=labels, average="macro", zero_division=0
    )
    return {
        "balanced_accuracy": recall,
        "macro_f1": f1,
        "roc_auc_macro": float(np.mean(areas)),
        "ece": reliability_curve(pooled)["ece"],
    }


def some(pooled: Predictions, chosen: np.ndarray) -> Predictions:
    return Predictions(
        pooled.ids[chosen], pooled.y_true[chosen], pooled.y_pred[chosen], pooled.classes,
        None, pooled.probabilities[chosen], pooled.other,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("models", "more"), [(1, {}), (3, {}), (1, {"other": True}), (2, {"rounded": True})]
)
def test_agrees_with_resampling_one_by_one(models, more):
    pooled, row, model = predictions(models=models, **more)
    values, n = values_of(pooled, model), 150
    rng, drawn = np.random.default_rng(1), []
    for _ in range(400):
        # Each row drawn brings all of its predictions.
        chosen = (rng.integers(n, size=(n, 1)) + n * np.arange(models)).ravel()
        drawn.append(values_of(some(pooled, chosen), model[chosen]))
    intervals = metric_intervals(pooled, row, model, values)
    assert set(intervals) == set(values)
    for name, interval in intervals.items():
        low, high = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        assert interval.value == values[name]
        assert interval.high == pytest.approx(high, abs=0.2 * (high - low))
        if name != "ece":  # whose lower limit takes the noise in bins off
            assert interval.low == pytest.approx(low, abs=0.2 * (high - low))


def test_what_a_prediction_adds_to_the_area_is_counted_pair_by_pair():
    pooled, _, model = predictions(40, models=2, rounded=True)
    expected = np.zeros(80)
    for number in (0, 1):
        for label in range(3):
            own = np.flatnonzero(model == number)
            score, member = pooled.probabilities[own, label], pooled.y_true[own] == label
            inside, outside = own[member], own[~member]
            difference = score[member][:, None] - score[~member]
            above = np.where(difference == 0, 0.5, difference > 0)
            expected[inside] += (above.mean(axis=1) - above.mean()) / len(inside) / 6
            expected[outside] += (above.mean(axis=0) - above.mean()) / len(outside) / 6
    adds = auc_contributions(pooled, model)
    assert adds == pytest.approx(expected)
    assert adds.sum() == pytest.approx(0)


def test_calibrated_answers_are_not_called_miscalibrated():
    # The expected calibration error of 200 calibrated rows is 0.07: all of it noise.
    rng, excluded = np.random.default_rng(0), []
    for slope in (1.0, 0.6):
        found = 0
        for _ in range(60):
            sure = rng.uniform(0.5, 1, 200)
            right = rng.random(200) < 0.5 + slope * (sure - 0.5)
            pooled = Predictions(
                np.arange(200).astype(str), np.where(right, 0, 1), np.zeros(200, int),
                ("a", "b"), None, np.column_stack([sure, 1 - sure]),
            )  # fmt: skip
            values = {"ece": reliability_curve(pooled)["ece"]}
            interval = metric_intervals(
                pooled, np.arange(200), np.zeros(200, int), values, resamples=300
            )["ece"]
            assert 0 <= interval.low <= interval.value <= interval.high
            found += interval.low > 0
        excluded.append(found / 60)
    assert excluded[0] <= 0.1
    assert excluded[1] > 2 * excluded[0]


def test_copies_of_an_answer_make_nothing_surer():
    pooled, row, model = predictions()
    once = metric_intervals(pooled, row, model, values_of(pooled, model))
    tenfold = some(pooled, np.tile(np.arange(150), 10))
    rows, models = np.tile(np.arange(150), 10), np.repeat(np.arange(10), 150)
    ten = metric_intervals(tenfold, rows, models, values_of(tenfold, models))
    for name, interval in once.items():
        assert (ten[name].low, ten[name].high) == pytest.approx((interval.low, interval.high))


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_what_leaves_nothing_to_resample_has_no_interval():
    one, row, model = predictions(1, 1)
    assert metric_intervals(one, row, model, classification_metrics(one)) == {}
    perfect, row, model = predictions(skill=50.0)
    found = metric_intervals(perfect, row, model, classification_metrics(perfect))
    assert not {"balanced_accuracy", "macro_f1", "roc_auc_macro"} & set(found)


def test_a_class_without_test_rows_plays_no_part():
    pooled, row, model = predictions()
    more = Predictions(
        pooled.ids, pooled.y_true, pooled.y_pred, (*pooled.classes, "none"), None,
        np.column_stack([pooled.probabilities, np.zeros(150)]),
    )  # fmt: skip
    alone, joined = (
        metric_intervals(each, row, model, classification_metrics(each)) for each in (pooled, more)
    )
    assert alone == joined


def test_methods_without_scores_have_intervals_of_counts():
    pooled, row, model = predictions()
    bare = Predictions(pooled.ids, pooled.y_true, pooled.y_pred, pooled.classes)
    found = metric_intervals(bare, row, model, classification_metrics(bare))
    assert set(found) == {"balanced_accuracy", "macro_f1"}


def test_the_seed_decides_and_the_batches_do_not(monkeypatch):
    pooled, row, model = predictions()
    values = values_of(pooled, model)
    first = metric_intervals(pooled, row, model, values, seed=3)
    assert metric_intervals(pooled, row, model, values, seed=4) != first
    monkeypatch.setattr(bootstrap, "AT_ONCE", 1000)
    assert metric_intervals(pooled, row, model, values, seed=3) == first
