"""Progress of long work, reported without knowing who listens.

Work reports to a :class:`Progress`; whoever shows it (a bar, JSON lines, the parent of a worker
process) gets :class:`Event` records, all of one shape.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from featpipe.notebook import bars


@dataclass(frozen=True)
class Event:
    """One report of running work."""

    event: str  # "started": a task of a recipe; "progress"; "note": something to know
    message: str = ""  # the note, or what is worked on
    done: int = 0  # units of work; of "started", the number of the task
    total: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)  # shown next to the bar
    task: str = ""  # name of the recipe's task; empty for a command

    def as_dict(self) -> dict[str, Any]:
        """Return the event as JSON-like values, without fields that notes do not have."""
        values: dict[str, Any] = {"event": self.event, "message": self.message}
        if self.event != "note":
            values |= {"done": self.done, "total": self.total, **self.facts}
        return {**values, **({"task": self.task} if self.task else {})}


class Progress:
    """Where work reports to.

    ``listener`` gets every event, progress at most once in ``seconds_between``.
    """

    def __init__(self, listener: Callable[[Event], None], seconds_between: float = 0.2) -> None:
        self.listener = listener
        self.seconds_between = seconds_between

    @classmethod
    def find(cls) -> Progress:
        """Return bars where there is a notebook, and elsewhere :data:`SILENT`."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        return cls(bars()) if hasattr(shell, "kernel") else SILENT

    def note(self, message: str) -> None:
        """Report one line to the user."""
        self.listener(Event("note", message))

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a :class:`Task` of ``total`` units, ``done`` of them done."""
        task = Task(self, label, total, done)
        task.emit()
        yield task
        task.emit()


class Task:
    """One piece of work under way."""

    def __init__(self, progress: Progress, label: str, total: int, done: int) -> None:
        self._progress = progress
        self._label, self._total, self._done = label, total, done
        self._facts: Mapping[str, Any] = {}
        self._emitted = 0.0

    def advance(self, steps: int = 1, **facts: Any) -> None:
        """Say that ``steps`` more units are done; ``facts`` are shown next to the bar."""
        self._done += steps
        self._facts = facts
        if time.monotonic() - self._emitted > self._progress.seconds_between:
            self.emit()

    def emit(self) -> None:
        """Report how far the work is."""
        event = Event("progress", self._label, self._done, self._total, self._facts)
        self._progress.listener(event)
        self._emitted = time.monotonic()


def _ignore(event: Event) -> None:
    """Ignore an event; named, so that it can be pickled."""


SILENT = Progress(_ignore)
