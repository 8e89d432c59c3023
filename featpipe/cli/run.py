"""``featpipe run``, ``featpipe demo`` and ``featpipe init``: recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featpipe.cli.session import Session, jobs_option, with_session
from featpipe.steps.old import Outcome


def command(name: str) -> click.Command:
    """Return the command of a name."""
    return {"run": run, "demo": demo, "init": init}[name]


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
def run(session: Session, recipe: str, dry_run: bool, **options: Any) -> None:
    """Run a recipe: a file, or the name of one that comes with featpipe.

    What is done already is not done again, so the same command continues a run that stopped.
    """
    _run(session, recipe, dry_run=dry_run, **options)


@click.command(epilog="Example: featpipe demo --workspace demo")
@with_session
def demo(session: Session) -> None:
    """Embed handwritten digits, train, compare, report: offline, in a minute.

    The same as: featpipe run demo
    """
    _run(session, "demo")


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
    from featpipe.pipeline.template import write_recipe  # noqa: PLC0415 - --help is fast

    session.finish(write_recipe(name, data, model, weights, session.context()))


def _run(  # noqa: PLR0913 - one argument per option of the command
    session: Session,
    name: str,
    *,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    limit: int | None = None,
    jobs: int = -1,
    track: str | None = None,
) -> None:
    from featpipe.cli.watch import make_watcher  # noqa: PLC0415 - --help is fast
    from featpipe.pipeline import Plan, find_recipe  # noqa: PLC0415
    from featpipe.recipe import read_recipe  # noqa: PLC0415

    recipe = read_recipe(find_recipe(name), overrides, limit)
    plan = Plan.of(recipe, session.context(jobs), only)
    if dry_run:
        session.finish(_plan_outcome(plan))
    watcher = make_watcher(session.console, as_json=session.as_json)
    with watcher:
        summary = plan.run([watcher], track)
    session.finish(_summary_outcome(summary))


def _plan_outcome(plan: Any) -> Outcome:
    rows = [forecast.row() for forecast in plan.forecast()]
    done = sum(row["state"] == "done" for row in rows)
    message = f"{len(rows)} tasks, {done} done, {len(rows) - done} to do; nothing was run"
    if any("unknown" in (row["time"], row["disk"]) for row in rows):
        message += "\nunknown: nothing alike has run in this workspace yet"
    return Outcome("planned", message, facts={"plan": rows}, table=rows)


def _summary_outcome(summary: Any) -> Outcome:
    rows = [
        {
            "task": record.task.name,
            "status": record.status,
            "seconds": round(record.seconds, 1),
            "file": record.paths[0] if record.paths else None,
        }
        for record in summary.records
    ]
    paths = tuple(Path(path) for record in summary.records for path in record.paths)
    status = "done" if summary.exit_code == 0 else "failed"
    facts = {"tasks": [record.facts() for record in summary.records]}
    return Outcome(status, summary.message(), paths, facts, summary.exit_code, rows)
