"""The end-to-end test: the recipe `smoke` runs every kind of step once, offline."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from featpipe.steps import STEPS
from featpipe.steps.recipe import find_recipe, read_recipe


def featpipe(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "featpipe", *arguments, "--json"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module")
def first(folder):
    return featpipe("run", "smoke", cwd=folder)


def test_smoke_has_every_kind_of_step():
    kinds = {part.kind.name for part in read_recipe(find_recipe("smoke")).steps}
    assert kinds == set(STEPS.names())


def test_every_task_is_done(first, folder):
    code, events, errors = first
    outcome = events[-1]
    assert code == 0, outcome["message"] + errors
    assert outcome["event"] == "outcome"
    assert {task["status"] for task in outcome["tasks"]} == {"done"}
    assert (folder / "reports" / "smoke.html").stat().st_size > 10_000


def test_the_run_can_be_followed(first):
    _, events, _ = first
    started = [event["task"] for event in events if event["event"] == "started"]
    ended = [event for event in events[:-1] if event["event"] == "outcome"]
    assert started == [event["task"] for event in ended]
    assert len(started) == len(events[-1]["tasks"])
    progress = next(event for event in events if event["event"] == "progress")
    assert {"task", "message", "done", "total"} <= set(progress)


def test_then_the_plan_has_nothing_left_but_to_write(first, folder):
    code, events, _ = featpipe("run", "smoke", "--dry-run", cwd=folder)
    assert code == 0
    plan = {row["task"]: row for row in events[-1]["plan"]}
    to_do = {name for name, row in plan.items() if row["state"] == "to do"}
    assert all(name.startswith(("embed", "explain", "compare", "report")) for name in to_do)
    assert all(row["key"] for name, row in plan.items() if name not in to_do)
