"""Results that differ in one number are drawn over it; all others are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featpipe.report.material import gather
from featpipe.report.sweeps import sweep_charts
from featpipe.evaluation.result import Result
from tests.report.conftest import Made

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


def charts(results: list[Result]) -> dict[str, list[dict[str, Any]]]:
    (group,) = gather(results).groups
    return {chart.title: chart.spec["series"] for chart in sweep_charts(group)}


def test_three_batch_sizes_are_a_line_with_intervals(
    trainings: Trainings,
) -> None:
    results = trainings(*({"batch_size": size} for size in (64, 16, 32)))
    accuracy = results[0].summary["accuracy"]
    (line,) = charts(results)["Accuracy by batch size"]
    assert line["x"] == [16, 32, 64]
    assert line["y"] == [accuracy["value"]] * 3
    assert (line["low"], line["high"]) == ([accuracy["low"]] * 3, [accuracy["high"]] * 3)


def test_a_sweep_of_two_numbers_has_a_line_for_each_value_of_the_other(
    trainings: Trainings,
) -> None:
    results = trainings(
        *({"batch_size": size, "lr": lr} for size in (16, 32, 64) for lr in (0.1, 0.01))
    )
    drawn = charts(results)
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
    assert charts(results) == {}
