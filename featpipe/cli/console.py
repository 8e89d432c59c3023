"""What every command gets: its common options, and output for people or scripts."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from featpipe.errors import FeatpipeError, UsageError
from featpipe.lazy import Lazy
from featpipe.progress import Event, Progress
from featpipe.steps import Context, Outcome
from featpipe.workspace import Workspace

rich_console, rich_progress = Lazy("rich.console"), Lazy("rich.progress")
rich_table, rich_text = Lazy("rich.table"), Lazy("rich.text")

_ALL = "all tasks"
_WIDE = 110  # columns of a terminal from which the bars are long
# Of terminals (C0 but the line end, DEL, C1), and those that turn the direction of writing.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Console:
    """For people: results on standard output; progress, notes and errors on standard error.

    ``quiet``: errors only. rich is imported when it is needed: "up to date" is said without it.
    """

    seconds_between = 0.2  # progress events
    _bars: Bars | None = None

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.progress = Progress(self.hear, self.seconds_between)

    def follow(self, record: Event | Outcome) -> None:
        """Show an event or an outcome of a recipe's run."""
        if isinstance(record, Event):
            self.hear(record)
        else:
            self.task_ended(record)

    def hear(self, event: Event) -> None:
        """Print a note, or move a bar where there is a terminal."""
        if self.quiet:
            return
        if event.event == "note":
            self._say(event.message)
        elif self._bars or sys.stderr.isatty():  # which the bars of older rich hide
            self._bars = self._bars or Bars()
            self._bars.show(event)

    def task_ended(self, outcome: Outcome) -> None:
        """Print what a task of a recipe did, and its table."""
        if self.quiet:
            return
        if self._bars is not None:
            self._bars.end_task()
        if outcome.table and outcome.succeeded:
            self._say(f"{outcome.task}:")
            print_table(outcome.table)
        self._say(f"{outcome.status}: {outcome.task} ({outcome.seconds:.1f} s)")
        for line in outcome.message.removeprefix(outcome.status).lstrip(": \n").splitlines():
            self._say(f"    {line}")

    def outcome(self, outcome: Outcome) -> None:
        """Print what the command has done and, where there is one, the table."""
        self._stop()
        if self.quiet:
            return
        if outcome.table:
            print_table(outcome.table)
        if outcome.message:
            print(printable(outcome.message))

    def error(self, error: FeatpipeError) -> None:
        """Print what went wrong to standard error."""
        self._stop()
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(printable(str(error)), err=True)

    def _say(self, line: str) -> None:
        line = printable(line)
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
            self._print(event.as_dict())

    def task_ended(self, outcome: Outcome) -> None:
        """Print the outcome of a task, which names the task."""
        if not self.quiet:
            self.outcome(outcome)

    def outcome(self, outcome: Outcome) -> None:
        """Print the outcome."""
        self._print({"event": "outcome", **outcome.as_dict()})

    def error(self, error: FeatpipeError) -> None:
        """Print the error, as the outcome of a command that failed."""
        self.outcome(Outcome.failure(error))

    def _print(self, values: Mapping[str, Any]) -> None:
        print(json.dumps(values, ensure_ascii=False, default=str), flush=True)


class Bars:
    """Progress bars on standard error: one of all tasks of a recipe, one of the work under way."""

    def __init__(self) -> None:
        self._numbers: dict[str, Any] = {}
        shown = rich_console.Console(stderr=True)
        # What label and facts may take: bar, time left and the spaces between columns stay.
        self._bar = 24 if shown.width >= _WIDE else 12
        self._room = shown.width - self._bar - len("0:00:00 ") - 3
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=self._bar),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[facts]}", style="dim"),
            console=shown,
            transient=True,
        )
        self._bars.start()
        self.stop = self._bars.stop  # removes all bars

    def show(self, event: Event) -> None:
        """Move a bar; a full one is removed."""
        label, done, facts = event.message, event.done, dict(event.facts)
        if event.event == "started":
            label, done, left = _ALL, done - 1, facts.pop("seconds_left", None)
            facts["left"] = "time left: unknown" if left is None else f"about {left:.0f} s left"
        room = self._room - len(f"{event.total}/{event.total}")
        texts = [str(fact) for fact in facts.values()]
        while texts and len(label) + len(" · ".join(texts)) > room:
            texts.pop()  # the last ones matter least
        text = label if len(label) <= room else f"{label[: room - 1]}…"
        shown: dict[str, Any] = {"facts": " · ".join(texts), "description": text}
        if label not in self._numbers:
            self._numbers[label] = self._bars.add_task(total=event.total, **shown)
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


