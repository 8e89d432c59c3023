"""Run a plan: each task in a worker process, none whose input failed, with the time that is left.

Tasks run in a separate process because a task that is killed, by the system when memory runs out
for example, must not take the summary with it. One process runs all tasks (torch takes seconds
to import) and is replaced only when it has died.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from featpipe.errors import FeatpipeError
from featpipe.lazy import Lazy
from featpipe.progress import SILENT, Event, Progress
from featpipe.steps.base import Context, Outcome, Step
from featpipe.steps.plan import Plan, Task

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

multiprocessing = Lazy("multiprocessing")  # a tenth of the time of `--help`

SHUTDOWN_TIMEOUT = 10.0  # seconds that a worker has to exit
_SHORT_OF_MEMORY = "if memory is short: --limit N, --jobs 1, or a smaller batch_size"

Listener = Callable[[Event | Outcome], None]


def run_plan(plan: Plan, listeners: Sequence[Listener]) -> Outcome:
    """Run the tasks of a plan.

    A task that fails stops only what needs it. Every step skips what it has already done, so the
    same call continues a run that was stopped.

    Listeners get an event when a task starts and while it works, and its outcome when it has
    ended. The summary's ``exit_code`` is 1 if a task failed or broke something, 3 if strict ones
    left images out, 130 after Ctrl-C.
    """
    outcomes: dict[str, Outcome] = {}
    costs = ((task.name, task.step.estimate(plan.context)) for task in plan.tasks)
    expected = {name: cost[0] for name, cost in costs if cost is not None}
    took: dict[str, list[float]] = defaultdict(list)  # by part of the recipe

    def notify(record: Event | Outcome) -> None:
        for listener in listeners:
            listener(record)

    with closing(_Worker()) as worker:
        for number, task in enumerate(plan.tasks, start=1):
            if blocked := not_run(task, outcomes):
                outcome = blocked
            elif any(ended.status == "interrupted" for ended in outcomes.values()):
                outcome = Outcome("not run", "the run was interrupted before")
            else:
                rest = plan.tasks[number - 1 :]  # each as expected, else as tasks of its part took
                mean = {part: sum(seconds) / len(seconds) for part, seconds in took.items()}
                left = [expected.get(other.name, mean.get(other.part)) for other in rest]
                known = [seconds for seconds in left if seconds is not None]
                facts = {"seconds_left": round(sum(known), 1)} if len(known) == len(rest) else {}
                notify(Event("started", task.name, number, len(plan.tasks), facts, task.name))
                inputs = [outcomes[name].paths for name in task.needs]
                context = replace(plan.context, recipe={"task": task.name, **plan.recipe.resolved})
                started = time.monotonic()
                outcome = worker.run(task, inputs, context, notify)
                outcome = replace(outcome, seconds=time.monotonic() - started)
                if outcome.status == "done":
                    took[task.part].append(outcome.seconds)
            outcomes[task.name] = replace(outcome, task=task.name)
            notify(outcomes[task.name])
    return summary(list(outcomes.values()), plan.context.command)


def not_run(task: Task, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Return the outcome of a task that needs one that has not succeeded, else ``None``."""
    lost = [name for name in task.needs if name in outcomes and not outcomes[name].succeeded]
    return Outcome("not run", f"it needs {', '.join(lost)}", task=task.name) if lost else None


def summary(outcomes: list[Outcome], command: str) -> Outcome:
    """Return the end of a run: what failed, why, and the command to continue."""
    lines = []
    for ended in outcomes:
        if not ended.succeeded and ended.status != "not run":  # those are said below, all at once
            lines.append(f"{ended.status}: {ended.task}: {ended.message}")
            lines += [f"    {label}: {text}" for label, text in ended.details.items()]
        elif ended.exit_code:
            lines.append(f"incomplete: {ended.task}: something was left out, see above")
    statuses = [ended.status for ended in outcomes]
    if idle := [ended.task for ended in outcomes if ended.status == "not run"]:
        lines.append(f"not run: {', '.join(idle)}")
    order = ("done", "up to date", "failed", "interrupted", "not run")
    counts = [f"{statuses.count(status)} {status}" for status in order if status in statuses]
    lines.append(f"{len(outcomes)} tasks: {', '.join(counts)}")
    if not all(ended.succeeded for ended in outcomes):
        lines.append(f"continue with: {command}")
    codes = [ended.exit_code if ended.succeeded else 1 for ended in outcomes]
    code = 1 if 1 in codes else max(codes, default=0)
    rows = [
        {"task": ended.task, "status": ended.status, "seconds": round(ended.seconds, 1)}
        | {"file": str(ended.paths[0]) if ended.paths else None}
        for ended in outcomes
    ]
    status, code = "failed" if code == 1 else "done", 130 if "interrupted" in statuses else code
    paths = tuple(path for ended in outcomes for path in ended.paths)
    facts = {"tasks": [ended.as_dict() for ended in outcomes]}
    return Outcome(status, "\n".join(lines), paths, facts, code, rows)


