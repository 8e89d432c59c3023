"""Running plans: what a failure, a kill, an interruption and a second run do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from featpipe.progress import Event
from featpipe.steps import Context, Outcome
from featpipe.steps import runner as runner_module
from featpipe.steps.plan import Plan, Task
from featpipe.steps.recipe import Recipe
from featpipe.steps.runner import run_plan
from featpipe.workspace import Workspace
from tests.steps.toys import Broken, Greedy, Join, Killed, Refused, Slow, Work


def plan_of(root: Path, *tasks: Task) -> Plan:
    recipe = Recipe("toys", "toys.yaml", (), {"name": "toys", "steps": []})
    return Plan(recipe, tasks, Context(Workspace(root), jobs=1, command="featpipe run toys"))


def task(step, name: str | None = None, needs: tuple[str, ...] = ()) -> Task:
    return Task(name or step.name, step.name, 1, step, needs)


def statuses(summary: Outcome) -> dict[str, str]:
    return {ended["task"]: ended["status"] for ended in summary.facts["tasks"]}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    heard = []
    plan = plan_of(
        root,
        task(Refused()),
        task(Killed()),
        task(Work(number=1), "one"),
        task(Work(number=2), "two"),
        task(Join(), "join", ("one", "two")),
        task(Join(), "all", ("one", "refused", "killed")),
    )
    return run_plan(plan, [heard.append]), heard, root


def test_a_failure_and_a_kill_stop_only_what_needs_them(first):
    summary, _, _ = first
    assert statuses(summary) == {
        "refused": "failed",
        "killed": "failed",
        "one": "done",
        "two": "done",
        "join": "done",
        "all": "not run",
    }
    assert summary.exit_code == 1


def test_a_task_works_on_the_files_of_those_it_needs(first):
    (join,) = [ended for ended in first[0].facts["tasks"] if ended["task"] == "join"]
    assert join["message"] == "1+2"


def test_the_summary_names_task_reason_and_command(first):
    text = first[0].message
    assert "failed: refused: There is no such feature store." in text
    assert "next: featpipe store list" in text
    assert "failed: killed: the process was killed by SIGKILL" in text
    assert "ran out of memory" in text
    assert "\nnot run: all\n" in text
    assert text.endswith("continue with: featpipe run toys")


def test_listeners_hear_of_every_task_in_order(first):
    _, heard, _ = first
    ended = [record.task for record in heard if isinstance(record, Outcome)]
    assert ended == ["refused", "killed", "one", "two", "join", "all"]
    of_one = [record for record in heard if isinstance(record, Event) and record.task == "one"]
    assert [record.event for record in of_one][:2] == ["started", "progress"]
    assert (of_one[-1].message, of_one[-1].done, of_one[-1].total) == ("counting", 3, 3)
    assert not [r for r in heard if isinstance(r, Event) and r.task == "all"]


def test_one_process_runs_the_tasks_after_the_kill(first):
    facts = {ended["task"]: ended for ended in first[0].facts["tasks"]}
    assert facts["one"]["pid"] == facts["two"]["pid"] != os.getpid()
    assert facts["one"]["jobs"] == 1


def test_the_resolved_recipe_reaches_the_step(first):
    (one,) = [ended for ended in first[0].facts["tasks"] if ended["task"] == "one"]
    assert one["recipe"] == {"task": "one", "name": "toys", "steps": []}


def test_starting_again_continues(first):
    _, _, root = first
    again = run_plan(plan_of(root, task(Work(number=1), "one"), task(Work(number=3), "new")), [])
    assert statuses(again) == {"one": "up to date", "new": "done"}
    assert again.exit_code == 0
    assert "continue" not in again.message


def test_memory_and_defects_are_failures_that_say_what_to_do(tmp_path, capfd):
    summary = run_plan(plan_of(tmp_path, task(Greedy()), task(Broken()), task(Work())), [])
    greedy, broken, work = summary.facts["tasks"]
    assert greedy["message"].startswith("out of memory")
    assert "--limit" in greedy["details"]["next"]
    assert broken["message"].startswith("AttributeError")
    assert "toys.py" in broken["details"]["where"]
    assert work["status"] == "done"
    assert "no_such_thing" in capfd.readouterr().err


def test_what_a_library_prints_is_no_output_of_the_command(tmp_path, capfd):
    run_plan(plan_of(tmp_path, task(Work())), [])
    printed = capfd.readouterr()
    assert "printed by a library" not in printed.out
    assert "printed by a library" in printed.err


def test_the_time_left_follows_from_tasks_alike(tmp_path):
    heard = []
    tasks = [task(Work(number=n), f"work[{n}]") for n in range(3)]
    run_plan(plan_of(tmp_path, *(Task(t.name, "work", 1, t.step) for t in tasks)), [heard.append])
    started = [r for r in heard if isinstance(r, Event) and r.event == "started"]
    assert [(event.done, event.total) for event in started] == [(1, 3), (2, 3), (3, 3)]
    assert "seconds_left" not in started[0].facts
    assert started[1].facts["seconds_left"] >= started[2].facts["seconds_left"] >= 0


@pytest.mark.parametrize("deaf", [False, True])
def test_an_interruption_ends_the_worker_and_the_run(tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(runner_module, "SHUTDOWN_TIMEOUT", 1.0)
    workers = []

    def interrupt(record):
        if isinstance(record, Event) and record.event == "note":
            workers.append(int(record.message))
            raise KeyboardInterrupt

    plan = plan_of(tmp_path, task(Slow(deaf=deaf)), task(Work()))
    summary = run_plan(plan, [interrupt])
    assert statuses(summary) == {"slow": "interrupted", "work": "not run"}
    assert summary.exit_code == 130
    assert not psutil.pid_exists(workers[0])


SCRIPT = """
import signal, sys
from pathlib import Path
from tests.steps.test_runner import plan_of, task
from tests.steps.toys import Slow
from featpipe.steps.runner import run_plan
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(run_plan(plan_of(Path(sys.argv[1]), task(Slow())), [print_event := (
        lambda record: print(getattr(record, "message", ""), flush=True))]).exit_code, flush=True)
"""


@pytest.fixture
def running(tmp_path):
    """Return a process that runs the step Slow, and the id of its worker."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    worker = next(int(line) for line in process.stdout if line.strip().isdecimal())
    yield process, worker
    process.kill()
    process.wait()


def is_gone(pid: int, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_ctrl_c_in_the_terminal_reaches_both_processes_and_leaves_none(running):
    process, worker = running
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "130"
    assert is_gone(worker)


def test_a_worker_does_not_outlive_a_run_that_is_killed(running):
    process, worker = running
    process.kill()
    process.wait()
    assert is_gone(worker)


def test_a_worker_told_to_end_fails_the_task(running):
    process, worker = running
    os.kill(worker, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "the process was killed by SIGTERM" in output
    assert output.splitlines()[-1] == "1"


def test_the_outcome_is_json(first):
    json.dumps(first[0].as_dict())
