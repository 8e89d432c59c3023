"""Classify new images with a trained probe or a fine-tuned network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featpipe.backbones import fit_of_identity, load_backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Calibration
from featpipe.datasets.images import read_image
from featpipe.errors import ResultError, UsageError, WeightsError, did_you_mean
from featpipe.evaluation.fitting import load_model, predict_with_scores
from featpipe.evaluation.result import Result
from featpipe.extract.batches import ExtractOptions, read_batches, work_on_batches
from featpipe.finetune.saved import load_head
from featpipe.progress import SILENT, Progress
from featpipe.workspace import Workspace, user_path

_KINDS = (".skops", ".safetensors")  # of a probe, of a fine-tuned network


@dataclass(frozen=True)
class Answer:
    """Prediction for one image."""

    image: str
    label: str | None = None  # of an image that could not be read: None
    score: float | None = None  # probability, or decision value where there are none
    error: str | None = None  # why it could not be read


@dataclass(frozen=True)
class Predictor:
    """Maps prepared images (n, 3, S, S), uint8, to labels (n,) and scores (n, classes).

    Classifiers without scores give ``None`` for these.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    batch_size: int
    parallel: int  # calls of classify at the same time that suit it
    classify: Callable[[Tensor], tuple[NDArray[np.int64], NDArray[Any] | None]]


def open_predictor(
    workspace: Workspace,
    name: str,
    weights: str | None = None,
    device: str = "auto",
    runtime: str | None = None,
) -> Predictor:
    """Open a classifier by its path, or by the name of its result.

    Parameters
    ----------
    workspace : Workspace
        Where models and results are looked for.
    name : str
        A ``.skops`` (probe) or ``.safetensors`` (fine-tuned) file, or the name of a result.
    weights : str, optional
        Where the weights of the frozen network are now; default: where they were at training.
    device : str
    runtime : str, optional
        What runs the backbone of a probe; default: as when its features were extracted.

    Raises
    ------
    ResultError
        If there is none, or the file cannot be trusted.
    WeightsError
        If the frozen network is not the one of the training.
    """
    if name.endswith(".json"):  # the file of a result means its model
        name = Path(name).stem
    paths = (user_path(name), *(workspace.models / f"{name}{kind}" for kind in _KINDS))
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise _no_model(workspace, name)
    result = workspace.results / f"{path.stem}.json"
    if result.is_file() and path.resolve().parent == workspace.models.resolve():
        Result.load(result).check_file("model", path)
    if path.suffix != ".safetensors":
        return _open_probe(path, weights, device, runtime)
    if runtime not in (None, "torch"):
        raise UsageError(
            "A fine-tuned network runs in PyTorch only.", expected="torch", got=runtime
        )
    head = load_head(path, weights=weights, device=device)

    def classify(images: Tensor) -> tuple[NDArray[np.int64], NDArray[Any]]:
        probabilities = head.predict_proba(images)
        return probabilities.argmax(axis=1), probabilities

    return Predictor(head.classes, head.trunk.preprocessing, 32, 1, classify)


def _no_model(workspace: Workspace, name: str) -> ResultError:
    """Return why there is no model of this name, although there may be a result."""
    folder = workspace.models
    if (path := workspace.results / f"{name}.json").is_file():
        result = Result.load(path)
        trained = "save_model" in result.settings or "model" in result.files
        return ResultError(
            f"The result {name!r} has no model."
            if trained
            else f"The method {result.method!r} trains no model that could answer for new images.",
            where=path,
            expected=f"{folder / name} with the ending {' or '.join(_KINDS)}" if trained else None,
            next_step="run its command again, without --no-save-model and with --force"
            if trained
            else "name a result of a method that is trained, such as featpipe svm",
        )
    known = [path.stem for kind in _KINDS for path in sorted(folder.glob(f"*{kind}"))]
    return ResultError(
        f"There is no model {name!r}.",
        where=folder,
        got=", ".join(known) or "no model at all",
        next_step=did_you_mean(name, known) or "train one: featpipe svm",
    )


def _open_probe(path: Path, weights: str | None, device: str, runtime: str | None) -> Predictor:
    model = load_model(path)
    then = model.backbone
    try:
        name, (crop, fit) = then["model"], (then["preprocessing"][key] for key in ("crop", "fit"))
    except (KeyError, TypeError) as error:
        what = f"The model does not describe its backbone: {error}"
        raise ResultError(what, where=path, next_step="train it again") from None
    precision, seen = then.get("precision", "float32"), None
    if precision == "int8":
        seen = Calibration(_no_calibration, str(then.get("calibration")))
    backbone = load_backbone(
        model.model or name,
        weights or model.weights,
        device,
        crop,
        fit_of_identity(fit),
        runtime=runtime or then.get("runtime"),
        precision=precision,
        calibration=seen,
    )
    now = backbone.describe()
    if now != then:
        raise WeightsError(
            "The backbone is not the one that this classifier was trained on.",
            where=", ".join(key for key in {**then, **now} if now.get(key) != then.get(key)),
            expected=then["weights"],
            got=now["weights"],
            next_step="name the same weights with --weights",
        )

    backbone.prepare((model.layer,))

    def classify(images: Tensor) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        features = backbone.embed(images, (model.layer,))[model.layer]
        return predict_with_scores(model.estimator, features, len(model.classes))[:2]

    suits = backbone.batch_size, backbone.parallel
    return Predictor(model.classes, backbone.preprocessing, *suits, classify)


def _no_calibration(_: Preprocessing) -> Tensor:
    raise WeightsError(
        "The network in int8 that this classifier was trained on is not here.",
        where="the cache of converted networks",
        next_step="extract the features of the training images again, which makes it",
    )


def predict(
    predictor: Predictor, images: Sequence[Path], progress: Progress = SILENT
) -> list[Answer]:
    """Classify images with what :func:`open_predictor` returned; one answer per image, in order.

    An image that cannot be read has an error instead of a class.
    """
    answers: list[Answer] = []
    read = read_batches(
        lambda row: read_image(images[row]),
        range(len(images)),
        predictor.preprocessing,
        predictor.batch_size,
        ExtractOptions(on_error="skip"),
    )
    batches = work_on_batches(
        read,
        lambda batch: None if batch.images is None else predictor.classify(batch.images),
        predictor.parallel,
    )
    with closing(batches), progress.task("predict", len(images)) as task:
        for batch, classified in batches:
            found = {row: Answer(str(images[row]), error=why) for row, why in batch.skipped.items()}
            if classified is not None:
                labels, scores = classified
                for number, (row, label) in enumerate(zip(batch.read, labels, strict=True)):
                    score = None if scores is None else round(float(scores[number, label]), 6)
                    found[row] = Answer(str(images[row]), predictor.classes[label], score)
            answers += [found[row] for row in batch.rows]
            task.advance(len(batch.rows))
    return answers
