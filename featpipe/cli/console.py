"""How a person, or a script, sees what is going on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from featpipe.errors import FeatpipeError
from featpipe.progress import Event, Progress
from featpipe.steps import Outcome


class Console:
    """Where a command reports progress, notes, outcomes and errors; ``quiet``: errors only."""

    seconds_between = 0.2  # progress events

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.progress = Progress(self.hear, self.seconds_between)

    def hear(self, event: Event) -> None:
        """Show how work goes on."""
        raise NotImplementedError

    def task_ended(self, outcome: Outcome) -> None:
        """Show the outcome of one task of a recipe."""
        raise NotImplementedError

    def outcome(self, outcome: Outcome) -> None:
        """Show what the command has done."""
        raise NotImplementedError

    def error(self, error: FeatpipeError) -> None:
        """Show what went wrong."""
        raise NotImplementedError

    def follow(self, record: Event | Outcome) -> None:
        """Show an event or an outcome of a recipe's run."""
        if isinstance(record, Event):
            self.hear(record)
        else:
            self.task_ended(record)


class TerminalConsole(Console):
    """For people: results on standard output; progress, notes and errors on standard error."""

    _bars: Any = None

    @property
    def _rich(self) -> Any:
        from featpipe.cli import terminal  # noqa: PLC0415 - "up to date" is said without rich

        return terminal

    def hear(self, event: Event) -> None:
        """Print a note, or move a bar where there is a terminal."""
        if self.quiet:
            return
        if event.event == "note":
            self._say(event.message)
        elif sys.stderr.isatty():
            self._bars = self._bars or self._rich.Bars()
            self._bars.show(event)

    def task_ended(self, outcome: Outcome) -> None:
        """Print what a task did, and its table."""
        if self.quiet:
            return
        if self._bars is not None:
            self._bars.end_task()
        if outcome.table is not None and outcome.succeeded:
            self._say(f"{outcome.task}:")
            self._rich.print_table(outcome.table)
        self._say(f"{outcome.status}: {outcome.task} ({outcome.seconds:.1f} s)")
        for line in outcome.message.removeprefix(outcome.status).lstrip(": \n").splitlines():
            self._say(f"    {line}")

    def outcome(self, outcome: Outcome) -> None:
        """Print the message and, where there is one, the table."""
        self._stop()
        if self.quiet:
            return
        if outcome.table is not None:
            self._rich.print_table(outcome.table)
        if outcome.message:
            print(outcome.message)

    def error(self, error: FeatpipeError) -> None:
        """Print the explanation to standard error."""
        self._stop()
        self._rich.print_error(error)

    def _say(self, line: str) -> None:
        if self._bars is None:
            print(line, file=sys.stderr)
        else:
            self._bars.print(line)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class JsonConsole(Console):
    """For scripts: one JSON object per line on standard output, the outcome last."""

    seconds_between = 1.0

    def hear(self, event: Event) -> None:
        """Print an event."""
        if not self.quiet:
            _print_json(event.as_dict())

    def task_ended(self, outcome: Outcome) -> None:
        """Print the outcome of a task, which names the task."""
        if not self.quiet:
            self.outcome(outcome)

    def outcome(self, outcome: Outcome) -> None:
        """Print the outcome."""
        _print_json({"event": "outcome", **outcome.as_dict()})

    def error(self, error: FeatpipeError) -> None:
        """Print the error, as the outcome of a command that failed."""
        _print_json({"event": "outcome", **Outcome.failure(error).as_dict()})


def _print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False, default=str), flush=True)


def make_console(*, as_json: bool, quiet: bool = False) -> Console:
    """Return the console that the common options ask for."""
    return JsonConsole(quiet=quiet) if as_json else TerminalConsole(quiet=quiet)
