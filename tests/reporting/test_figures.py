"""Charts are data: what is drawn are the results' numbers, and what is missing is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featpipe.evaluation.metrics import Predictions
from featpipe.evaluation.result import Result
from featpipe.probes.logistic import Logistic
from featpipe.reporting.data import Group, Method, ReportData
from featpipe.reporting.figures import (
    MAX_CLASS_CURVES,
    accuracy_chart,
    cost_chart,
    difference_chart,
    fold_chart,
    gradient_chart,
    low_shot_chart,
    method_curves,
    search_charts,
    sweep_charts,
    training_charts,
)
from featpipe.reporting.sections import Chart, Missing
from tests.reporting.conftest import Made, Page, Plan, make_world

Trainings = Callable[..., list[Result]]


@pytest.fixture
def trainings(made: Made, tmp_path: Path) -> Trainings:
    """Return a function that makes results as of trainings with some settings."""
    given = {"lr": 0.1, "batch_size": 16, "nesterov": True, "betas": [0.9, 0.99], "seed": 0}
    first = made.results[0]
    assert first.path is not None
    shutil.copy(first.path.with_name(first.files["predictions"]), tmp_path)

    def make(*choices: dict[str, Any]) -> list[Result]:
        results = []
        for number, choice in enumerate(choices):
            settings = given | choice | {"title": f"{number}"}
            results.append(replace(first, method="finetune", settings=settings))
            results[-1].save(tmp_path / f"{number}.json")
        return results

    return make


def sweeps(results: list[Result]) -> dict[str, list[dict[str, Any]]]:
    (group,) = ReportData.load(results).groups
    return {chart.title: chart.spec["series"] for chart in sweep_charts(group)}


def test_three_batch_sizes_are_a_line_with_intervals(trainings: Trainings) -> None:
    results = trainings(*({"batch_size": size} for size in (64, 16, 32)))
    accuracy = results[0].summary["accuracy"]
    (line,) = sweeps(results)["Accuracy by batch size"]
    assert line["x"] == [16, 32, 64]
    assert line["y"] == [accuracy["value"]] * 3
    assert (line["low"], line["high"]) == ([accuracy["low"]] * 3, [accuracy["high"]] * 3)


def test_a_sweep_of_two_numbers_has_a_line_for_each_value_of_the_other(
    trainings: Trainings,
) -> None:
    results = trainings(
        *({"batch_size": size, "lr": lr} for size in (16, 32, 64) for lr in (0.1, 0.01))
    )
    drawn = sweeps(results)
    assert list(drawn) == ["Accuracy by batch size"], "two learning rates are a comparison"
    assert [line["name"] for line in drawn["Accuracy by batch size"]] == [
        "finetune, lr 0.1",
        "finetune, lr 0.01",
    ]


def test_seeds_switches_and_lists_are_no_sweep(trainings: Trainings) -> None:
    results = trainings(
        *({"seed": seed} for seed in range(3)),
        *({"betas": [0.9, last]} for last in (0.9, 0.95, 0.999)),
        {"nesterov": False},
    )
    assert sweeps(results) == {}


@pytest.fixture(scope="module")
def group(made: Made) -> Group:
    return made.data().groups[0]


def by_kind(group: Group, kind: str) -> Method:
    return next(method for method in group.methods if method.result.method == kind)


def test_published_numbers_are_drawn_apart(group: Group) -> None:
    known = {"method": "Theirs", "accuracy": 0.9, "low": None, "high": None, "published": True}
    known["verdict"] = "published, not measured here"
    chart = accuracy_chart(group, [known, {**known, "accuracy": None}])
    entries = chart.spec["entries"]
    assert [entry["label"] for entry in entries if entry["published"]] == ["Theirs"]
    highest = group.methods[0].row["accuracy"]
    tied = [method.title for method in group.methods if method.row["accuracy"] == highest]
    assert [entry["label"] for entry in entries if entry["best"]] == tied


def test_a_cost_that_all_share_is_left_out(group: Group) -> None:
    def drawn(total: list[float]) -> tuple[list[str], str]:
        for method, seconds in zip(group.methods, total, strict=False):
            method.row["total_seconds"] = seconds
        (chart,) = cost_chart(group)
        assert isinstance(chart, Chart)
        return [choice["x"]["label"] for choice in chart.spec["choices"]], chart.caption

    whole = "from images to answers, seconds"
    labels, caption = drawn([20.0 + n for n in range(len(group.methods))])
    assert labels[0] == whole
    assert "extraction, seconds" not in labels
    assert "all methods take" not in caption
    labels, caption = drawn([20.0 + 0.1 * n for n in range(len(group.methods))])
    assert whole not in labels
    assert "From images to answers, all methods take about 2" in caption
    free: Any = [SimpleNamespace(row={})] * 2
    missing = Missing("Accuracy against cost", "no result records what it cost")
    assert cost_chart(Group("toy", free, [])) == [missing]
    assert cost_chart(Group("toy", free[:1], [])) == [], "a single point compares nothing"


def test_every_fold_is_a_dot(group: Group) -> None:
    (chart,) = fold_chart(group)
    (entry,) = chart.spec["entries"]
    splits = by_kind(group, "centroid").result.splits
    assert entry["dots"] == [split["metrics"]["accuracy"] for split in splits]
    assert entry["value"] == pytest.approx(np.mean(entry["dots"]))


def test_a_low_shot_curve_has_a_band_within_0_and_1(group: Group) -> None:
    (chart,) = low_shot_chart(group)
    (line,) = chart.spec["series"]
    assert line["x"] == [1, 2, 5, 10]
    assert (np.array(line["low"]) <= line["y"]).all()
    assert (np.array(line["high"]) >= line["y"]).all()
    assert min(line["low"]) >= 0
    assert max(line["high"]) <= 1
    assert "up to 3 models" in chart.caption


def test_curves_need_scores_and_reliability_probabilities(group: Group) -> None:
    titles = [type(part) for part in method_curves(by_kind(group, "svm"))]
    assert titles == [Chart, Chart, Missing]
    assert [type(part) for part in method_curves(by_kind(group, "logistic"))] == [Chart] * 3
    svm = by_kind(group, "svm")
    bare = Method(svm.result, replace(svm.table, scores=None), svm.row, "a", "SVM")
    assert {part.reason for part in method_curves(bare)} == {  # type: ignore[union-attr]
        "this method gives neither scores nor probabilities"
    }


def test_reliability_is_that_of_all_models(group: Group) -> None:
    one = by_kind(group, "logistic")
    arrays = {name: getattr(one.table, name) for name in ("row", "predicted", "scores")}
    twice = {name: np.concatenate([array, array]) for name, array in arrays.items()}
    table = replace(one.table, split=np.repeat([0, 1], len(one.table.row)), **twice)
    two = Method(replace(one.result, splits=one.result.splits * 2), table, one.row, "a", "Two")
    roc, _, chart = method_curves(two)
    assert isinstance(chart, Chart)
    assert isinstance(roc, Chart)
    assert sum(chart.spec["series"][0]["size"]) == 2 * len(table.ids)
    assert "of all models" in chart.caption
    assert "Drawn for the first model" in roc.caption


def test_of_many_classes_the_worst_curves_are_drawn(group: Group) -> None:
    rng, k = np.random.default_rng(0), 30
    true = np.arange(300) % k
    scores = rng.normal(size=(300, k)) + 2 * (np.arange(k) == true[:, None])
    classes = tuple(f"c{i}" for i in range(k))
    made = Predictions(true.astype(str), true, scores.argmax(axis=1), classes, scores)
    method: Any = SimpleNamespace(predictions=lambda **_: made, first_model_name=None)
    roc = method_curves(method)[0]
    assert isinstance(roc, Chart)
    assert len(roc.spec["series"]) == MAX_CLASS_CURVES + 2, "and two averages"
    assert f"Of {k} classes" in roc.caption


def test_training_is_drawn_over_its_epochs(group: Group) -> None:
    charts = {part.title: part for part in training_charts(by_kind(group, "finetune"))}
    assert list(charts) == ["Loss", "Accuracy by epoch", "Learning rate", "Gradient flow"]
    loss = charts["Loss"]
    assert isinstance(loss, Chart)
    assert [line["name"] for line in loss.spec["series"]] == ["training", "validation"]
    assert loss.caption == "8 epochs, 12.0 s, 812 images per second on average."
    assert training_charts(by_kind(group, "svm")) == []


def search_of(made: Made, **changes: Any) -> Chart:
    """Return the chart of the SVM's search, its result changed."""
    result = next(result for result in made.results if result.method == "svm")
    (chart,) = search_charts(made.data([replace(result, **changes)]).methods[0])
    return chart


