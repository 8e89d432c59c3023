"""Run a plan on a Ray cluster: tasks that need nothing of each other run at once, on any node.

Ray starts a task when those that it needs have ended; their outcomes are its arguments.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featpipe import cluster
from featpipe.cluster import NodeEnvironment, ray
from featpipe.errors import ClusterError, FeatpipeError
from featpipe.progress import SILENT, Event, Progress
from featpipe.steps.base import Context, Outcome
from featpipe.steps.plan import Plan, Task
from featpipe.steps.runner import Listener, execute, not_run, summary


def run_plan_on_cluster(plan: Plan, listeners: Sequence[Listener], address: str) -> Outcome:
    """Run the tasks of a plan on the nodes of a cluster; as :func:`featpipe.steps.runner.run_plan`.

    A task gets all cores of a node, and one of its GPUs if it has any and the step uses one; a step
    that is itself spread over the cluster gets none, as it only waits.
    """
    outcomes: dict[str, Outcome] = {}

    def notify(record: Event | Outcome) -> None:
        for listener in listeners:
            listener(record)

    with cluster.joined(address, plan.context.progress):
        # Tasks that only wait have no cores: they must not fill up the nodes.
        nodes = [node for node in cluster.nodes() if node.get("CPU", 0) >= 1]
        if not nodes:
            raise ClusterError("No node of the cluster has a core.", where=address)
        n_cores = int(min(node["CPU"] for node in nodes))
        with_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
        try:
            with cluster.listening(notify) as inbox:
                running = _start(plan, inbox, n_cores, with_gpu=with_gpu)
                while running:
                    (ended,), _ = ray.wait(list(running), num_returns=1)
                    task = running.pop(ended)
                    outcomes[task.name] = _outcome(ended, task, outcomes)
                    notify(outcomes[task.name])
        except KeyboardInterrupt:
            for task in plan.tasks:
                if task.name not in outcomes:
                    outcomes[task.name] = Outcome("interrupted", "interrupted", task=task.name)
                    notify(outcomes[task.name])
    return summary([outcomes[task.name] for task in plan.tasks], plan.context.command)


def _start(plan: Plan, inbox: Any, n_cores: int, *, with_gpu: bool) -> dict[Any, Task]:
    """Give all tasks to Ray; return each by the reference to its outcome."""
    here, run, n_tasks = NodeEnvironment.current(), ray.remote(_run), len(plan.tasks)
    made: dict[str, Any] = {}
    for number, task in enumerate(plan.tasks, start=1):
        recipe = {"task": task.name, **plan.recipe.resolved}
        context = replace(plan.context, progress=SILENT, jobs=n_cores, recipe=recipe)
        spread = getattr(task.step, "engine", "local") == "ray"
        resources = {"num_cpus": 0 if spread else n_cores}
        if with_gpu and hasattr(task.step, "device") and not spread:
            resources["num_gpus"] = 1
        started = Event("started", task.name, number, n_tasks, {}, task.name)
        before = [made[name] for name in dict.fromkeys((*task.needs, *task.after))]
        run_there = run.options(**resources).remote
        made[task.name] = run_there(task, context, here, inbox, started, *before)
    return {made[task.name]: task for task in plan.tasks}


def _run(
    task: Task,
    context: Context,
    there: NodeEnvironment,
    inbox: Any,
    started: Event,
    *before: Outcome,
) -> Outcome:
    """Run a task on a node as ``there``, where it was given, unless what it needs has failed."""
    ended = {outcome.task: outcome for outcome in before}
    if blocked := not_run(task, ended):
        return blocked
    cluster.report(inbox, started)
    progress = Progress(lambda event: cluster.report(inbox, replace(event, task=task.name)))
    began = time.monotonic()
    try:
        there.enter()
        inputs = [ended[name].paths for name in task.needs]
        outcome = execute(task.step, inputs, replace(context, progress=progress))
    except FeatpipeError as error:
        outcome = Outcome.failure(error)
    return replace(outcome, task=task.name, seconds=time.monotonic() - began)


def _outcome(ended: Any, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Return the outcome of a task, or the failure that the death of its process is."""
    try:
        outcome: Outcome = ray.get(ended)
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0][:300]
        failed = Outcome("failed", f"{type(error).__name__}: {first}", task=task.name)
        outcome = not_run(task, outcomes) or failed
    return outcome
