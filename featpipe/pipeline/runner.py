"""Run tasks: each in the worker process, none whose input failed, with the time that is left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from featpipe.pipeline.process import Event, WorkerProcess
from featpipe.pipeline.records import (
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_RUN,
    Record,
    RunSummary,
)
from featpipe.pipeline.task import Task
from featpipe.pipeline.worker import make_order
from featpipe.recipe import Recipe
from featpipe.steps.old import Context


class Observer(Protocol):
    """Who is told how a run goes on."""

    def started(self, task: Task, number: int, total: int) -> None:
        """Hear that a task begins; ``number`` counts from 1."""

    def event(self, task: Task, event: Event) -> None:
        """Hear of ``progress`` (label, done, total, facts) or a ``note`` (message)."""

    def finished(self, record: Record, seconds_left: float | None) -> None:
        """Hear how a task ended; the time left is ``None`` while nothing is known about it."""


def run_tasks(
    recipe: Recipe,
    tasks: Sequence[Task],
    context: Context,
    observers: Sequence[Observer],
    expected_seconds: Mapping[str, float] | None = None,
) -> RunSummary:
    """Run the tasks of a recipe.

    A task that fails stops only what needs it. Every step skips what it has already done, so the
    same call continues a run that was stopped.

    Parameters
    ----------
    recipe : Recipe
    tasks : sequence of Task
        Ordered, as :func:`featpipe.pipeline.make_tasks` returns them.
    context : Context
    observers : sequence of Observer
    expected_seconds : mapping, optional
        How long each task is likely to take, by its name, where that is known.

    Returns
    -------
    summary : RunSummary
    """
    records: dict[str, Record] = {}
    pace = _Pace(tasks, dict(expected_seconds or {}))
    with WorkerProcess() as worker:
        for number, task in enumerate(tasks, start=1):
            if blocked := [name for name in task.needs if not records[name].succeeded]:
                record = Record(task, NOT_RUN, message=f"it needs {', '.join(blocked)}")
            elif any(record.status == INTERRUPTED for record in records.values()):
                record = Record(task, NOT_RUN, message="the run was interrupted before")
            else:
                _tell(observers, "started", task, number, len(tasks))
                needed = [records[name].paths for name in task.needs]
                record = _run(worker, recipe, task, needed, context, observers)
            records[task.name] = record
            _tell(observers, "finished", record, pace.left(record))
    return RunSummary(tuple(records.values()), context.command)


def _run(
    worker: WorkerProcess,
    recipe: Recipe,
    task: Task,
    needed: Sequence[Sequence[str]],
    context: Context,
    observers: Sequence[Observer],
) -> Record:
    kept = {"task": task.name, **recipe.resolved}
    order = make_order(task.step, needed, dataclasses.replace(context, recipe=kept))
    start = time.monotonic()
    try:
        event = worker.run(order, lambda event: _tell(observers, "event", task, event))
    except KeyboardInterrupt:
        return Record(task, INTERRUPTED, time.monotonic() - start, "interrupted by the user")
    seconds = time.monotonic() - start
    if event["event"] == "failed":
        return Record(task, FAILED, seconds, event["message"], details=event["details"])
    return Record(
        task,
        event["status"],
        seconds,
        event["message"],
        tuple(event["paths"]),
        table=event["table"],
        exit_code=event["exit_code"],
    )


def _tell(observers: Sequence[Observer], what: str, *facts: Any) -> None:
    for observer in observers:
        getattr(observer, what)(*facts)


class _Pace:
    """How long the rest will take: as expected, else as long as tasks of its kind took here."""

    def __init__(self, tasks: Sequence[Task], expected: dict[str, float]) -> None:
        self._waiting = {task.name: task for task in tasks}
        self._expected = expected
        self._taken: dict[str, list[float]] = {}

    def left(self, record: Record) -> float | None:
        del self._waiting[record.task.name]
        if record.status == DONE:
            self._taken.setdefault(record.task.step.kind, []).append(record.seconds)
        return _sum_known(self._seconds, self._waiting.values())

    def _seconds(self, task: Task) -> float | None:
        if task.name in self._expected:
            return self._expected[task.name]
        taken = self._taken.get(task.step.kind)
        return sum(taken) / len(taken) if taken else None


def _sum_known(seconds: Callable[[Task], float | None], tasks: Iterable[Task]) -> float | None:
    values = [seconds(task) for task in tasks]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
