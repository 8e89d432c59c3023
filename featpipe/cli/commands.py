"""What every command gets, and the command of every step, made from the step's own definition."""

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
from featpipe.registry import summary_of
from featpipe.steps import Context, Outcome, Step, options_of
from featpipe.steps.options import OptionSpec
from featpipe.workspace import Workspace

_METAVARS = {int: "N", float: "X"}
_FEW = 5  # names that help shows; more are listed by `featpipe models` and its like


@dataclass(frozen=True)
class Session:
    """One call of a command."""

    workspace: Workspace
    console: Console
    as_json: bool

    def context(self, jobs: int = -1) -> Context:
        """Return what a step runs in."""
        command = shlex.join(["featpipe", *sys.argv[1:]])
        return Context(self.workspace, self.console.progress, jobs, command)

    def finish(self, outcome: Outcome) -> NoReturn:
        """Show the outcome and leave with its exit code."""
        self.console.outcome(outcome)
        raise click.exceptions.Exit(outcome.exit_code)


def _check_jobs(_: click.Context, __: click.Parameter, value: int) -> int:
    if value == 0:
        raise UsageError("--jobs cannot be 0.", expected="-1 (one per core), 1, 2 …")
    return value


jobs_option = click.option(
    "--jobs",
    type=int,
    default=-1,
    callback=_check_jobs,
    help="Worker processes [default: one per core].",
)


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has, and pass them as one :class:`Session`."""

    @click.option("--workspace", metavar="DIR", help="Folder of data and reports [default: .].")
    @click.option("--json", "as_json", is_flag=True, help="JSON lines instead of text.")
    @click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
    @wraps(function)
    def wrapped(workspace: str | None, as_json: bool, quiet: bool, **values: Any) -> Any:
        console = make_console(as_json=as_json, quiet=quiet)
        return function(Session(Workspace.find(workspace), console, as_json), **values)

    return wrapped


class StepCommand(click.Command):
    """The command of a step; its help ends with examples."""

    def __init__(self, step: type[Step]) -> None:
        @with_session
        @jobs_option
        def run(session: Session, jobs: int, **values: Any) -> None:
            given = {key: value for key, value in values.items() if value not in (None, ())}
            made = step.from_mapping(given)
            made.check_requirements()
            session.finish(made.run(session.context(jobs)))

        params = [_parameter(spec) for spec in options_of(step).values()]
        common = click.command(run).params
        super().__init__(step.name, callback=run, params=params + common, help=summary_of(step))
        self.step = step

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.step.examples:
            with formatter.section("Examples"):
                for example in self.step.examples:
                    formatter.write_text(example)


def _parameter(spec: OptionSpec) -> click.Parameter:
    if spec.positional:
        return click.Argument(
            [spec.name], required=spec.required, nargs=-1 if spec.many else 1, type=_Text(spec)
        )
    if spec.item_type is bool:
        flag = f"{spec.flag}/--no-{spec.flag[2:]}" if spec.default else spec.flag
        return click.Option([flag, spec.name], is_flag=True, default=None, help=spec.help)
    few = spec.choices or (spec.names() if spec.registry and len(spec.names()) <= _FEW else ())
    one = "|".join(few) if few else _METAVARS.get(spec.item_type, "TEXT")
    shown = ""
    if spec.default is not None:
        values = spec.default if spec.many else [spec.default]
        texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        shown = f" [default: {','.join(texts)}]"
    return click.Option(
        [spec.flag, spec.name],
        required=spec.required,
        metavar=f"{one},…" if spec.many else one,
        help=spec.help + shown,
        type=_Text(spec),
        multiple=spec.many,  # as lists are: --layer a --layer b is --layer a,b
        callback=lambda _, __, value: ",".join(value) if value and spec.many else value,
    )


class _Text(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Takes the text as it is, for the step to check, and completes known names."""

    name = "text"

    def __init__(self, spec: OptionSpec) -> None:
        self.spec = spec

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        names = [name for name in self.spec.names() if name.startswith(incomplete)]
        return [click.shell_completion.CompletionItem(name) for name in names]
