"""The command ``featpipe``: recipes, a command for every step, exit codes, and errors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from featpipe.cli.console import Console, JsonConsole, Session, command, jobs_option
from featpipe.cli.inspect import INSPECTION
from featpipe.cluster import OnCluster
from featpipe.errors import FeatpipeError, UsageError, did_you_mean
from featpipe.lazy import Lazy
from featpipe.registry import summary_of
from featpipe.steps import STEPS, Step, options_of
from featpipe.steps.options import OptionSpec, as_written
from featpipe.steps.tracking import TRACKERS

# Together a third of the time of `--help`, which needs none of them.
api, on_ray, plans = (
    Lazy("featpipe.api"),
    Lazy("featpipe.steps.on_ray"),
    Lazy("featpipe.steps.plan"),
)
recipes, runner = Lazy("featpipe.steps.recipe"), Lazy("featpipe.steps.runner")

# -- steps ---------------------------------------------------------------------------------------


_LAST = "Numbers and machine, Options, Every command"  # groups, after all others


class StepCommand(click.Command):
    """The command of a step; its help ends with examples."""

    def __init__(self, step: type[Step]) -> None:
        @command(params=[_parameter(spec) for spec in options_of(step).values()])
        @jobs_option
        def run(session: Session, jobs: int, **values: Any) -> None:
            given = {key: value for key, value in values.items() if value not in (None, ())}
            made = step.from_mapping(given)
            made.check_requirements()
            session.finish(made.run(session.context(jobs)))

        super().__init__(step.name, help=summary_of(step), callback=run.callback, params=run.params)
        self.step = step

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each under the heading of its group."""
        known = options_of(self.step)
        records: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            spec, record = known.get(param.name or ""), param.get_help_record(ctx)
            if spec is not None and isinstance(param, click.Argument):
                record = param.human_readable_name, spec.help
            if record:
                records.setdefault(spec.group if spec else "Every command", []).append(record)
        for group in sorted(records, key=_LAST.find):
            with formatter.section(group):
                formatter.write_dl(records[group])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.step.examples:
            with formatter.section("Examples"):
                for example in self.step.examples:
                    formatter.write_text(example)


def _parameter(spec: OptionSpec) -> click.Parameter:
    def complete(_: Any, __: Any, prefix: str) -> list[str]:
        return [name for name in spec.names() if name.startswith(prefix)]

    how: dict[str, Any] = {"required": spec.required, "shell_complete": complete}
    if spec.positional:
        return click.Argument([spec.name], nargs=-1 if spec.many else 1, **how)
    if spec.item_type is bool:
        flag = f"{spec.flag}/--no-{spec.flag[2:]}" if spec.default else spec.flag
        return click.Option([flag, spec.name], is_flag=True, default=None, help=spec.help)
    shown = ""
    if spec.default not in (None, {}):
        values = spec.default if spec.many else [spec.default]
        shown = f" [default: {','.join(map(as_written, values))}]"
    return click.Option(
        [spec.flag, *filter(None, [spec.short]), spec.name],
        metavar=spec.metavar,
        help=spec.help + shown,
        type=str,  # for the step to check
        multiple=spec.many or spec.pairs,  # as lists are: --layer a --layer b is --layer a,b
        callback=lambda _, __, value: ",".join(value) if value and spec.many else value,
        **how,
    )


# -- recipes -------------------------------------------------------------------------------------


