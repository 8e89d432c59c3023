"""The command `featpipe explain`: Grad-CAM heat maps over the images a network got wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featpipe.datasets.dataset import SourceRequest
from featpipe.errors import ResultError
from featpipe.finetune.gradcam import choose_layer, grad_cam, overlay
from featpipe.finetune.saved import TrainedHead, load_head
from featpipe.fingerprint import of_mapping
from featpipe.evaluation.result import PredictionTable, Result, find_results
from featpipe.steps.old import Context, ExplainStep, Outcome
from featpipe.workspace import atomic_write

_BATCH = 8


def run_explain(step: ExplainStep, context: Context) -> Outcome:
    """Write a gallery of heat maps and record it in the result.

    Raises
    ------
    ResultError
        If the result is not one of ``featpipe finetune``, or its head is missing.
    UnknownNameError
        If the network has no such layer.
    MissingExtraError
        If captum is not installed.
    """
    result = find_results(context.workspace.results, [step.result])[0]
    head = _head_of(result, step, context)
    layer = choose_layer(head, step.layer)
    mistakes = surest_mistakes(result.predictions(), step.limit)
    images = _read_images(result, head, mistakes, step, context)
    shown: list[dict[str, Any]] = []
    with context.progress.task(f"Grad-CAM at {layer}", len(mistakes)) as task:
        for start in range(0, len(mistakes), _BATCH):
            batch = images[start : start + _BATCH]
            some = mistakes[start : start + _BATCH]
            maps = grad_cam(head, layer, batch, [one.predicted for one in some])
            for one, image, heat in zip(some, batch, maps, strict=True):
                picture = overlay(image.permute(1, 2, 0).numpy(), heat, step.strength)
                shown.append(_write(result, one, picture, head.classes))
                task.advance()
    result.extra["explanations"] = shown
    result.extra["explained"] = {"layer": layer, "strength": step.strength, "by": "Grad-CAM"}
    assert result.path is not None
    result.save(result.path)
    folder = result.path.with_name(f"{result.path.stem}.explained")
    kept = {Path(one["file"]).name for one in shown}
    for picture_file in folder.glob("*.png"):
        if picture_file.name not in kept:
            picture_file.unlink()
    message = f"done: {len(shown)} mistakes explained at {layer}\n  → {folder}"
    return Outcome("done", message, (folder, result.path), {"layer": layer, "images": len(shown)})


@dataclass(frozen=True)
class Mistake:
    """A test image whose class was not recognised."""

    id: str
    true: int
    predicted: int
    confidence: float


def surest_mistakes(table: PredictionTable, limit: int) -> list[Mistake]:
    """Return the mistakes of the first model, the most confident ones first."""
    first = table.only_splits([0])
    assert first.scores is not None
    wrong = np.flatnonzero(~first.correct)
    confidence = first.scores.max(axis=1)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return [
        Mistake(
            str(first.ids[first.row[i]]),
            int(first.true[first.row[i]]),
            int(first.predicted[i]),
            float(confidence[i]),
        )
        for i in order
    ]


def _head_of(result: Result, step: ExplainStep, context: Context) -> TrainedHead:
    if result.method != "finetune" or "model" not in result.files:
        raise ResultError(
            "Heat maps need a network that was trained by featpipe finetune.",
            where=result.path,
            got=f"a result of {result.method!r}",
            next_step="featpipe results",
        )
    return load_head(
        context.workspace.models / result.files["model"],
        weights=step.weights,
        device=step.device,
        classes=tuple(result.dataset["classes"]),
    )


def _read_images(
    result: Result,
    head: TrainedHead,
    mistakes: list[Mistake],
    step: ExplainStep,
    context: Context,
) -> Tensor:
    """Open the test images again and prepare the ones that are shown."""
    store = result.stores[-1]
    request = SourceRequest.from_dict(store["run"]["source"])
    if step.data is not None:
        request = request.moved(step.data)
    source = request.open(store["manifest"]["dataset"]["split"], request.options(context))
    if source.fingerprint != store["manifest"]["dataset"]["fingerprint"]:
        raise ResultError(
            "The images are not those that the result was made from.",
            where=result.path,
            next_step="featpipe finetune … --force",
        )
    row_of = {name: row for row, name in enumerate(source.ids)}
    prepare = head.trunk.preprocessing.prepare
    side = head.trunk.preprocessing.crop
    if not mistakes:
        return torch.zeros(0, 3, side, side, dtype=torch.uint8)
    return torch.stack([prepare(source.read(row_of[one.id])) for one in mistakes])


def _write(
    result: Result, one: Mistake, picture: NDArray[np.uint8], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Write one picture beside the result; return its entry."""
    assert result.path is not None
    name = f"{of_mapping(one.id)[:12]}.png"  # an id may be a path, or hold any character
    path = result.path.with_name(f"{result.path.stem}.explained") / name
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    return {
        "id": one.id,
        "file": str(Path(path.parent.name) / name),
        "true": classes[one.true],
        "predicted": classes[one.predicted],
        "confidence": round(one.confidence, 6),
    }
