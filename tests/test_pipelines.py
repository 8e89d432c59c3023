"""The recipes that come with featpipe: each can be planned, and says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featpipe.steps import Context
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import read_recipe
from featpipe.workspace import Workspace

RECIPES = sorted((Path(__file__).resolve().parents[1] / "pipelines").glob("*.yaml"))
EXPERIMENTS = [path for path in RECIPES if path.stem not in ("demo", "smoke")]


def name(path):
    return path.stem


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_can_be_planned_and_ends_in_a_report(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a recipe writes is below the current folder
    plan = Plan.of(read_recipe(path), Context(Workspace(tmp_path)))
    assert plan.tasks[-1].step.name == "report"
    assert plan.tasks[-1].step.out == tmp_path / "reports" / path.stem


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_audits_its_data(path, tmp_path):
    plan = Plan.of(read_recipe(path), Context(Workspace(tmp_path)))
    assert "audit" in {task.step.name for task in plan.tasks}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_every_head_says_what_it_reproduces_needs_and_costs(path):
    head = re.match(r"(#.*\n)+", path.read_text()).group()
    for word in ("Reproduces", "Published", "Needs", "Cost", "two cores", "GPU"):
        assert word in head


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_small_runs_that_heads_name_can_be_planned(path, tmp_path):
    for arguments in re.findall(r"^#   featpipe run \w+ (.+)$", path.read_text(), re.MULTILINE):
        words = arguments.split()
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert Plan.of(read_recipe(path, overrides), Context(Workspace(tmp_path))).tasks
