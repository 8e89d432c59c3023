"""What a page is made from: unique titles, and groups of equal rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featpipe.errors import ResultError
from featpipe.evaluation.assemble import save_result
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.probes.nearest_mean import Centroid
from tests.reporting.conftest import Made, Plan, make_world


def test_groups_hold_methods_of_equal_rows_best_first(made: Made, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", Plan(n_test=60))
    data = made.data([*made.results, other.evaluate(Centroid(), "other")])
    assert [len(group.methods) for group in data.groups] == [len(made.results), 1]
    assert [group.label for group in data.groups] == [
        "toy, 200 test images",
        "toy, 60 test images",
    ]
    accuracies = [method.row["accuracy"] for method in data.groups[0].methods]
    assert accuracies == sorted(accuracies, reverse=True)
    names = {method.row["name"] for method in data.groups[0].methods}
    assert all({pair["a"], pair["b"]} <= names for pair in data.groups[0].pairs)
    assert len({method.anchor for method in data.methods}) == len(data.methods)


def test_answers_of_a_group_are_aligned_by_id(made: Made) -> None:
    (group,) = made.data().groups
    assert group.ids.tolist() == sorted(group.ids.tolist())
    for method, predicted in zip(group.methods, group.predicted, strict=True):
        by_id = dict(zip(method.table.ids.tolist(), method.predicted.tolist(), strict=True))
        assert [by_id[name] for name in group.ids.tolist()] == predicted.tolist()


def test_of_several_models_the_first_one_answers(made: Made) -> None:
    centroid = next(m for m in made.data().methods if m.result.method == "centroid")
    assert centroid.first_model_name == centroid.result.splits[0]["name"]
    first = centroid.table.only_splits([0])
    assert centroid.predicted[first.row].tolist() == first.predicted.tolist()
    assert len(centroid.first_model.ids) == len(first.row)
    assert set(np.unique(centroid.share_right)) <= {0, 0.5, 1}


def test_confidence_is_a_probability_or_a_margin(made: Made) -> None:
    data = made.data()
    for method in data.methods:
        assert method.confidence is not None
        assert (method.confidence >= 0).all()
        assert method.has_probabilities == (method.result.method == "logistic") or (
            method.result.method == "knn"
        )
        confidences = method.confidence[method.wrong]
        assert (np.diff(confidences) <= 0).all(), "the most confident errors come first"


def test_predictions_without_an_answer_for_every_row_are_damaged(
    made: Made, tmp_path: Path
) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    whole = result.predictions()
    cut = PredictionTable(
        whole.ids, whole.true, whole.row[1:], whole.split[1:], whole.predicted[1:], None
    )
    accuracy = float(cut.correct.mean())
    result.summary["accuracy"] |= {"value": accuracy, "low": accuracy, "high": accuracy}
    save_result(result, tmp_path / "cut.json", cut)
    with pytest.raises(ResultError, match="damaged"):
        made.again(tmp_path / "r", [result])


def test_published_numbers_are_shown_once_for_each_dataset(made: Made) -> None:
    data = made.data(reference=("stl10",))
    assert data.published(data.groups[0])
    assert made.data(published=False).comparison.published == []
