"""The process that runs the tasks of a recipe, one after another.

It is a process of its own because a task that is killed, by the system when memory runs out for
example, must not take the summary with it. One process runs all tasks (torch takes seconds to
import) and is replaced only when it has died. Orders come as JSON lines on standard input; events
go as JSON lines to what was standard output, while anything printed goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from featpipe.errors import FeatpipeError
from featpipe.pipeline.process import TERMINATED
from featpipe.steps.old import (
    STEPS,
    CompareStep,
    Context,
    EvaluationStep,
    ExplainStep,
    Outcome,
    ReportStep,
    Step,
)
from featpipe.workspace import Workspace

_EVENT_SECONDS = 0.2


def bind(step: Step, needed: Sequence[Sequence[str]]) -> Step:
    """Fill in what the tasks before have made.

    Parameters
    ----------
    step : Step
    needed : sequence of sequence of str
        Files of each task that the step needs.
    """
    if not needed:
        return step
    if isinstance(step, EvaluationStep):
        from featpipe.evaluation.protocol import train_and_test  # noqa: PLC0415 - brings h5py
        from featpipe.store import FeatureStore  # noqa: PLC0415

        stores = [FeatureStore(path) for path in needed[0]]
        labelled = [s for s in stores if s.manifest["dataset"]["split"] != "unlabeled"]
        train, test = train_and_test(labelled)
        return dataclasses.replace(step, train=train.path, test=test.path if test else None)
    if isinstance(step, ExplainStep):
        return dataclasses.replace(step, result=needed[0][0])
    if isinstance(step, CompareStep | ReportStep):
        made = tuple(paths[0] for paths in needed)
        return dataclasses.replace(step, results=(*(step.results or ()), *made))
    return step


def make_order(step: Step, needed: Sequence[Sequence[str]], context: Context) -> dict[str, Any]:
    """Return what the worker has to know of a task, JSON-like."""
    return {
        "kind": step.kind,
        "settings": step.settings(),
        "needed": [list(paths) for paths in needed],
        "workspace": str(context.workspace.root),
        "jobs": context.jobs,
        "command": context.command,
        "recipe": context.recipe,
    }


def carry_out(order: Mapping[str, Any], reporting: Reporting) -> dict[str, Any]:
    """Run the task of an order and return its last event."""
    try:
        step = STEPS[order["kind"]].from_mapping(order["settings"])
        context = Context(
            Workspace(Path(order["workspace"])),
            reporting,
            order["jobs"],
            order["command"],
            order["recipe"],
        )
        return _finished(bind(step, order["needed"]).run(context))
    except FeatpipeError as error:
        return _failed(error.what, error.details)
    except Exception as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
            advice = "--limit N, --jobs 1, or a smaller batch_size"
            return _failed(f"out of memory: {error}", {"next": advice})
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        return _failed(
            f"{type(error).__name__}: {error}",
            {
                "where": f"{last.filename}, line {last.lineno}",
                "next": "this is a defect of featpipe: please report it with the traceback above",
            },
        )


def _finished(outcome: Outcome) -> dict[str, Any]:
    return {
        "event": "finished",
        "status": outcome.status,
        "message": outcome.message,
        "paths": [str(path) for path in outcome.paths],
        "facts": dict(outcome.facts),
        "table": outcome.table,
        "exit_code": outcome.exit_code,
    }


def _failed(what: str, details: Mapping[str, str]) -> dict[str, Any]:
    return {"event": "failed", "message": what, "details": dict(details)}


class Reporting:
    """A :class:`featpipe.progress.Progress` that sends events."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[_Reported]:
        """Send progress events, at most five a second, and one at the end."""
        reported = _Reported(self, {"label": label, "total": total, "done": done, "facts": {}})
        reported.emit()
        yield reported
        reported.emit()

    def note(self, message: str) -> None:
        """Send a line that matters."""
        self.send({"event": "note", "message": message})

    def send(self, event: Mapping[str, Any]) -> None:
        """Write one line; where nobody listens any more, stop."""
        try:
            self._channel.write(json.dumps(event, default=str) + "\n")
            self._channel.flush()
        except BrokenPipeError:
            os._exit(1)


class _Reported:
    def __init__(self, reporting: Reporting, state: dict[str, Any]) -> None:
        self._reporting = reporting
        self._state = state
        self._emitted = 0.0

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self._state["done"] += steps
        self._state["facts"] = facts
        if time.monotonic() - self._emitted > _EVENT_SECONDS:
            self.emit()

    def emit(self) -> None:
        self._reporting.send({"event": "progress", **self._state})
        self._emitted = time.monotonic()


def main() -> None:
    """Carry out orders until standard input ends."""
    # Ctrl-C reaches the whole group of processes; the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reporting = Reporting(channel)
    for line in sys.stdin:
        reporting.send(carry_out(json.loads(line), reporting))


if __name__ == "__main__":
    main()
