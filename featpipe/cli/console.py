"""How a person, or a script, sees what is going on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from featpipe.errors import FeatpipeError
from featpipe.steps.old import Outcome

_EVENT_SECONDS = 1.0


class Console(Protocol):
    """What a command tells; also a :class:`featpipe.progress.Progress`."""

    def task(self, label: str, total: int, done: int = 0) -> Any:
        """Context manager that yields a task of ``total`` units."""

    def note(self, message: str) -> None:
        """Tell one line that matters."""

    def outcome(self, outcome: Outcome) -> None:
        """Tell what a command has done."""

    def error(self, error: FeatpipeError) -> None:
        """Tell what went wrong."""


class TerminalConsole:
    """For people: results on standard output; progress, notes and errors on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Any]:
        """Show a progress bar with the time left and the facts the work reports."""
        from rich import progress  # noqa: PLC0415 - not needed for --help

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[facts]}", style="dim"),
        )
        console = _rich(stderr=True)
        silent = self.quiet or not console.is_terminal
        with progress.Progress(*columns, console=console, disable=silent, transient=True) as bar:
            number = bar.add_task(label, total=total, completed=done, facts="")
            yield _Bar(bar, number)

    def note(self, message: str) -> None:
        """Print one line to standard error."""
        if not self.quiet:
            print(message, file=sys.stderr)

    def outcome(self, outcome: Outcome) -> None:
        """Print the message and, where there is one, the table."""
        if self.quiet:
            return
        if outcome.table is not None:
            print_table(outcome.table)
        if outcome.message:
            print(outcome.message)

    def error(self, error: FeatpipeError) -> None:
        """Print the explanation to standard error."""
        console = _rich(stderr=True)
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)


class _Bar:
    def __init__(self, bar: Any, number: Any) -> None:
        self._bar = bar
        self._number = number

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self._bar.update(self._number, advance=steps, facts=" · ".join(map(str, facts.values())))


class JsonConsole:
    """For scripts: one JSON object per line on standard output, the outcome last."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Any]:
        """Print a progress event at most once a second."""
        events = _Events(self, label, total, done)
        yield events
        events.emit()

    def note(self, message: str) -> None:
        """Print a note event."""
        if not self.quiet:
            self.emit("note", {"message": message})

    def outcome(self, outcome: Outcome) -> None:
        """Print the outcome event."""
        facts: dict[str, Any] = {"status": outcome.status, "message": outcome.message}
        facts["paths"] = [str(path) for path in outcome.paths]
        if outcome.table is not None:
            facts["table"] = outcome.table
        self.emit("outcome", {**facts, **outcome.facts})

    def error(self, error: FeatpipeError) -> None:
        """Print the error event."""
        self.emit("error", {"error": type(error).__name__, "what": error.what, **error.details})

    def emit(self, event: str, facts: Mapping[str, Any]) -> None:
        """Print one line."""
        print(json.dumps({"event": event, **facts}, ensure_ascii=False), flush=True)


def make_console(*, as_json: bool, quiet: bool = False) -> Console:
    """Return the console that the common options ask for."""
    return JsonConsole(quiet=quiet) if as_json else TerminalConsole(quiet=quiet)


class _Events:
    def __init__(self, console: JsonConsole, label: str, total: int, done: int) -> None:
        self._console = console
        self._state: dict[str, Any] = {"task": label, "total": total, "done": done}
        self._emitted = time.monotonic()

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self._state.update(facts, done=self._state["done"] + steps)
        if time.monotonic() - self._emitted > _EVENT_SECONDS:
            self.emit()

    def emit(self) -> None:
        if not self._console.quiet:
            self._console.emit("progress", self._state)
        self._emitted = time.monotonic()


def _rich(*, stderr: bool = False) -> Any:
    from rich.console import Console as RichConsole  # noqa: PLC0415 - not needed for --help

    return RichConsole(stderr=stderr)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; one column per key of the first row."""
    from rich.table import Table  # noqa: PLC0415 - not needed for --help
    from rich.text import Text  # noqa: PLC0415

    if not rows:
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if row[name] is None else str(row[name])) for name in rows[0]))
    console = _rich()
    if not console.is_terminal:
        console.width = 400  # a pipe has no width: never fold or cut what a script reads
    console.print(table)