@command(
    epilog="Examples: featpipe run pipelines/demo.yaml · featpipe run stl10 --dry-run · "
    "featpipe run stl10 --limit 200 --set data=../shared/data --set extract.model=resnet18",
    more=map(_parameter, options_of(OnCluster).values()),
)
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change an option: seed=1 in every step that has it, svm.seed=1 in one step.",
)
@click.option("--only", multiple=True, metavar="STEP", help="Only this step and what it needs.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N images of each split.")
@click.option(
    "--out-anywhere",
    is_flag=True,
    help="Let the recipe's 'out' name files outside of the workspace, and 'force' replace yours.",
)
@jobs_option
@click.option(
    "--track",
    type=click.Choice(list(TRACKERS)),
    help="Keep parameters, metrics and curves there too.",
)
def run(  # noqa: PLR0913 - one argument per option
    session: Session,
    recipe: str,
    *,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    limit: int | None = None,
    out_anywhere: bool = False,
    jobs: int = -1,
    track: str | None = None,
    **cluster: Any,
) -> None:
    """Run a recipe: a list of steps as YAML, resumable.

    RECIPE is a file, or the name of one that comes with featpipe. Finished tasks are skipped: run
    the same command again to resume.
    """
    where = OnCluster.from_mapping({key: value for key, value in cluster.items() if value})
    read = recipes.read_recipe(recipes.find_recipe(recipe), overrides, limit)
    plan = plans.Plan.of(read, session.context(jobs), only, out_anywhere=out_anywhere)
    if dry_run:
        session.finish(plan.outcome())
    where.check_requirements()
    trackers = [] if track is None else [TRACKERS[track](plan)]
    listeners = [session.console.follow, *trackers]
    if where.engine == "local":
        session.finish(runner.run_plan(plan, listeners))
    session.finish(on_ray.run_plan_on_cluster(plan, listeners, where.address))


@command(epilog="Example: featpipe demo --workspace demo")
def demo(session: Session) -> None:
    """Embed handwritten digits, train, compare, report: offline, in a minute.

    The same as: featpipe run demo
    """
    run.callback.__wrapped__(session, "demo")  # type: ignore[union-attr]


@command(
    epilog="Examples: featpipe init photos --data ~/photos · featpipe init list.csv · "
    "featpipe init seasons --data summer --test winter · featpipe run photos.yaml"
)
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of class folders, or a CSV or npz file [default: the folder or table NAME].",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Folder of the test images, where those of --data only train; NAME.csv then lists both.",
)
@click.option("--model", default="resnet50", help="Backbone to use.", show_default=True)
@click.option("--weights", help="A file of weights [default: the published ones].")
def init(session: Session, name: str, test: Path | None, **given: Any) -> None:
    """Write a commented recipe for your own images: three methods, one report."""
    session.finish(api.write_recipe(name, **given, context=session.context(), test=test))


RECIPES: Sequence[click.Command] = (demo, run, init)


# -- the program ---------------------------------------------------------------------------------


_EXAMPLES = [
    ("featpipe init photos", "a recipe for your images, photos/CLASS/*.jpg"),
    ("featpipe run photos.yaml", "features, three methods, one report"),
    ("featpipe demo", "everything once, offline"),
]


class _Group(click.Group):
    """Recipes first, then every step, then what shows what there is."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        recipes, others = ([one.name or "" for one in part] for part in (RECIPES, INSPECTION))
        return [*recipes, *STEPS.names(), *others]

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
        steps = STEPS.summaries()  # without their options, which take time
        others = {name: one.get_short_help_str(200) for name, one in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, (others | steps)[name]) for name in self.list_commands(ctx)])
        with formatter.section("Examples"):
            formatter.write_dl(_EXAMPLES)


@click.command(
    cls=_Group,
    commands=[*RECIPES, *INSPECTION],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="featpipe")
def featpipe() -> None:
    """Trustworthy baselines for image classification: from a folder of photos to a report."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    as_json = "--json" in (arguments or sys.argv)
    console = JsonConsole() if as_json else Console()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show → or ü still works
            stream.reconfigure(errors="backslashreplace")
    try:
        # Without standalone mode click returns the code of Exit instead of raising it.
        code = featpipe.main(arguments, prog_name="featpipe", standalone_mode=False) or 0
    except click.ClickException as error:
        if as_json:
            console.error(UsageError(error.format_message()))
        else:
            error.show()
        code = error.exit_code
    except FeatpipeError as error:
        console.error(error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: run the same command again to resume", file=sys.stderr)
        code = 130
    except MemoryError:
        print("error: out of memory; try --jobs 1, --limit N or a smaller batch", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # no permission, or a full disk
        console.error(FeatpipeError(f"{error.strerror or error}.", where=error.filename))
        code = FeatpipeError.exit_code
    sys.exit(code)


def program() -> NoReturn:
    """Run the command line as a program.

    After ``predict`` it ends at once: nothing is left to write or to wait for, and taking PyTorch
    apart would take as long as answering.
    """
    try:
        main()
    except SystemExit as ended:
        if sys.argv[1:2] == ["predict"] and isinstance(ended.code, int):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # a reader that has seen enough
                    stream.flush()
            os._exit(ended.code)
        raise
