"""Recipes by name, from a checkout and from a wheel, and that all of them can be planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featpipe.errors import RecipeError
from featpipe.pipeline import Plan, built_in, find_recipe
from featpipe.recipe import read_recipe
from featpipe.steps.old import Context
from featpipe.workspace import Workspace

EXPECTED = {
    *("stl10", "tiny_imagenet_losses", "dogs_vs_cats_optimizers", "two_class_resnet34"),
    *("cifar10_resnets", "cifar10_bit", "cifar10_gradcam", "cifar10_resnet9"),
    *("backbones", "demo", "smoke"),
}


def test_every_experiment_has_its_recipe():
    assert set(built_in()) == EXPECTED


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "pipelines/demo.yaml"])
def test_a_recipe_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == built_in()["demo"]


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").touch()
    assert find_recipe("demo.yaml") == Path("demo.yaml")


@pytest.mark.parametrize("name", ["dmeo", "other/demo.yaml", "."])
def test_what_is_no_recipe_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no recipe"):
        find_recipe(name)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_recipe_can_be_planned_and_ends_in_a_report(name, tmp_path):
    plan = Plan.of(read_recipe(built_in()[name]), Context(Workspace(tmp_path)))
    assert plan.tasks[-1].step.kind == "report"
    assert plan.tasks[-1].step.out == tmp_path / "reports" / name


@pytest.mark.parametrize("name", sorted(EXPECTED - {"demo", "smoke"}))
def test_every_head_says_what_it_reproduces_needs_and_costs(name):
    head = re.match(r"(#.*\n)+", built_in()[name].read_text()).group()
    for word in ("Reproduces", "Published", "Needs", "Cost", "two cores", "GPU"):
        assert word in head


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_small_runs_that_heads_name_can_be_planned(name, tmp_path):
    text = built_in()[name].read_text()
    for arguments in re.findall(r"^#   featpipe run \w+ (.+)$", text, re.MULTILINE):
        words = arguments.split()
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        recipe = read_recipe(built_in()[name], overrides)
        assert Plan.of(recipe, Context(Workspace(tmp_path))).tasks
