"""From predictions of splits to records, a table, and a summary."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.evaluation.assemble import (
    SplitPredictions,
    low_shot_curve,
    prediction_table,
    summarise,
)
from featpipe.evaluation.protocol import make_splits
from tests.stores import content, sealed

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def store(tmp_path):
    return sealed(tmp_path / "s.h5", content(12, CLASSES))


def answered(split, wrong: int, **more) -> SplitPredictions:
    """Answer right but for the first ``wrong`` rows."""
    predicted = split.test.labels.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    return SplitPredictions(split, predicted, **more)


def test_a_row_tested_by_several_models_is_stored_once(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    _, (split,) = make_splits("split", store, test, 0)
    table = prediction_table([answered(split, 0), answered(split, 2)])
    assert table.ids.tolist() == test.ids
    assert table.true.tolist() == test.labels.tolist()
    assert table.row.tolist() == [*range(6), *range(6)]
    assert table.split.tolist() == [0] * 6 + [1] * 6
    assert table.correct.tolist() == [True] * 6 + [False] * 2 + [True] * 4
    assert table.scores is None
    assert table.only_splits([1]).correct.tolist() == [False] * 2 + [True] * 4


def test_counts_are_pooled_over_splits_and_accuracies_are_described(store):
    _, splits = make_splits("kfold:3", store, None, 0)
    parts = [answered(split, wrong) for split, wrong in zip(splits, (0, 1, 2), strict=True)]
    records = [part.record() for part in parts]
    summary = summarise(records, prediction_table(parts), CLASSES, other=False)
    assert summary["accuracy"]["value"] == pytest.approx(9 / 12)
    assert summary["accuracy"]["method"].startswith("Wilson")  # every row was tested once
    assert np.sum(summary["metrics"]["confusion"]) == 12
    spread = summary["spread"]["accuracy"]
    assert (spread["mean"], spread["n"]) == (pytest.approx(0.75), 3)
    assert spread["sd"] == pytest.approx(0.25)


def test_rows_tested_by_several_models_are_resampled_whole(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    _, (split,) = make_splits("split", store, test, 0)
    parts = [answered(split, 1), answered(split, 3)]
    summary = summarise([p.record() for p in parts], prediction_table(parts), CLASSES, other=False)
    assert "bootstrap" in summary["accuracy"]["method"]


def test_metrics_of_scores_are_averaged_over_models(store):
    _, splits = make_splits("kfold:2", store, None, 0)
    parts = []
    for number, split in enumerate(splits):
        scores = np.eye(3, dtype=np.float32)[split.test.labels]
        scores[0] = np.roll(scores[0], number)  # the second model ranks one row wrong
        parts.append(SplitPredictions(split, scores.argmax(axis=1), scores))
    records = [part.record() for part in parts]
    summary = summarise(records, prediction_table(parts), CLASSES, other=False)
    each = [record["metrics"]["roc_auc_macro"] for record in records]
    assert each[0] == 1 > each[1]
    assert summary["metrics"]["roc_auc_macro"] == pytest.approx(np.mean(each))


def test_a_metric_that_one_split_lacks_has_no_value_and_a_reason(store):
    _, splits = make_splits("kfold:2", store, None, 0)
    parts = [
        SplitPredictions(
            splits[0], splits[0].test.labels, np.eye(3, dtype=np.float32)[splits[0].test.labels]
        ),
        SplitPredictions(splits[1], splits[1].test.labels),
    ]
    records = [part.record() for part in parts]
    for order in (records, records[::-1]):
        summary = summarise(order, prediction_table(parts), CLASSES, other=False)
        assert summary["metrics"]["roc_auc_macro"] is None
        assert "split" in summary["metrics"]["undefined"]["roc_auc_macro"]


def test_a_low_shot_curve_lists_every_draw(store):
    records = [
        {"train_per_class": size, "metrics": {"accuracy": accuracy}}
        for size, accuracy in [(5, 0.8), (1, 0.5), (5, 1.0), (1, 0.7)]
    ]
    curve = low_shot_curve(records)
    assert [point["train_per_class"] for point in curve] == [1, 5]
    assert curve[0]["accuracies"] == [0.5, 0.7]
    assert curve[1]["mean"] == pytest.approx(0.9)
    assert low_shot_curve([{"train_per_class": None, "metrics": {"accuracy": 1.0}}]) == []