def test_the_values_of_a_search_are_drawn_and_the_choice_marked(made: Made) -> None:
    chart = search_of(made)
    assert chart.title == "Validation accuracy by C", "as the option says the literature writes it"
    (line,) = chart.spec["series"]
    assert sum(line["marked"]) == 1
    assert line["x"] == sorted(line["x"])
    assert chart.spec["x"]["log"]


def test_values_that_are_no_numbers_are_drawn_side_by_side(made: Made) -> None:
    search = [{"kernel": name, "accuracy": 0.5, "converged": True} for name in ("rbf", "linear")]
    split = made.results[0].splits[0] | {"search": search, "chosen": {"kernel": "linear"}}
    chart = search_of(made, method="of another package", settings={}, splits=[split])
    assert chart.title == "Validation accuracy by kernel"
    assert chart.spec["x"]["names"] == ["rbf", "linear"]
    (line,) = chart.spec["series"]
    assert (line["x"], line["marked"]) == ([1, 2], [False, True])


def test_gradients_of_many_layers_are_drawn_over_the_layers() -> None:
    layers = [f"layer{i}" for i in range(9)]
    flow = [[{"layer": layer, "mean": 0.1} for layer in layers] for _ in range(20)]
    spec = gradient_chart(range(1, 21), flow).spec
    assert spec["x"]["names"] == layers
    assert [line["name"] for line in spec["series"]][0::5] == ["epoch 1", "epoch 20"]


def test_differences_are_those_of_the_paired_tests(made: Made) -> None:
    (group,) = made.data().groups
    (chart,) = difference_chart(group, 1.0)
    assert [entry["label"] for entry in chart.spec["entries"]] == [
        method.title for method in group.methods[1:]
    ]
    for method, entry in zip(group.methods[1:], chart.spec["entries"], strict=True):
        gap = method.row["accuracy"] - group.methods[0].row["accuracy"]
        assert entry["value"] == pytest.approx(gap, abs=1e-9)
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["open"] == (entry["high"] >= 0), "hollow unless demonstrably worse"
    assert chart.spec["margin"] == 0.01
    assert difference_chart(made.data(made.results[:1]).groups[0], 1.0) == []


def test_two_classes_have_one_roc_curve(tmp_path: Path) -> None:
    world = make_world(tmp_path, Plan(classes=("cat", "dog"), n_train=40, n_test=60))
    page = Page(world.report([world.evaluate(Logistic(), "logistic")], tmp_path / "r"))
    roc, pr = (
        next(c for c in page.charts if c.get("x", {}).get("label") == label)
        for label in ("false positive rate", "recall")
    )
    assert [one["name"] for one in roc["series"]] == ["dog"]
    assert [one["name"] for one in pr["series"]] == ["cat", "dog"]
    assert "dog against the other class: AUC" in page.text
