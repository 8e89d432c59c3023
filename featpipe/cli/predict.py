"""``featpipe predict``: classify new images with a trained model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from featpipe.cli.session import Session, with_session
from featpipe.steps.old import Outcome


def command(_: str) -> click.Command:
    """Return the command."""
    return predict_images


@click.command("predict", epilog="Example: featpipe predict digits-glyphnet-svm-1a2b3c4d scan.png")
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", help="Where the backbone's weights are now.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@with_session
def predict_images(
    session: Session, model: str, images: tuple[Path, ...], weights: str | None, device: str
) -> None:
    """Classify IMAGES with MODEL: the name of a result, a .skops or a .safetensors file."""
    from featpipe.predict import open_predictor, predict  # noqa: PLC0415 - --help is fast

    predictor = open_predictor(session.workspace.models, model, weights, device)
    answers = predict(predictor, images, session.console)
    unread = [f"{answer.image}: {answer.error}" for answer in answers if answer.error]
    rows = [{"image": a.image, "class": a.label or "unreadable", "score": a.score} for a in answers]
    session.finish(
        Outcome(
            "done",
            "\n".join([*unread, f"{len(unread)} of {len(answers)} images could not be read"])
            if unread
            else "",
            facts={"answers": [asdict(answer) for answer in answers]},
            exit_code=1 if unread else 0,
            table=rows,
        )
    )
