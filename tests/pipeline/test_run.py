"""Running recipes: what a failure, a kill, an interruption and a second run do."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from featpipe.errors import RecipeError
from featpipe.pipeline import Plan
from featpipe.pipeline.ownership import claim
from featpipe.pipeline.process import WorkerProcess
from featpipe.pipeline.records import DONE, FAILED, NOT_RUN, UP_TO_DATE
from featpipe.pipeline.worker import Reporting, carry_out, make_order
from featpipe.recipe import parse_recipe, read_recipe
from featpipe.evaluation.result import Result
from featpipe.steps.old import STEPS, Context, Step
from featpipe.workspace import Workspace
from tests.making import content, sealed

RECIPE = """\
steps:
  - {step: knn, name: nowhere, train: none.h5}
  - {step: knn, name: killed, train: a.h5, k: [1]}
  - {step: centroid, train: a.h5, test: b.h5}
  - {step: compare, name: other, from: [centroid]}
  - {step: compare, name: all}
"""


def the_worker():
    """Return the process that carries out tasks; other tests may have left children too."""
    module = "featpipe.pipeline.worker"
    (worker,) = [child for child in psutil.Process().children() if module in child.cmdline()]
    return worker


def ends(process, seconds=30):
    """Wait until a process is gone, or dead and only not yet collected by the system."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


class Killer:
    """Sends SIGKILL to the process that works on a task as soon as the task begins."""

    def __init__(self, victim):
        self.victim = victim
        self.events = []

    def started(self, task, number, total):
        self.events.append(("started", task.name))
        if task.name == self.victim:
            os.kill(the_worker().pid, signal.SIGKILL)

    def event(self, task, event):
        self.events.append((event["event"], task.name))

    def finished(self, record, seconds_left):
        self.events.append(("finished", record.task.name))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    sealed(root / "a.h5")
    sealed(root / "b.h5", content(30, split="test"), seed=1)
    return Workspace(root)


def plan_in(workspace, text=RECIPE, *only, name="my"):
    text = text.replace("train: ", f"train: {workspace.root}/")
    text = text.replace("test: ", f"test: {workspace.root}/")
    path = workspace.root / f"{name}.yaml"
    path.write_text(text)
    return Plan.of(read_recipe(path), Context(workspace, jobs=1, command="featpipe run my"), only)


@pytest.fixture(scope="module")
def first(workspace):
    killer = Killer("killed")
    return plan_in(workspace).run([killer]), killer


def statuses(summary):
    return {record.task.name: record.status for record in summary.records}


def test_a_failure_and_a_kill_stop_only_what_needs_them(first):
    summary, _ = first
    assert statuses(summary) == {
        "nowhere": FAILED,
        "killed": FAILED,
        "centroid": DONE,
        "other": DONE,
        "all": NOT_RUN,
    }
    assert summary.exit_code == 1


def test_the_summary_names_task_reason_and_command(first):
    text = first[0].message()
    assert "failed: nowhere: There is no such feature store." in text
    assert "next: featpipe store list" in text
    assert "failed: killed: the process was killed by SIGKILL" in text
    assert "ran out of memory" in text
    assert "not run: all: it needs nowhere, killed" in text
    assert text.endswith("continue with: featpipe run my")


def test_observers_hear_of_every_task_in_order(first):
    _, killer = first
    ends = [name for event, name in killer.events if event == "finished"]
    assert ends == ["nowhere", "killed", "centroid", "other", "all"]
    assert ("progress", "centroid") in killer.events
    assert ("started", "all") not in killer.events


def test_the_resolved_recipe_is_kept_with_the_result(first):
    (record,) = [r for r in first[0].records if r.task.name == "centroid"]
    kept = Result.load(record.paths[0]).extra["recipe"]
    assert kept["task"] == "centroid"
    assert kept["name"] == "my"
    again = parse_recipe(json.dumps({key: kept[key] for key in ("name", "steps")}))
    assert [part.name for part in again.steps] == ["nowhere", "killed", "centroid", "other", "all"]


def test_starting_again_continues(first, workspace):
    plan = plan_in(workspace, RECIPE.replace("none.h5", "a.h5, seed: 5"))
    forecasts = {forecast.task.name: forecast for forecast in plan.forecast()}
    assert forecasts["centroid"].done
    assert not forecasts["killed"].done
    again = plan.run()
    assert statuses(again) == {
        "nowhere": DONE,
        "killed": DONE,
        "centroid": UP_TO_DATE,
        "other": DONE,
        "all": DONE,
    }
    assert again.exit_code == 0
    assert "continue" not in again.message()


