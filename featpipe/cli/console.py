"""How a person, or a script, sees what is going on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from featpipe.errors import FeatpipeError
from featpipe.progress import Event, Progress
from featpipe.steps import Outcome


class Console:
    """What a command tells: progress and notes, outcomes, errors.

    Parameters
    ----------
    quiet : bool
        Tell errors only, and to scripts outcomes.

    Attributes
    ----------
    progress : Progress
        Where the work of a command reports to.
    """

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
        """Show what the run of a recipe tells."""
        if isinstance(record, Event):
            self.hear(record)
        else:
            self.task_ended(record)


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
    if as_json:
        return JsonConsole(quiet=quiet)
    from featpipe.cli.terminal import TerminalConsole  # noqa: PLC0415 - brings rich

    return TerminalConsole(quiet=quiet)
