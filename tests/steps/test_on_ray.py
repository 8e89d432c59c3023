"""A recipe's tasks on a real cluster: in the order of their needs, whatever happens to some."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra featpipe[ray]")

from featpipe.progress import Event
from featpipe.steps import Context, Outcome
from featpipe.steps.on_ray import run_plan_on_cluster
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import find_recipe, read_recipe
from featpipe.steps.runner import run_plan
from featpipe.workspace import Workspace
from tests.cluster.nodes import REPOSITORY, Cluster, cluster
from tests.steps.test_runner import plan_of, statuses, task
from tests.steps.toys import Broken, Join, Refused, Work

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without cores, and two nodes with one each, which can import these tests."""
    with cluster(2, PYTHONPATH=str(REPOSITORY)) as made:
        yield made


def test_a_failure_stops_only_what_needs_it(nodes: Cluster, tmp_path: Path) -> None:
    heard: list[Event | Outcome] = []
    plan = plan_of(
        tmp_path,
        task(Refused()),
        task(Broken()),
        task(Work(number=1), "one"),
        task(Work(number=2), "two"),
        task(Join(), "join", ("one", "two")),
        task(Join(), "all", ("one", "refused", "broken")),
        task(Join(), "last", ("all",)),
    )
    summary = run_plan_on_cluster(plan, [heard.append], nodes.address)
    assert statuses(summary) == {
        "refused": "failed",
        "broken": "failed",
        "one": "done",
        "two": "done",
        "join": "done",
        "all": "not run",
        "last": "not run",
    }
    assert summary.exit_code == 1
    started = {event.task for event in heard if isinstance(event, Event)}
    assert started <= {"refused", "broken", "one", "two", "join", ""}
    assert "featpipe run toys" in summary.message
    again = run_plan_on_cluster(plan, [], nodes.address)
    assert statuses(again)["one"] == "up to date"


def test_a_recipe_gives_what_one_machine_gives(nodes: Cluster, tmp_path: Path) -> None:
    summaries = {}
    for where in ("here", "there"):
        context = Context(Workspace(tmp_path / where))
        plan = Plan.of(read_recipe(find_recipe("demo")), context, ["svm", "logistic", "compare"])
        if where == "here":
            summaries[where] = run_plan(plan, [])
        else:
            summaries[where] = run_plan_on_cluster(plan, [], nodes.address)
    assert summaries["there"].exit_code == 0, summaries["there"].message
    accuracies = {
        where: {
            ended["task"]: ended["accuracy"]
            for ended in summary.facts["tasks"]
            if "accuracy" in ended
        }
        for where, summary in summaries.items()
    }
    assert accuracies["here"] == accuracies["there"]


def test_a_node_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    tasks = [task(Work(number=n), f"work {n}") for n in range(6)]
    with cluster(2, PYTHONPATH=str(REPOSITORY)) as nodes:
        once = threading.Lock()

        def kill(record: Event | Outcome) -> None:
            if isinstance(record, Outcome) and once.acquire(blocking=False):
                nodes.kill(2)

        summary = run_plan_on_cluster(plan_of(tmp_path, *tasks), [kill], nodes.address)
    assert set(statuses(summary).values()) <= {"done", "up to date"}
    assert sorted(path.name for path in tmp_path.glob("work-*.txt")) == [
        f"work-{n}.txt" for n in range(6)
    ]
