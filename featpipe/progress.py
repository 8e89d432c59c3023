"""How long work tells how far it is, without knowing who listens.

The library reports to a :class:`Progress`; the command line shows it as a bar, as JSON lines or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, steps: int = 1, **facts: Any) -> None:
        """Say that ``steps`` more units are done; ``facts`` are shown beside the bar."""


class Progress(Protocol):
    """Where work reports to."""

    def task(self, label: str, total: int, done: int = 0) -> Any:
        """Context manager that yields a :class:`Task` of ``total`` units, ``done`` of them done."""

    def note(self, message: str) -> None:
        """Tell the user one line that matters."""


class _SilentTask:
    def advance(self, steps: int = 1, **facts: Any) -> None:
        pass


class Silent:
    """The default of the Python API: says nothing."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[_SilentTask]:
        """Yield a task that ignores what it is told."""
        yield _SilentTask()

    def note(self, message: str) -> None:
        """Ignore the line."""


SILENT = Silent()
