"""A result is compared with its predictions: whoever forges a digest has not forged the numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from featpipe.errors import ResultError
from featpipe.evaluation.result import ChangedResultError, Result
from featpipe.evaluation.verify import verify_result
from featpipe.probes.nearest_mean import Centroid
from featpipe.workspace import Workspace
from tests.evaluation.methods import context, evaluated, forge, pair


@pytest.mark.parametrize("name", ["centroid", "svm", "knn"])
def test_a_whole_result_is_returned(copy: Workspace, name: str) -> None:
    path = copy.results / f"{name}.json"
    assert verify_result(path, copy.models) == Result.load(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("summary.metrics.macro_f1", 0.99),
        ("summary.metrics.per_class.0.recall", 1.0),
        ("summary.accuracy.low", 0.0),
        ("splits.0.metrics.confusion.1.1", 77),
        ("splits.0.metrics.top_2_accuracy", None),
        ("protocol.n_test", 8000),
        ("splits", []),
        ("splits.0.metrics", "good"),
        ("dataset.classes", [1, 2, 3]),
        ("summary.spread", 5),
    ],
)
def test_every_number_is_computed_again(copy: Workspace, place: str, value: Any) -> None:
    path = copy.results / "svm.json"
    verify_result(path, copy.models)

    def change(content: Any) -> None:
        *way, last = place.split(".")
        for key in way:
            content = content[int(key) if key.isdigit() else key]
        content[int(last) if last.isdigit() else last] = value

    forge(path, change)
    with pytest.raises(ResultError) as caught:
        verify_result(path, copy.models)
    assert caught.value.details["where"] == str(path)


def test_what_is_stated_and_what_the_predictions_give_are_both_named(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    value = Result.load(path).summary["accuracy"]["value"]
    forge(path, lambda content: content["summary"]["accuracy"].update(value=0.42))
    with pytest.raises(ResultError, match="other numbers than its predictions give") as caught:
        verify_result(path, copy.models)
    named = f"summary.accuracy.value: 0.42 stated, {value:g} by the predictions"
    assert caught.value.details["got"] == named


def test_of_many_wrong_numbers_the_first_are_named_and_the_others_counted(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    forge(path, lambda content: content["summary"]["metrics"].update(confusion=[[77] * 3] * 3))
    with pytest.raises(ResultError) as caught:
        verify_result(path, copy.models)
    assert caught.value.details["got"].count("metrics.confusion") == 5
    assert caught.value.details["got"].endswith("; 4 more")


def test_a_result_without_a_predictions_file_is_refused(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    forge(path, lambda content: content["files"].pop("predictions"))
    with pytest.raises(ResultError, match="names no predictions file"):
        verify_result(path, copy.models)


def test_the_rounding_of_another_processor_is_no_forgery(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    value = Result.load(path).summary["accuracy"]["value"]
    forge(path, lambda content: content["summary"]["accuracy"].update(value=value + 1e-13))
    assert verify_result(path, copy.models).summary["accuracy"]["value"] == value + 1e-13


def test_the_curve_of_few_rows_is_computed_again(tmp_path) -> None:
    step = Centroid(train_per_class=(1, 3), repeats=2)
    path = evaluated(step, tmp_path, *pair(tmp_path)).path
    models = context(tmp_path).workspace.models
    verify_result(path, models)
    forge(path, lambda content: content["extra"]["low_shot"][0].update(mean=0.42))
    with pytest.raises(ResultError) as caught:
        verify_result(path, models)
    assert caught.value.details["got"].startswith("extra.low_shot[0].mean: 0.42 stated")
    forge(path, lambda content: content["extra"].pop("low_shot"))
    with pytest.raises(ResultError, match="other numbers") as caught:
        verify_result(path, models)
    assert caught.value.details["got"].startswith("extra.low_shot: None stated")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("leaked", 9),
        ("test_images", 30000),
        ("accuracy", {"value": 0.42}),
        ("accuracy_without", None),
        ("ids", ["nobody"]),
    ],
)
def test_the_accuracy_without_leaked_images_is_computed_again(
    tmp_path, leaky, part: str, value: Any
) -> None:
    path = evaluated(Centroid(), tmp_path, *leaky).path
    models = context(tmp_path).workspace.models
    assert verify_result(path, models).extra["leaks"]["leaked"] == 10
    forge(path, lambda content: content["extra"]["leaks"].update({part: value}))
    with pytest.raises(ResultError, match="other numbers") as caught:
        verify_result(path, models)
    assert "extra.leaks." in caught.value.details["got"]


def test_an_edit_is_detected_by_its_number_or_by_the_digest(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    whole = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**whole, "title": "Mine"}), "utf-8")
    with pytest.raises(ChangedResultError):
        verify_result(path, copy.models)
    whole["summary"]["accuracy"]["value"] = 0.42
    path.write_text(json.dumps(whole), "utf-8")
    with pytest.raises(ResultError, match="other numbers than its predictions give"):
        verify_result(path, copy.models)


def test_the_model_is_compared_with_its_digest(copy: Workspace) -> None:
    model = copy.models / "svm.npz"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ResultError, match=r"model .* was changed") as caught:
        verify_result(copy.results / "svm.json", copy.models)
    assert caught.value.details["where"] == str(model)
