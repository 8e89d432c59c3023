"""The command ``featpipe``: names of commands, common options, exit codes."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import NoReturn

import click

from featpipe.cli.console import make_console
from featpipe.errors import FeatpipeError, UsageError
from featpipe.registry import did_you_mean

# Name, where its command is built, one line: help is printed without importing the rest.
_COMMANDS = {
    "demo": ("featpipe.cli.run", "Embed handwritten digits, train, compare, report: a minute."),
    "run": ("featpipe.cli.run", "Run a recipe: a list of steps as YAML, resumable."),
    "init": ("featpipe.cli.run", "Write a recipe for your own images."),
    "extract": ("featpipe.cli.steps", "Embed a dataset with a frozen backbone."),
    "svm": ("featpipe.cli.steps", "One-vs-rest linear SVM on stored features."),
    "logistic": ("featpipe.cli.steps", "Logistic probe on stored features."),
    "knn": ("featpipe.cli.steps", "Nearest neighbours by cosine on stored features."),
    "centroid": ("featpipe.cli.steps", "Nearest class mean on stored features."),
    "zeroshot": ("featpipe.cli.steps", "The backbone's own classifier, mapped, with 'other'."),
    "finetune": ("featpipe.cli.steps", "Train a head, some stages under it, or a network."),
    "explain": ("featpipe.cli.steps", "Heat maps over the images a network got wrong."),
    "compare": ("featpipe.cli.steps", "Compare results: intervals and paired tests."),
    "report": ("featpipe.cli.steps", "Write results as one self-contained HTML page."),
    "predict": ("featpipe.cli.predict", "Classify new images with a trained model."),
    "results": ("featpipe.cli.listing", "List the results of the workspace."),
    "store": ("featpipe.cli.stores", "List, describe, verify and export feature stores."),
    "labelmap": ("featpipe.cli.labelmaps", "Show and check label maps."),
    "models": ("featpipe.cli.listing", "List the backbones."),
    "datasets": ("featpipe.cli.listing", "List the datasets."),
    "completion": ("featpipe.cli.listing", "Print the completion script of a shell."),
}


class _Group(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(_COMMANDS[cmd_name][0]).command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], _COMMANDS)
            ctx.fail(f"No such command {args[0]!r}. {hint}See: featpipe --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])
        with formatter.section("Examples"):
            formatter.write_dl(
                [
                    ("featpipe demo", "everything once, offline"),
                    ("featpipe extract --model resnet50 --dataset stl10", "features"),
                    ("featpipe svm", "a classifier on them"),
                    ("featpipe report --all", "the comparison as a page"),
                ]
            )


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
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
