"""The end of the page says how to get the same again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from featpipe.report.page import build_report, identity, recipes_of, step
from featpipe.steps import Context
from tests.report.conftest import Made, Page

RECIPE = {"name": "mine", "steps": [{"step": "svm"}, {"step": "centroid"}]}


def test_a_recipe_is_there_once_whatever_its_tasks(made: Made) -> None:
    results = [
        replace(result, extra={**result.extra, "recipe": {"task": result.method, **RECIPE}})
        for result in made.results[:2]
    ]
    assert recipes_of(made.data(results)) == [RECIPE]
    assert recipes_of(made.data()) == []


def test_the_page_names_the_recipes_of_its_results_and_its_own(made: Made, tmp_path: Path) -> None:
    results = [
        replace(result, extra={**result.extra, "recipe": {**RECIPE, "name": name}})
        for result, name in zip(made.results, ("first", "<second>"), strict=False)
    ]
    context = Context(made.world.workspace, recipe={"task": "report", "name": "third"})
    page = Page(build_report(results, tmp_path / "r", context=context))
    assert "Recipes that made these results:" in page.text
    assert {"first", "<second>"} == set(
        page.text.partition("made these results: ")[2].partition(".")[0].split(", ")
    )
    assert "Recipe that made this page: third." in page.text
    metas = {a["name"]: a["content"] for tag, a in page.elements if tag == "meta" and "name" in a}
    assert metas["recipe"] == "third"
    assert "Recipe that made" not in Page(made.page).text


def test_commands_are_listed_once_stores_first(made: Made) -> None:
    text = Page(made.page).text
    first = text.index("featpipe extract --model toynet")
    assert first < text.index("featpipe svm")
    bare = [replace(r, command="", stores=[]) for r in made.results[:1]]
    assert (
        "not recorded (made from Python)" in dict(identity(made.data(bare).methods[0]))["Command"]
    )


def test_a_step_can_be_pasted_into_a_recipe(made: Made) -> None:
    method = made.data().methods[0]
    settings = {k: v for k, v in method.result.settings.items() if v is not None}
    assert yaml.safe_load(step(method)) == {method.result.method: settings}


def test_everything_that_identifies_a_result_is_named(made: Made) -> None:
    result = replace(
        made.results[0],
        extra={
            "network": {"model": "resnet18", "weights": {"name": "v1", "url": None}},
            "label_map": {"name": "narrow", "fingerprint": "f" * 64},
        },
    )
    known = dict(identity(made.data([result]).methods[0]))
    assert known["Run on"] == "2024-05-02T09:30:00+00:00"
    assert result.key[:16] in known["Result"]
    assert known["Network"] == "resnet18, weights name v1"
    assert known["Label map"] == f"narrow, {'f' * 16}"
    assert "toynet avgpool" in known["Features of test"]
    assert "fingerprint" in known["Images of train"]
    assert known["Weights (train)"].startswith("name none, sha256 000")
    assert "Python" in known["Versions"]
    assert known["Hardware"]
