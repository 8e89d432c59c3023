"""One command for every step, made from the step's own definition."""

from __future__ import annotations

from typing import Any

import click

from featpipe.cli.session import Session, jobs_option, with_session
from featpipe.errors import UnknownNameError
from featpipe.steps.old import STEPS, OptionSpec, Step, options_of

_METAVARS = {int: "N", float: "X"}


def command(name: str) -> click.Command:
    """Return the click command of a step."""
    step = STEPS[name]

    @with_session
    @jobs_option
    def run(session: Session, jobs: int, **values: Any) -> None:
        given = {key: value for key, value in values.items() if value not in (None, ())}
        session.finish(step.from_mapping(given).run(session.context(jobs)))

    options = [_click_parameter(spec) for spec in options_of(step).values()]
    return _StepCommand(name, step, callback=run, params=options + click.command(run).params)


class _StepCommand(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, name: str, step: type[Step], **settings: Any) -> None:
        super().__init__(name, help=step.summary, **settings)
        self.step = step

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.step.examples:
                formatter.write_text(example)


def _click_parameter(spec: OptionSpec) -> click.Parameter:
    if spec.positional:
        return click.Argument(
            [spec.name], required=spec.required, nargs=-1 if spec.many else 1, type=_Text(spec)
        )
    if spec.item_type is bool:
        flag = f"{spec.flag}/--no-{spec.flag[2:]}" if spec.default else spec.flag
        return click.Option([flag, spec.name], is_flag=True, default=None, help=spec.help)
    return click.Option(
        [spec.flag, spec.name],
        required=spec.required,
        metavar=_metavar(spec),
        help=_help(spec),
        type=_Text(spec),
    )


def _metavar(spec: OptionSpec) -> str:
    one = "|".join(spec.choices) if spec.choices else _METAVARS.get(spec.item_type, "TEXT")
    return f"{one},…" if spec.many else one


def _help(spec: OptionSpec) -> str:
    if spec.default is None:
        return spec.help
    values = spec.default if spec.many else [spec.default]
    shown = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return f"{spec.help} [default: {shown}]"


class _Text(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Takes the text as it is, for the step to check, and completes known names."""

    name = "text"

    def __init__(self, spec: OptionSpec) -> None:
        self.spec = spec

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        kind = self.spec.item_type
        if kind in (int, float) and not self.spec.many and isinstance(value, str):
            try:
                return kind(value)
            except ValueError:
                return value  # the step says what it expected
        return value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        try:
            names = self.spec.names() or []
        except UnknownNameError:
            names = []
        return [click.shell_completion.CompletionItem(n) for n in names if n.startswith(incomplete)]