def test_a_forecast_says_what_is_there_and_what_a_method_took_before(first, workspace):
    centroid, again = plan_in(
        workspace,
        "steps:\n  - {step: centroid, train: a.h5, test: b.h5}\n"
        "  - {step: centroid, name: again, train: a.h5, seed: 3}",
    ).forecast()
    assert (centroid.done, centroid.why) == (True, "result is there")
    assert centroid.key in centroid.paths[0]
    assert (again.done, again.why) == (False, "no such result yet")
    assert again.seconds is not None
    assert again.seconds >= 0
    assert "as the last one on toy" in again.row()["time"]
    assert centroid.row()["state"] == "done"


def test_what_was_never_run_is_unknown(workspace, tmp_path):
    plan = plan_in(workspace, "steps:\n  - {step: logistic, train: a.h5}")
    (forecast,) = plan.forecast()
    assert forecast.row()["time"] == "unknown"
    assert forecast.row()["disk"] == "unknown"


def test_ctrl_c_ends_with_130_a_summary_and_no_orphan(workspace):
    plan_in(workspace, "steps:\n  - {step: svm, train: a.h5, seed: [7, 8]}", name="slow")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "featpipe", "run", str(workspace.root / "slow.yaml")),
            *("--json", "--workspace", str(workspace.root)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if json.loads(line)["event"] == "task_started":
            break
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    outcome = json.loads(rest.splitlines()[-1])
    assert process.returncode == 130
    assert [task["status"] for task in outcome["tasks"]] == ["interrupted", "not run"]
    assert "continue with: featpipe run" in outcome["message"]
    assert ends(children[0]), "the worker outlives the run"


def test_a_worker_that_died_between_two_tasks_fails_only_the_next(workspace):
    order = make_order(STEPS["centroid"](train=workspace.root / "a.h5"), [], Context(workspace))
    with WorkerProcess() as worker:
        assert worker.run(order, lambda _: None)["event"] == "finished"
        process = the_worker()
        process.kill()
        assert ends(process)
        failed = worker.run(order, lambda _: None)
        assert "SIGKILL" in failed["message"]
        assert worker.run(order, lambda _: None)["event"] == "finished"


class Greedy(Step):
    """A step that asks for more memory than there is."""

    kind = "greedy"
    runner = f"{__name__}:ask_for_memory"


def ask_for_memory(step, context):
    np.empty(1 << 58)


class Broken(Greedy):
    """A step with a defect."""

    kind = "broken"
    runner = "math:no_such_function"


def test_memory_and_defects_are_reported_not_raised(monkeypatch, capsys):
    for step, what in ((Greedy, "out of memory"), (Broken, "AttributeError")):
        monkeypatch.setitem(STEPS, step.kind, step)
        order = make_order(step(), [], Context())
        event = carry_out(json.loads(json.dumps(order)), Reporting(io.StringIO()))
        assert event["event"] == "failed"
        assert event["message"].startswith(what)
        assert event["details"]["next"]
    assert "no_such_function" in capsys.readouterr().err


def test_no_recipe_overwrites_the_report_of_another(workspace):
    table = workspace.root / "reports" / "table.md"
    text = f"steps:\n  - {{step: centroid, train: a.h5}}\n  - {{step: compare, out: {table}}}"
    mine = plan_in(workspace, text, name="mine")
    claim(mine.recipe, mine.tasks[-1], workspace)
    table.parent.mkdir(exist_ok=True)
    table.touch()
    plan_in(workspace, text, name="mine")  # its own report it may write anew
    with pytest.raises(RecipeError, match="would overwrite what the recipe 'mine' made") as caught:
        plan_in(workspace, text, name="yours")
    assert "yours.yaml, line 3" in caught.value.details["where"]
    table.unlink()
    plan_in(workspace, text, name="yours")


def test_a_run_remembers_which_reports_it_made(first, workspace):
    text = "steps:\n  - {step: centroid, train: a.h5, test: b.h5}\n  - {step: compare, out: OUT}"
    text = text.replace("OUT", str(workspace.root / "made.csv"))
    assert plan_in(workspace, text, name="maker").run().exit_code == 0
    with pytest.raises(RecipeError, match="'maker'"):
        plan_in(workspace, text, name="other")
