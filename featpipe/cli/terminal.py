"""The console for people: progress bars, tables, and errors that stand out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import progress
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from featpipe.cli.console import Console
from featpipe.errors import FeatpipeError
from featpipe.progress import Event
from featpipe.steps import Outcome


class TerminalConsole(Console):
    """For people: results on standard output; progress, notes and errors on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._bars: progress.Progress | None = None
        self._numbers: dict[str, progress.TaskID] = {}

    def hear(self, event: Event) -> None:
        """Print a note, or move a bar: one of all tasks of a recipe, one of the work under way."""
        if self.quiet:
            return
        if event.event == "note":
            self._say(event.message)
            return
        console = RichConsole(stderr=True)
        if not console.is_terminal:
            return
        if self._bars is None:
            self._bars = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[facts]}", style="dim"),
                console=console,
                transient=True,
            )
            self._bars.start()
        facts = dict(event.facts)
        if event.event == "started":
            left = facts.pop("seconds_left", None)
            facts["left"] = "time left: unknown" if left is None else f"about {left:.0f} s left"
            event = Event("progress", "all tasks", event.done - 1, event.total, facts)
        shown = {"total": event.total, "facts": " · ".join(map(str, facts.values()))}
        if event.message not in self._numbers:
            self._numbers[event.message] = self._bars.add_task(event.message, **shown)
        self._bars.update(self._numbers[event.message], completed=event.done, **shown)
        if event.done >= event.total:
            self._bars.remove_task(self._numbers.pop(event.message))

    def task_ended(self, outcome: Outcome) -> None:
        """Print what a task did, and its table."""
        for label in set(self._numbers) - {"all tasks"}:
            self._bars.remove_task(self._numbers.pop(label))
        if self.quiet:
            return
        if outcome.table is not None and outcome.succeeded:
            self._say(f"{outcome.task}:")
            print_table(outcome.table)
        self._say(f"{outcome.status}: {outcome.task} ({outcome.seconds:.1f} s)")
        for line in outcome.message.removeprefix(outcome.status).lstrip(": \n").splitlines():
            self._say(f"    {line}")

    def outcome(self, outcome: Outcome) -> None:
        """Print the message and, where there is one, the table."""
        self._stop()
        if self.quiet:
            return
        if outcome.table is not None:
            print_table(outcome.table)
        if outcome.message:
            print(outcome.message)

    def error(self, error: FeatpipeError) -> None:
        """Print the explanation to standard error."""
        self._stop()
        console = RichConsole(stderr=True)
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)

    def _say(self, line: str) -> None:
        if self._bars is None:
            print(line, file=sys.stderr)
        else:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._numbers = None, {}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; one column per key of the first row."""
    if not rows:
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if row[name] is None else str(row[name])) for name in rows[0]))
    console = RichConsole()
    if not console.is_terminal:
        console.width = 400  # a pipe has no width: never fold or cut what a script reads
    console.print(table)