class _Worker:
    """A process that runs steps, started when it is needed and again after it has died.

    Not a pool of ``concurrent.futures``: a pool of one does not say how its process died, and its
    results come by another way than events.
    """

    _process: Any = None
    _pipe: Connection  # where there is a process

    def run(
        self, task: Task, inputs: Sequence[Sequence[Path]], context: Context, notify: Listener
    ) -> Outcome:
        """Let the worker run a task; return its outcome, or the failure that its death is."""
        try:
            if self._process is not None and not self._process.is_alive():
                self.close()
            if self._process is None:
                spawn = multiprocessing.get_context("spawn")
                self._pipe, theirs = spawn.Pipe()
                self._process = spawn.Process(target=_work, args=(theirs,))
                self._process.start()
                theirs.close()  # so that the pipe ends when the worker does
            with suppress(OSError):
                self._pipe.send((task.step, inputs, replace(context, progress=SILENT)))
            while True:
                try:
                    record = self._pipe.recv()
                except (EOFError, OSError):  # the worker has died
                    break
                if isinstance(record, Outcome):
                    return record
                notify(replace(record, task=task.name))
        except KeyboardInterrupt:
            self.close(busy=True)
            return Outcome("interrupted", "interrupted by the user")
        self._process.join(SHUTDOWN_TIMEOUT)
        code = self._process.exitcode
        self.close()
        return describe_death(code)

    def close(self, *, busy: bool = False) -> None:
        """End the process, gently where it listens."""
        process, self._process = self._process, None
        if process is None:
            return
        # Without orders the worker exits and cleans up its own workers; one that is still
        # at a task, because the user interrupted the run, has to be terminated.
        if busy:
            process.terminate()
        self._pipe.close()
        process.join(SHUTDOWN_TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()


def describe_death(code: int | None) -> Outcome:
    """Return the failure of a task whose process ended with a code; minus a signal's if killed."""
    if code is None or code >= 0:
        return Outcome("failed", f"the process ended itself with exit code {code}")
    name = signal.Signals(-code).name
    if name != "SIGKILL":
        return Outcome("failed", f"the process was killed by {name}")
    text = "the process was killed by SIGKILL; most often the system ran out of memory"
    return Outcome("failed", text, details={"next": _SHORT_OF_MEMORY})


# -- the worker's side ---------------------------------------------------------------------------


class _Terminated(BaseException):
    """SIGTERM came while a task ran."""


def _work(channel: Connection) -> None:
    """Run what is ordered until there are no more orders."""

    def terminate(_: int, __: FrameType | None) -> None:
        raise _Terminated

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    # Ctrl-C reaches the whole group of processes; the parent decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    os.dup2(2, 1)  # what some library prints must not mix with the command's own output
    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError, _Terminated):  # the parent has closed the pipe
        while True:
            step, inputs, context = channel.recv()
            context = replace(context, progress=Progress(channel.send))
            channel.send(execute(step, inputs, context))


def execute(step: Step, inputs: Sequence[Sequence[Path]], context: Context) -> Outcome:
    """Run a step in a worker; return its outcome; nothing is raised."""
    try:
        return step.bind(inputs).run(context)
    except FeatpipeError as error:
        return Outcome.failure(error)
    except _Terminated:
        return describe_death(-signal.SIGTERM)
    except Exception as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
            return Outcome("failed", f"out of memory: {error}", details={"next": _SHORT_OF_MEMORY})
        traceback.print_exc(file=sys.stderr)
        last = traceback.extract_tb(error.__traceback__)[-1]
        asked = "this is a defect of featpipe: please report it with the traceback above"
        details = {"where": f"{last.filename}, line {last.lineno}", "next": asked}
        return Outcome("failed", f"{type(error).__name__}: {error}", details=details)
