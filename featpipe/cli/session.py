"""What every command gets: the workspace, the console, and the options for both."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

import click

from featpipe.cli.console import Console, make_console
from featpipe.errors import UsageError
from featpipe.steps.old import Context, Outcome
from featpipe.workspace import Workspace


@dataclass(frozen=True)
class Session:
    """One call of a command."""

    workspace: Workspace
    console: Console
    as_json: bool

    def context(self, jobs: int = -1) -> Context:
        """Return what a step runs in."""
        return Context(self.workspace, self.console, jobs, shlex.join(["featpipe", *sys.argv[1:]]))

    def finish(self, outcome: Outcome) -> NoReturn:
        """Tell the outcome and leave with its exit code."""
        self.console.outcome(outcome)
        raise click.exceptions.Exit(outcome.exit_code)


def _jobs(_: click.Context, __: click.Parameter, value: int) -> int:
    if value == 0:
        raise UsageError("--jobs cannot be 0.", expected="-1 (one per core), 1, 2 …")
    return value


jobs_option = click.option(
    "--jobs",
    type=int,
    default=-1,
    callback=_jobs,
    help="Worker processes [default: one per core].",
)


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has, and pass them as one :class:`Session`."""

    @click.option("--workspace", metavar="DIR", help="Folder of data and reports [default: .].")
    @click.option("--json", "as_json", is_flag=True, help="JSON lines instead of text.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @wraps(function)
    def wrapped(workspace: str | None, as_json: bool, quiet: bool, **values: Any) -> Any:
        console = make_console(as_json=as_json, quiet=quiet)
        return function(Session(Workspace.find(workspace), console, as_json), **values)

    return wrapped
