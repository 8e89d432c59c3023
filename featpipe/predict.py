"""Classify new images with a trained probe or a fine-tuned network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones import load_backbone
from featpipe.backbones.base import Backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets.images import read_image
from featpipe.errors import ImageError, ResultError, WeightsError
from featpipe.evaluation.fitting import predict_with_scores
from featpipe.evaluation.models import TrainedModel, load_model
from featpipe.progress import SILENT, Progress
from featpipe.registry import did_you_mean
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.finetune.saved import TrainedHead


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


class Predictor(Protocol):
    """What goes from prepared images to classes.

    Attributes
    ----------
    classes : tuple of str
    preprocessing : Preprocessing
    batch_size : int
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    batch_size: int

    def answer(self, images: Tensor) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """Return labels (n,) and scores (n, classes) of prepared images (n, 3, S, S), uint8."""


class ProbePredictor:
    """A probe on its backbone.

    Raises
    ------
    WeightsError
        If the backbone is not the one that the probe was trained on.
    """

    def __init__(self, model: TrainedModel, weights: str | None, device: str) -> None:
        self._model = model
        self._backbone = load_backbone(
            model.backbone["model"],
            weights or model.weights,
            device,
            model.request["image_size"],
            model.request["fit"],
        )
        _check_same(self._backbone, model)
        self.classes = model.classes
        self.preprocessing = self._backbone.preprocessing
        self.batch_size = self._backbone.batch_size

    def answer(self, images: Tensor) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """See :class:`Predictor`."""
        features = self._backbone.embed(images, (self._model.layer,))[self._model.layer]
        predicted, scores, _ = predict_with_scores(
            self._model.estimator, features, len(self.classes)
        )
        return predicted, scores


class HeadPredictor:
    """A fine-tuned network."""

    batch_size = 32

    def __init__(self, head: TrainedHead) -> None:
        self._head = head
        self.classes = head.classes
        self.preprocessing = head.trunk.preprocessing

    def answer(self, images: Tensor) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """See :class:`Predictor`."""
        probabilities = self._head.predict_proba(images)
        return probabilities.argmax(axis=1), probabilities


def predict(
    predictor: Predictor, images: Sequence[Path], progress: Progress = SILENT
) -> list[Answer]:
    """Classify images.

    Parameters
    ----------
    predictor : Predictor
        From :func:`open_predictor`.
    images : sequence of Path
    progress : Progress

    Returns
    -------
    answers : list of Answer
        One per image, in order; an image that cannot be read has an error instead of a class.
    """
    answers: list[Answer] = []
    with progress.task("predict", len(images)) as task:
        for start in range(0, len(images), predictor.batch_size):
            batch = images[start : start + predictor.batch_size]
            answers += _predict_batch(predictor, batch)
            task.advance(len(batch))
    return answers


def _predict_batch(predictor: Predictor, images: Sequence[Path]) -> list[Answer]:
    import torch  # noqa: PLC0415 - the predictor has brought it

    prepared, errors = {}, {}
    for path in images:
        try:
            prepared[path] = predictor.preprocessing.prepare(read_image(path))
        except ImageError as error:
            errors[path] = " ".join(str(error).split())
    labels: dict[Path, tuple[int, Any]] = {}
    if prepared:
        predicted, scores = predictor.answer(torch.stack(list(prepared.values())))
        for number, path in enumerate(prepared):
            label = int(predicted[number])
            score = None if scores is None else round(float(np.float64(scores[number, label])), 6)
            labels[path] = label, score
    return [
        Answer(str(path), predictor.classes[labels[path][0]], labels[path][1])
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


def open_predictor(
    folder: Path, name: str, weights: str | None = None, device: str = "auto"
) -> Predictor:
    """Open a classifier by its path, or by the name of its result.

    Parameters
    ----------
    folder : Path
        Where the models of the workspace lie.
    name : str
        A ``.skops`` (probe) or ``.safetensors`` (fine-tuned) file, or the name of a result.
    weights : str, optional
        Where the weights of the frozen network are now; default: where they were at training.
    device : str

    Raises
    ------
    ResultError
        If there is none, or the file cannot be trusted.
    WeightsError
        If the frozen network is not the one of the training.
    """
    path = _find(folder, name)
    if path.suffix != ".safetensors":
        return ProbePredictor(load_model(path), weights, device)
    from featpipe.finetune.saved import load_head  # noqa: PLC0415 - brings skorch

    return HeadPredictor(load_head(path, weights=weights, device=device))


def _find(folder: Path, name: str) -> Path:
    kinds = (".skops", ".safetensors")
    if name.endswith(".json"):  # the file of a result stands for its model
        name = Path(name).stem
    for path in (user_path(name), *(folder / f"{name}{kind}" for kind in kinds)):
        if path.is_file():
            return path
    known = [path.stem for kind in kinds for path in sorted(folder.glob(f"*{kind}"))]
    raise ResultError(
        f"There is no model {name!r}.",
        where=folder,
        got=", ".join(known) or "no model at all",
        next_step=did_you_mean(name, known).strip() or "train one: featpipe svm",
    )
