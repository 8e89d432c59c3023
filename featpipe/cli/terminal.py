"""What the terminal shows with rich: bars, tables, highlighted errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featpipe.errors import FeatpipeError
from featpipe.progress import Event

_ALL = "all tasks"


class Bars:
    """Progress bars on standard error: one of all tasks of a recipe, one of the work under way."""

    def __init__(self) -> None:
        self._numbers: dict[str, progress.TaskID] = {}
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[facts]}", style="dim"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()

    def show(self, event: Event) -> None:
        """Move a bar; a full one is removed."""
        label, done, facts = event.message, event.done, dict(event.facts)
        if event.event == "started":
            label, done, left = _ALL, done - 1, facts.pop("seconds_left", None)
            facts["left"] = "time left: unknown" if left is None else f"about {left:.0f} s left"
        shown: dict[str, Any] = {"facts": " · ".join(map(str, facts.values()))}
        if label not in self._numbers:
            self._numbers[label] = self._bars.add_task(label, total=event.total, **shown)
        self._bars.update(self._numbers[label], completed=done, total=event.total, **shown)
        if done >= event.total:
            self._bars.remove_task(self._numbers.pop(label))

    def end_task(self) -> None:
        """Remove what an ended task has left."""
        for label in set(self._numbers) - {_ALL}:
            self._bars.remove_task(self._numbers.pop(label))

    def print(self, line: str) -> None:
        """Print a line above the bars, which are redrawn below it."""
        self._bars.refresh()
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove all bars."""
        self._bars.stop()


def print_error(error: FeatpipeError) -> None:
    """Print an explanation to standard error."""
    console = Console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(str(error), markup=False, highlight=False, soft_wrap=True)


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
    console = Console()
    if not console.is_terminal:
        console.width = 400  # a pipe has no width: never fold or cut what a script reads
    console.print(table)
