"""``featpipe results``: list, show, remove and verify the results of a workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featpipe.cli.console import Session, command, plainly
from featpipe.errors import ResultError, UsageError
from featpipe.lazy import Lazy
from featpipe.steps import Outcome

api = Lazy("featpipe.api")


@command(
    cls=click.Group,
    invoke_without_command=True,
    epilog="Examples: featpipe results · featpipe results show svm · featpipe results rm svm",
)
@click.pass_context
def results(ctx: click.Context, session: Session) -> None:
    """List the results of the workspace, unreadable ones too; show, verify and remove them.

    A part of a result's name means the latest of it: svm, or resnet50-svm.
    """
    if ctx.invoked_subcommand is not None:
        return
    folder = session.workspace.results
    found, damaged = api.scan_results(folder)
    rows = [
        {
            "name": result.name,
            "method": result.title,
            "features": _network(result),
            "dataset": result.dataset["name"],
            "protocol": result.protocol["name"],
            "accuracy %": f"{100 * result.summary['accuracy']['value']:.2f}",
            "created": result.created,
        }
        for result in found
    ]
    titles = api.unique_titles(found, rows, ("dataset", "features", "protocol"))
    rows = [{**row, "method": title} for row, title in zip(rows, titles, strict=True)]
    blank = dict.fromkeys(("features", "dataset", "protocol", "accuracy %", "created"))
    for error in damaged:
        rows.append({"name": Path(error.details["where"]).stem, "method": error.what, **blank})
    message = "" if rows else f"no result in {folder}; make one: featpipe svm, or featpipe demo"
    session.finish(Outcome("done", message, table=rows))


def _network(result: Any) -> str:
    backbone = result.stores[0]["manifest"]["backbone"] if result.stores else {}
    return str(result.extra.get("network", backbone).get("model") or "")


@command("show", results, epilog="Example: featpipe results show svm")
@click.argument("name")
def show_result(session: Session, name: str) -> None:
    """Show one result: its numbers, what they are of, and where its files are."""
    result = api.Result.load(api.locate_result(session.workspace.results, name))
    accuracy, metrics = result.summary["accuracy"], result.summary["metrics"]
    value, low, high = (f"{100 * accuracy[key]:.2f}" for key in ("value", "low", "high"))
    shown = ("balanced_accuracy", "macro_f1", "roc_auc_macro")
    models, tested = len(result.splits), f"{result.protocol['n_test']} test images"
    sd = (result.summary["spread"].get("accuracy") or {}).get("sd")
    paths = tuple(file.path for file in api.files_of(session.workspace, result.name))
    facts = {
        "name": result.name,
        "method": result.title,
        "accuracy": f"{value} % (95 % interval {low} – {high} %, {accuracy['method']})",
        "standard deviation": None if sd is None else f"{100 * sd:.2f} points between models",
        **{
            key.removesuffix("_macro").replace("_", " "): f"{100 * metrics[key]:.2f} %"
            for key in shown
            if metrics.get(key) is not None
        },
        "dataset": f"{result.dataset['name']}, {len(result.dataset['classes'])} classes",
        "protocol": [result.protocol["name"], *([f"{models} models"] * (models > 1)), tested],
        "features": [_network(result), *dict.fromkeys(s["layer"] for s in result.stores)],
        "chosen": _choices(result.splits),
        "settings": plainly({k: v for k, v in result.settings.items() if v not in (None, False)}),
        "recipe": result.extra.get("recipe", {}).get("name"),
        "made by": result.command,
        "created": result.created,
        "notes": "\n".join(result.notes),
        "files": "\n".join(map(str, paths)),
    }
    session.describe(facts, paths, asdict(result))


def _choices(splits: Sequence[Mapping[str, Any]]) -> str:
    """Say which values the models chose and by what, a line for each choice."""
    chosen = []
    for values in (dict(split.get("chosen") or {}) for split in splits):
        how = [f"by {values.pop('by')}"] if "by" in values else []
        how += ["at the edge of the grid"] if values.pop("at_edge", False) else []
        if values:
            chosen.append(plainly(values) + f" ({', '.join(how)})" * bool(how))
    many = len(splits) > 1
    return "\n".join(
        text + f": {n} of {len(splits)} models" * many for text, n in Counter(chosen).most_common()
    )


@command("rm", results, epilog="Example: featpipe results rm digits-glyphnet-svm-1a2b3c4d")
@click.argument("names", nargs=-1, required=True)
def remove_results(session: Session, names: tuple[str, ...]) -> None:
    """Remove results with their predictions, models and pictures; stores and reports stay."""
    folder = session.workspace.results
    located = dict.fromkeys(_the_one_result(folder, name) for name in names)
    if outside := [path for path in located if path.resolve().parent != folder.resolve()]:
        what = "This result is not one of the workspace."
        raise UsageError(what, where=outside[0], expected=f"one in {folder}")
    chosen = [path.stem for path in located]
    found = [file for name in chosen for file in api.files_of(session.workspace, name)]
    for file in found:
        file.remove()
    lines = [*(f"removed {name}" for name in chosen), f"{len(found)} files"]
    session.finish(Outcome("done", "\n".join(lines), tuple(file.path for file in found)))


def _the_one_result(folder: Path, name: str) -> Path:
    """Return the result to remove; a part of a name that fits several datasets is refused."""
    path = api.locate_result(folder, name)
    others = [other for other in api.scan_results(folder)[0] if f"-{name}-" in f"-{other.name}-"]
    if path.stem != name and len({other.dataset["name"] for other in others}) > 1:
        others.sort(key=lambda other: other.created, reverse=True)
        what = f"{name!r} fits results on several datasets, and only one is to be removed."
        got = "".join(f"\n    {one.name} ({one.dataset['name']})" for one in others)
        hint = f"say which: featpipe results rm {others[0].name}"
        raise UsageError(what, where=folder, got=got, next_step=hint)
    return path


@command("verify", results, epilog="Example: featpipe results verify digits-glyphnet-svm-1a2b3c4d")
@click.argument("names", nargs=-1)
def verify_results(session: Session, names: tuple[str, ...]) -> None:
    """Compare results with their digests, and every number with what the predictions give.

    Models and the files of reports are compared with their digests, too. NAMES are results or
    their files; all results and reports of the workspace by default.
    """
    folder, models = session.workspace.results, session.workspace.models
    paths = [api.locate_result(folder, name) for name in names] or sorted(folder.glob("*.json"))
    pages = [] if names else api.pages_with_digests(session.workspace.reports)

    def check(path: Path) -> None:
        if path not in pages:
            api.verify_result(path, models)
        elif changed := api.changed_files(path):
            what, where = "The report is not what was written.", ", ".join(map(str, changed))
            raise ResultError(what, where=where, next_step="write it again: featpipe report")

    kind = "results and reports" if pages else "results"
    session.check_files(kind, [*paths, *pages], check)