def printable(text: str) -> str:
    r"""Return a text whose control characters are escaped, but for line ends: names may hold any.

    Examples
    --------
    >>> print(printable("a\x1b[31m.jpg"))
    a\x1b[31m.jpg
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; one column per key of the first row."""
    shown = rich_table.Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = ("" if row[name] is None else printable(str(row[name])) for name in rows[0])
        shown.add_row(*map(rich_text.Text, cells))
    rich = rich_console.Console()
    if not rich.is_terminal:
        rich.width = 400  # a pipe has no width: never fold or cut what a script reads
    rich.print(shown)


def plainly(values: Mapping[str, Any]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


# -- one call of a command -----------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """One call of a command."""

    workspace: Workspace
    console: Console
    as_json: bool

    def context(self, jobs: int = -1) -> Context:
        """Return what a step runs in."""
        if jobs < 1 and jobs != -1:
            raise UsageError(f"--jobs cannot be {jobs}.", expected="-1 (one per core), 1, 2 …")
        command = shlex.join(["featpipe", *sys.argv[1:]])
        return Context(self.workspace, self.console.progress, jobs, command)

    def finish(self, outcome: Outcome) -> NoReturn:
        """Show the outcome and leave with its exit code."""
        self.console.outcome(outcome)
        raise click.exceptions.Exit(outcome.exit_code)

    def describe(
        self, people: Mapping[str, Any], paths: tuple[Path, ...], facts: Mapping[str, Any]
    ) -> NoReturn:
        """Show people those facts that there are, a line each, and scripts all of them as JSON."""
        lines = []
        for name, value in people.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
            if text:
                lines.append(f"{name:<20}" + text.replace("\n", "\n" + " " * 20))
        self.finish(Outcome("done", "" if self.as_json else "\n".join(lines), paths, facts))

    def check_files(
        self, kind: str, paths: Sequence[Path], check: Callable[[Path], Any]
    ) -> NoReturn:
        """Check files, and say what is wrong with each that is damaged."""
        damaged = []
        for path in paths:
            try:
                check(path)
            except FeatpipeError as error:
                self.console.error(error)
                damaged.append(str(path))
        message = f"{len(paths) - len(damaged)} of {len(paths)} {kind} verified"
        status, facts = "failed" if damaged else "done", {"damaged": damaged}
        self.finish(Outcome(status, message, tuple(paths), facts, int(bool(damaged))))


def command(
    name: str | None = None,
    group: Any = click,
    more: Iterable[click.Parameter] = (),
    **properties: Any,
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of a group; its first argument is the :class:`Session`.

    Its parameters are those of the function's decorators, then ``more``, and those of every
    command; ``properties`` are as of :func:`click.command`.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def called(workspace: str | None, as_json: bool, quiet: bool, **values: Any) -> Any:
            console = (JsonConsole if as_json else Console)(quiet=quiet)
            return function(Session(Workspace.find(workspace), console, as_json), **values)

        made: click.Command = group.command(name, **properties)(called)
        made.params += [*more, *_OF_EVERY_COMMAND]
        return made

    return decorate


_OF_EVERY_COMMAND = [
    click.Option(["--workspace"], metavar="DIR", help="Folder of data and reports [default: .]."),
    click.Option(["--json", "as_json"], is_flag=True, help="JSON lines instead of text."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Show errors only."),
]
jobs_option = click.option(
    "--jobs", type=int, default=-1, help="Worker processes [default: one per core]."
)
