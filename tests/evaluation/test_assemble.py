"""From predictions of splits to records, a table, and a summary."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.evaluation.assemble import (
    IMBALANCE,
    OTHER_ROWS,
    MethodOutput,
    SplitPredictions,
    build_result,
    imbalance,
    low_shot_curve,
    outcome_of,
    prediction_table,
    summarise,
    training_sets,
)
from featpipe.evaluation.metrics import Predictions
from featpipe.evaluation.protocol import RowSet, Split, make_splits
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.svm import Svm
from featpipe.statistics.intervals import bootstrap_mean
from featpipe.statistics.paired_tests import ONE_TRAINING_SET, SAME_TRAINING_SET
from featpipe.steps import Context
from tests.evaluation.methods import evaluated
from tests.stores import RUN, content, sealed

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def store(tmp_path):
    return sealed(tmp_path / "s.h5", content(12, CLASSES))


def answered(split, wrong: int, **more) -> SplitPredictions:
    """Answer right but for the first ``wrong`` rows."""
    predicted = split.test.labels.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    return SplitPredictions(split, predicted, **more)


def summary_of(parts: list[SplitPredictions], trains: bool = True):
    """Summarise as a result does."""
    table, first = prediction_table(parts), parts[0]
    pooled = Predictions.of_table(
        table, first.split.test.store.classes, other=False, probabilities=first.probabilities
    )
    splits = [part.split for part in parts]
    training = {"splits": list(range(len(parts))), **training_sets(splits)} if trains else None
    return summarise([part.record() for part in parts], table, pooled, training)


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
    summary = summary_of(parts)
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
    summary = summary_of(parts)
    assert "bootstrap" in summary["accuracy"]["method"]


def test_metrics_of_scores_are_averaged_over_models(store):
    _, splits = make_splits("kfold:2", store, None, 0)
    parts = []
    for number, split in enumerate(splits):
        scores = np.eye(3, dtype=np.float32)[split.test.labels]
        scores[0] = np.roll(scores[0], number)  # the second model ranks one row wrong
        parts.append(SplitPredictions(split, scores.argmax(axis=1), scores))
    summary = summary_of(parts)
    each = [part.record()["metrics"]["roc_auc_macro"] for part in parts]
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
    for order in (parts, parts[::-1]):
        summary = summary_of(order)
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


# -- calibration of several models ----------------------------------------------------------------


def test_the_calibration_error_is_that_of_all_predictions_together(tmp_path):
    # Calibrated answers to 200 rows in five splits. Every split of 40 rows has noise in its bins.
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 200).astype(np.float32)
    right = rng.random(200) < sure
    store = sealed(tmp_path / "s.h5", content(200, ("ant", "bee"), labels=np.where(right, 0, 1)))
    _, splits = make_splits("kfold:5", store, None, 0)
    scores = np.column_stack([sure, 1 - sure])
    parts = [
        SplitPredictions(
            split, np.zeros(len(split.test), int), scores[split.test.rows], probabilities=True
        )
        for split in splits
    ]
    each = [part.record()["metrics"]["ece"] for part in parts]
    summary = summary_of(parts)
    assert np.mean(each) > 1.8 * summary["metrics"]["ece"]
    # By hand: the gap of each of the bins (0.4667, 0.5333] … (0.9333, 1].
    bins = np.ceil(sure.astype(float) * 15)
    gaps = [(sure[bins == b].astype(float) - right[bins == b]).sum() for b in range(8, 16)]
    assert summary["metrics"]["ece"] == pytest.approx(np.abs(gaps).sum() / 200)
    assert summary["intervals"]["ece"]["low"] == 0 < summary["intervals"]["ece"]["high"]


# -- training sets --------------------------------------------------------------------------------


def folds_of(store, test, *folds):
    tested = RowSet(test, test.usable)
    return [
        Split(f"fold {i}", RowSet(store, np.array(rows)), tested) for i, rows in enumerate(folds)
    ]


def test_training_sets_are_distinguished_by_their_images(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    about = training_sets(folds_of(store, test, range(4), range(2, 6), range(4)))
    assert about["sets"][0] == about["sets"][2] != about["sets"][1]
    assert about["rows"] == 4
    assert about["overlap"] == pytest.approx(0.5)  # of the one pair of different sets
    assert not about["own_pool"]
    (tmp_path / "other").mkdir()
    others = sealed(tmp_path / "other" / "s.h5", content(12, CLASSES, dims=3))
    assert training_sets(folds_of(others, test, range(4)))["sets"] == about["sets"][:1]


def test_sets_of_unequal_size_overlap_by_their_geometric_mean(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    about = training_sets(folds_of(store, test, range(9), range(4), range(9, 12)))
    assert about["overlap"] == pytest.approx((4 / 6 + 0 + 0) / 3)
    assert about["rows"] == pytest.approx(16 / 3)


@pytest.mark.parametrize(
    ("protocol", "own_pool", "overlap"),
    [("kfold:4", True, 2 / 3), ("holdout:0.5", False, 0.0)],
)
def test_a_protocol_says_whether_test_rows_train(store, protocol, own_pool, overlap):
    about = training_sets(make_splits(protocol, store, None, 0)[1])
    assert about["own_pool"] == own_pool
    assert about["overlap"] == pytest.approx(overlap)


def test_areas_of_a_class_are_means_over_the_models(store, tmp_path):
    result = evaluated(Centroid(protocol="kfold:3"), tmp_path, store)
    summary = result.summary["metrics"]
    areas = [entry["roc_auc"] for entry in summary["per_class"]]
    for k, area in enumerate(areas):
        each = [split["metrics"]["per_class"][k]["roc_auc"] for split in result.splits]
        assert area == pytest.approx(np.mean(each))
    assert summary["roc_auc_macro"] == pytest.approx(np.mean(areas))
    assert [*summary["per_class"][0]] == [*result.splits[0]["metrics"]["per_class"][0]]


def test_draws_in_a_low_shot_curve_are_training_sets_of_its_headline(tmp_path):
    train = sealed(tmp_path / "s.h5", content(30, CLASSES), noise=4.0)
    test = sealed(tmp_path / "t.h5", content(30, CLASSES, split="test"), noise=4.0, seed=1)
    result = evaluated(Centroid(train_per_class=(2, 5), repeats=3), tmp_path, train, test)
    training = result.protocol["training"]
    assert training["splits"] == [1, 3, 5]  # of each draw, the larger size
    assert len(set(training["sets"])) == 3
    assert training["rows"] == 15
    assert result.summary["accuracy_methods"] is not None
    everything = evaluated(Centroid(train_per_class=(10,), repeats=3), tmp_path, train, test)
    assert everything.summary["reason_methods"] == SAME_TRAINING_SET


def test_the_deviation_of_models_is_split_where_they_share_test_rows(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(30, CLASSES, split="test"))
    splits = folds_of(store, test, range(4), range(4, 8), range(8, 12))
    summary = summary_of(
        [answered(split, wrong) for split, wrong in zip(splits, (2, 9, 16), strict=True)]
    )
    spread = summary["spread"]["accuracy"]
    parts = spread["training_sd"] ** 2 + spread["few_rows_sd"] ** 2
    assert parts == pytest.approx(spread["sd"] ** 2)
    assert spread["reason"] is None
    methods = summary["accuracy_methods"]
    assert methods["low"] < summary["accuracy"]["low"] < methods["value"] < methods["high"]
    assert summary["reason_methods"] is None


def test_k_fold_cannot_tell_training_sets_from_test_rows(store):
    _, splits = make_splits("kfold:3", store, None, 0)
    summary = summary_of(
        [answered(split, wrong) for split, wrong in zip(splits, (0, 1, 2), strict=True)]
    )
    spread = summary["spread"]["accuracy"]
    assert (spread["training_sd"], spread["reason"]) == (None, OTHER_ROWS)
    assert summary["accuracy_methods"]["low"] < summary["accuracy"]["low"]


def test_one_training_set_says_nothing_of_others(store):
    _, splits = make_splits("holdout:0.5", store, None, 0)
    summary = summary_of([answered(splits[0], 1)])
    assert summary["accuracy_methods"] is None
    assert summary["reason_methods"] == ONE_TRAINING_SET


def test_what_trains_nothing_has_no_deviation(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    splits = folds_of(store, test, range(4), range(4, 8))
    summary = summary_of([answered(split, 1) for split in splits], trains=False)
    assert summary["spread"] == {}
    assert summary["accuracy_methods"] is None
    assert "nothing is trained" in summary["reason_methods"]


# -- rows, classes, cost --------------------------------------------------------------------------


def test_a_row_that_more_models_were_tested_on_weighs_no_more(store):
    # Folds without a test split: rows inside a fold are not tested by its model.
    splits = [
        Split("a", RowSet(store, np.arange(6)), RowSet(store, np.arange(6, 12))),
        Split("b", RowSet(store, np.arange(8)), RowSet(store, np.arange(8, 12))),
    ]
    parts = [answered(splits[0], 2), answered(splits[1], 0)]
    summary = summary_of(parts)
    assert summary["accuracy"]["value"] == pytest.approx(4 / 6)  # pooled answers: 8 of 10
    assert summary["metrics"]["accuracy"] == summary["accuracy"]["value"]
    table = prediction_table(parts)
    assert summary["accuracy"] == bootstrap_mean(table.correct, table.row).as_dict()


def result_of(step, parts, **more):
    cost = {"search_seconds": 2.0, "fit_seconds": 3.0, "predict_seconds": 4.0}
    output = MethodOutput("A method", parts, cost, [], {}, **more)
    return build_result(step, "0" * 64, "split", output, Context())[0]


def test_the_cost_is_the_time_from_images_to_answers(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    parts = [answered(make_splits("split", store, test, 0)[1][0], 1)]
    cost = result_of(Centroid(), parts).cost
    assert cost["extract_seconds"] == 2 * RUN["seconds"]
    assert cost["total_seconds"] == 2 * RUN["seconds"] + 9
    untrained = result_of(Centroid(), parts, trains=False)  # needs no features of training images
    assert untrained.cost["total_seconds"] == RUN["seconds"] + 9
    assert untrained.protocol["training"] is None


@pytest.mark.parametrize(("counts", "ratio"), [([4, 2], 2), ([3, 0, 3], 1), ([7], 1)])
def test_imbalance_is_the_ratio_of_the_classes_that_are_there(counts, ratio):
    assert imbalance(counts) == ratio


def test_unbalanced_classes_are_reported(tmp_path):
    labels = np.repeat([0, 1, 2], [20, 15, 5])
    train = sealed(tmp_path / "s.h5", content(40, CLASSES, labels=labels))
    test = sealed(tmp_path / "t.h5", content(40, CLASSES, labels=labels, split="test"))
    parts = [answered(make_splits("split", train, test, 0)[1][0], 4)]
    result = result_of(Svm(), parts)
    (note,) = [note for note in result.notes if note.startswith("Unbalanced")]
    assert "4.0 times" in note
    assert "--class-weight balanced" in note
    assert "--class-weight" not in str(result_of(Svm(class_weight="balanced"), parts).notes)
    assert "--class-weight" not in str(result_of(Centroid(), parts).notes)
    balanced = result.summary["metrics"]["balanced_accuracy"]
    assert f"balanced {100 * balanced:.2f} %" in outcome_of(result, "done").message


def test_balanced_classes_are_not_remarked_upon(store, tmp_path):
    assert IMBALANCE > 1
    test = sealed(tmp_path / "t.h5", content(6, CLASSES, split="test"))
    result = result_of(Svm(), [answered(make_splits("split", store, test, 0)[1][0], 1)])
    assert not any("nbalanced" in note for note in result.notes)
    assert "balanced" not in outcome_of(result, "done").message


def test_the_terminal_says_what_the_deviation_is_made_of(store, tmp_path):
    test = sealed(tmp_path / "t.h5", content(30, CLASSES, split="test"))
    splits = folds_of(store, test, range(4), range(4, 8))
    result = result_of(Svm(), [answered(splits[0], 2), answered(splits[1], 9)])
    message = outcome_of(result, "done").message
    assert "over 2 models (± " in message
    assert "from training images" in message
    assert "with other training images, too" in message
