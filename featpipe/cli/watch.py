"""How a person, or a script, follows the run of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from featpipe.cli.console import Console, JsonConsole, TerminalConsole, print_table
from featpipe.pipeline import Record, Task


def make_watcher(console: Console, *, as_json: bool) -> TerminalWatcher | JsonWatcher:
    """Return what shows a run on a console."""
    if as_json:
        assert isinstance(console, JsonConsole)
        return JsonWatcher(console)
    return TerminalWatcher(console)


class TerminalWatcher:
    """Two bars on standard error (all tasks; the task that runs), one line per finished task."""

    def __init__(self, console: Console) -> None:
        from rich import progress  # noqa: PLC0415 - not needed for --help
        from rich.console import Console as RichConsole  # noqa: PLC0415

        self._console = console
        self._quiet = isinstance(console, TerminalConsole) and console.quiet
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[facts]}", style="dim"),
            console=RichConsole(stderr=True),
            disable=self._quiet,
            transient=True,
        )
        self._all = self._bars.add_task("all tasks", total=None, facts="")
        self._one: Any = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, task: Task, number: int, total: int) -> None:
        """Show which task runs."""
        self._bars.update(self._all, total=total, completed=number - 1)
        self._bars.update(self._all, description=f"[{number}/{total}] {task.name}")

    def event(self, task: Task, event: Mapping[str, Any]) -> None:
        """Move the bar of the task, or print its note."""
        if event["event"] == "note":
            self._say(event["message"])
            return
        if self._one is None:
            self._one = self._bars.add_task("", facts="")
        facts = " · ".join(map(str, event["facts"].values()))
        state = {"total": event["total"], "completed": event["done"], "facts": facts}
        self._bars.update(self._one, description=f"  {event['label']}", **state)

    def finished(self, record: Record, seconds_left: float | None) -> None:
        """Print what the task did, and how long the rest is likely to take."""
        if self._one is not None:
            self._bars.remove_task(self._one)
            self._one = None
        left = "time left: unknown" if seconds_left is None else f"about {seconds_left:.0f} s left"
        self._bars.update(self._all, advance=1, facts=left)
        if record.table is not None and record.succeeded and not self._quiet:
            self._say(f"{record.task.name}:")
            print_table(record.table)
        self._say(f"{record.status}: {record.task.name} ({record.seconds:.1f} s)")
        for line in record.message.removeprefix(record.status).lstrip(": \n").splitlines():
            self._say(f"    {line}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


class JsonWatcher:
    """One JSON line per event on standard output."""

    def __init__(self, console: JsonConsole) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, task: Task, number: int, total: int) -> None:
        """Print that a task begins."""
        self._emit("task_started", {"task": task.name, "number": number, "total": total})

    def event(self, task: Task, event: Mapping[str, Any]) -> None:
        """Pass the event on, with the name of its task."""
        facts = {key: value for key, value in event.items() if key != "event"}
        self._emit(event["event"], {"task": task.name, **facts})

    def finished(self, record: Record, seconds_left: float | None) -> None:
        """Print how a task ended."""
        left = None if seconds_left is None else round(seconds_left, 1)
        self._emit("task_finished", {**record.facts(), "seconds_left": left})

    def _emit(self, event: str, facts: Mapping[str, Any]) -> None:
        if not self._console.quiet:
            self._console.emit(event, facts)
