"""Classify new images with a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import load_backbone
from featpipe.backbones.base import Backbone
from featpipe.datasets.images import read_image
from featpipe.errors import ImageError, ResultError, WeightsError
from featpipe.evaluate.fitting import predict_with_scores
from featpipe.evaluate.models import TrainedModel, load_model
from featpipe.progress import SILENT, Progress
from featpipe.registry import did_you_mean
from featpipe.workspace import user_path


@dataclass(frozen=True)
class Answer:
    """What a classifier says about one image.

    Parameters
    ----------
    image : str
    label : str or None
        Predicted class; ``None`` where the image could not be read.
    score : float or None
        Probability, or decision value where the classifier has no probabilities.
    error : str or None
        Why the image could not be read.
    """

    image: str
    label: str | None = None
    score: float | None = None
    error: str | None = None


def predict(
    model: TrainedModel,
    images: Sequence[Path],
    *,
    weights: str | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> list[Answer]:
    """Classify images.

    Parameters
    ----------
    model : TrainedModel
        From :func:`featpipe.evaluate.models.load_model`.
    images : sequence of Path
    weights : str, optional
        Where the backbone's weights are now; default: where they were at training.
    device : str
    progress : Progress

    Returns
    -------
    answers : list of Answer
        One per image, in order; an image that cannot be read has an error instead of a class.

    Raises
    ------
    WeightsError
        If the backbone is not the one that the classifier was trained on.
    """
    backbone = load_backbone(
        model.backbone["model"],
        weights or model.weights,
        device,
        model.request["image_size"],
        model.request["fit"],
    )
    _check_same(backbone, model)
    answers: list[Answer] = []
    with progress.task("predict", len(images)) as task:
        for start in range(0, len(images), backbone.batch_size):
            batch = images[start : start + backbone.batch_size]
            answers += _predict_batch(backbone, model, batch)
            task.advance(len(batch))
    return answers


def _predict_batch(backbone: Backbone, model: TrainedModel, images: Sequence[Path]) -> list[Answer]:
    import torch  # noqa: PLC0415 - the backbone has brought it

    prepared, errors = {}, {}
    for path in images:
        try:
            prepared[path] = backbone.preprocessing.prepare(read_image(path))
        except ImageError as error:
            errors[path] = " ".join(str(error).split())
    labels: dict[Path, tuple[int, Any]] = {}
    if prepared:
        stacked = torch.stack(list(prepared.values()))
        features = backbone.embed(stacked, (model.layer,))[model.layer]
        predicted, scores, _ = predict_with_scores(model.estimator, features, len(model.classes))
        for number, path in enumerate(prepared):
            label = int(predicted[number])
            score = None if scores is None else round(float(np.float64(scores[number, label])), 6)
            labels[path] = label, score
    return [
        Answer(str(path), model.classes[labels[path][0]], labels[path][1])
        if path in labels
        else Answer(str(path), error=errors[path])
        for path in images
    ]


def _check_same(backbone: Backbone, model: TrainedModel) -> None:
    now, then = backbone.describe(), model.backbone
    if now != then:
        differing = [key for key in then if now.get(key) != then[key]]
        raise WeightsError(
            "The backbone is not the one that this classifier was trained on.",
            where=", ".join(differing),
            expected=then["weights"],
            got=now["weights"],
            next_step="name the same weights with --weights",
        )


def find_model(folder: Path, name: str) -> TrainedModel:
    """Load a classifier by its path, or by the name of its result.

    Raises
    ------
    ResultError
        If there is none, or the file cannot be trusted.
    """
    for path in (user_path(name), folder / f"{name}.skops"):
        if path.is_file():
            return load_model(path)
    known = [path.stem for path in sorted(folder.glob("*.skops"))]
    raise ResultError(
        f"There is no model {name!r}.",
        where=folder,
        got=", ".join(known) or "no model at all",
        next_step=did_you_mean(name, known).strip() or "train one: featpipe svm",
    )
