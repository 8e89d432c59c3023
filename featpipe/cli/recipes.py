"""``featpipe run``, ``featpipe demo`` and ``featpipe init``: recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from featpipe import api
from featpipe.cli.commands import Session, jobs_option, with_session


@click.command(
    epilog="Examples: featpipe run pipelines/demo.yaml · featpipe run stl10 --dry-run · "
    "featpipe run stl10 --limit 200 --set data=../shared/data --set extract.model=resnet18"
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
@jobs_option
@click.option(
    "--track",
    type=click.Choice(["mlflow", "tensorboard"]),
    help="Keep parameters, metrics and curves there too.",
)
@with_session
def run(  # noqa: PLR0913 - one argument per option
    session: Session,
    recipe: str,
    *,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    limit: int | None = None,
    jobs: int = -1,
    track: str | None = None,
) -> None:
    """Run a recipe: a list of steps as YAML, resumable.

    RECIPE is a file, or the name of one that comes with featpipe. What is done already is not done
    again, so the same command continues a run that stopped.
    """
    read = api.read_recipe(api.find_recipe(recipe), overrides, limit)
    plan = api.Plan.of(read, session.context(jobs), only)
    if dry_run:
        session.finish(plan.outcome())
    trackers = [] if track is None else [api.TRACKERS[track](plan)]
    session.finish(api.run_plan(plan, [session.console.follow, *trackers]))


@click.command(epilog="Example: featpipe demo --workspace demo")
@with_session
def demo(session: Session) -> None:
    """Embed handwritten digits, train, compare, report: offline, in a minute.

    The same as: featpipe run demo
    """
    run.callback.__wrapped__(session, "demo")  # type: ignore[union-attr]


@click.command(epilog="Examples: featpipe init photos --data ~/photos · featpipe run photos.yaml")
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of class folders, CSV or npz [default: the folder NAME].",
)
@click.option("--model", default="resnet50", help="Backbone to use.", show_default=True)
@click.option("--weights", help="A file of weights [default: the published ones].")
@with_session
def init(session: Session, name: str, data: Path | None, model: str, weights: str | None) -> None:
    """Write a commented recipe for your own images: three methods, one report."""
    session.finish(api.write_recipe(name, data, model, weights, session.context()))
