"""The command ``featpipe``: its commands, its exit codes, and how errors are shown."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import click

from featpipe.cli.commands import StepCommand
from featpipe.cli.console import make_console
from featpipe.cli.inspect import INSPECTION
from featpipe.cli.recipes import demo, init, run
from featpipe.errors import FeatpipeError, UsageError, did_you_mean
from featpipe.registry import summary_of
from featpipe.steps import STEPS


class _Group(click.Group):
    """Recipes first, then every step, then what shows what there is."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = list(self.commands)
        return [*names[:3], *STEPS.names(), *names[3:]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        return StepCommand(STEPS.get(cmd_name)) if cmd_name in STEPS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            what, hint = f"No such command {args[0]!r}.", did_you_mean(args[0], known)
            ctx.fail(" ".join(filter(None, [what, hint, "See: featpipe --help"])))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        steps = {step.name: summary_of(step) for step in STEPS}  # their options are not needed
        others = {name: one.get_short_help_str(200) for name, one in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, (others | steps)[name]) for name in self.list_commands(ctx)])
        with formatter.section("Examples"):
            formatter.write_dl(
                [
                    ("featpipe demo", "everything once, offline"),
                    ("featpipe extract --model resnet50 --dataset stl10", "features"),
                    ("featpipe svm", "a classifier on them"),
                    ("featpipe report --all", "the comparison as a page"),
                ]
            )


@click.command(
    cls=_Group,
    commands=[demo, run, init, *INSPECTION],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="featpipe")
def featpipe() -> None:
    """Frozen ResNet features, scikit-learn probes and honest comparisons for image datasets."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    as_json = "--json" in (arguments or sys.argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show → or ü still works
            stream.reconfigure(errors="backslashreplace")
    try:
        # Without standalone mode click returns the code of Exit instead of raising it.
        code = featpipe.main(arguments, prog_name="featpipe", standalone_mode=False) or 0
    except click.ClickException as error:
        if as_json:
            make_console(as_json=True).error(UsageError(error.format_message()))
        else:
            error.show()
        code = error.exit_code
    except FeatpipeError as error:
        make_console(as_json=as_json).error(error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        code = 130
    except MemoryError:
        print("error: out of memory; try --jobs 1, --limit N or a smaller batch", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a place that may not be read or written, a disk that is full
        what = FeatpipeError(f"{error.strerror or error}.", where=error.filename)
        make_console(as_json=as_json).error(what)
        code = what.exit_code
    sys.exit(code)
