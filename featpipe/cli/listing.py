"""``featpipe models``, ``datasets``, ``results`` and ``completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from featpipe.cli.session import Session, with_session
from featpipe.registry import OldRegistry
from featpipe.steps.old import Outcome


def command(name: str) -> click.Command:
    """Return the command of a name."""
    return {
        "models": models,
        "datasets": datasets,
        "results": results,
        "completion": completion,
    }[name]


@click.command(epilog="Example: featpipe models")
@with_session
def models(session: Session) -> None:
    """List the backbones."""
    from featpipe.backbones import MODELS  # noqa: PLC0415 - --help is fast

    session.finish(_listed(MODELS))


@click.command(epilog="Example: featpipe datasets")
@with_session
def datasets(session: Session) -> None:
    """List the datasets."""
    from featpipe.datasets import DATASETS  # noqa: PLC0415 - --help is fast

    session.finish(_listed(DATASETS))


@click.command(epilog="Example: featpipe results")
@with_session
def results(session: Session) -> None:
    """List the results of the workspace, damaged ones too."""
    from featpipe.evaluation.result import scan_results  # noqa: PLC0415 - --help is fast

    folder = session.workspace.results
    found, damaged = scan_results(folder)
    rows = [
        {
            "name": result.name,
            "method": result.title,
            "dataset": result.dataset["name"],
            "protocol": result.protocol["name"],
            "accuracy %": f"{100 * result.summary['accuracy']['value']:.2f}",
            "created": result.created,
        }
        for result in found
    ]
    blank = dict.fromkeys(("method", "dataset", "protocol", "accuracy %", "created"))
    rows += [{"name": f"damaged: {error.details.get('where')}", **blank} for error in damaged]
    message = "" if rows else f"no result in {folder}; make one: featpipe svm, or featpipe demo"
    session.finish(Outcome("done", message, table=rows))


def _listed(registry: OldRegistry) -> Outcome:
    rows = [
        {"name": entry.name, "also": ", ".join(entry.aliases), "what": entry.summary}
        for entry in registry
    ]
    return Outcome("done", "", table=rows)


@click.command(epilog='Example: eval "$(featpipe completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "featpipe", "_FEATPIPE_COMPLETE").source())
