"""Classify new images with a trained probe or a fine-tuned network."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featpipe.backbones import fit_of_identity, load_backbone
from featpipe.backbones.base import Backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Calibration
from featpipe.datasets.folder import images_below
from featpipe.datasets.given import pixels_of
from featpipe.datasets.images import read_image
from featpipe.errors import DataError, ResultError, UsageError, WeightsError, did_you_mean
from featpipe.evaluation.models import ENDINGS, TrainedModel, load_model
from featpipe.evaluation.result import Result, latest_named
from featpipe.extraction.batches import Batch, ExtractOptions, work_on_images
from featpipe.lazy import Lazy, check_installed
from featpipe.progress import SILENT, Progress
from featpipe.store import LOGITS
from featpipe.workspace import Workspace, atomic_write, neutralised, refuse_foreign, user_path

pd = Lazy("pandas")  # half a second that answers on the screen do not need

_KINDS = (*ENDINGS, ".safetensors")  # of a probe; of a fine-tuned network
_WRITTEN = "featpipe predict"
_FEW_IMAGES = 32  # below, PyTorch answers before OpenVINO has been opened and compared with it
Answers = tuple[NDArray[np.int64], NDArray[Any] | None, NDArray[Any] | None]


@dataclass(frozen=True)
class Answer:
    """Prediction for one image."""

    image: str
    label: str | None = None  # None where the image could not be read
    probability: float | None = None  # of the label, where it is calibrated on training rows
    score: float | None = None  # what the classifier itself gives: a probability or a margin
    error: str | None = None  # why the image could not be read


@dataclass(frozen=True)
class Predictor:
    """Classifies prepared images (n, 3, S, S), uint8.

    ``classify`` returns labels (n,); scores (n, classes) and calibrated probabilities (n, classes),
    or ``None`` where the classifier has none.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    batch_size: int
    parallel: int  # calls of classify at the same time that suit it
    classify: Callable[[Tensor], Answers]
    probe: tuple[Path, TrainedModel, Backbone] | None = None  # None: a fine-tuned network


def find_model(workspace: Workspace, name: str) -> Path:
    """Return the file of a model, named as for :func:`open_predictor`.

    ``ResultError`` if there is none, or it is not the one that its result was tested with.
    """
    if name.endswith(".json"):  # the file of a result means its model
        name = Path(name).stem
    folder = workspace.models
    models = [path for kind in _KINDS for path in sorted(folder.glob(f"*{kind}"))]
    if path := user_path(name) if user_path(name).is_file() else latest_named(models, name):
        result = workspace.results / f"{path.stem}.json"
        if result.is_file() and path.resolve().parent == folder.resolve():
            Result.load(result).check_file("model", path)
        return path
    if path := latest_named(workspace.results.glob("*.json"), name):
        found = Result.load(path)
        if why := found.extra.get("not_saved"):
            what = f"The model of the result {path.stem!r} could not be saved."
            advice = "name a result of another method, such as featpipe svm"
            raise ResultError(what, where=path, got=why, next_step=advice)
        if "save_model" in found.settings or "model" in found.files:
            what = f"The result {path.stem!r} has no model."
            expected = f"{folder / path.stem} ending in {', '.join(_KINDS)}"
            advice = "run its command again, without --no-save-model and with --force"
            raise ResultError(what, where=path, expected=expected, next_step=advice)
        what = f"The method {found.method!r} trains no model, so it cannot classify new images."
        advice = "name a result of a method that is trained, such as featpipe svm"
        raise ResultError(what, where=path, next_step=advice)
    known = [path.stem for path in models]
    parts = dict.fromkeys(part for stem in known for part in stem.split("-"))
    what, got = f"There is no model {name!r}.", ", ".join(known) or "no models"
    advice = did_you_mean(name, [*known, *parts]) or "train one: featpipe svm"
    raise ResultError(what, where=folder, got=got, next_step=advice)


def open_predictor(
    workspace: Workspace,
    name: str,
    weights: str | None = None,
    device: str = "auto",
    runtime: str | None = None,
    n_images: int | None = None,
) -> Predictor:
    """Open a classifier by its path, or by the name of its result.

    Parameters
    ----------
    workspace : Workspace
        Where models and results are looked for.
    name : str
        The file of a model, or the name of a result; a part of it, such as ``"svm"`` or
        ``"resnet50-svm"``, means the latest model of such a name.
    weights : str, optional
        Where the weights of the frozen network are now; default: where they were at training.
    device : str
    runtime : str, optional
        What runs the backbone of a probe; default: as when its features were extracted.
    n_images : int, optional
        How many images it is for: few are left to PyTorch, which starts faster and gives the same
        numbers.

    Raises
    ------
    ResultError
        If there is no such model, or its file cannot be trusted.
    WeightsError
        If the frozen network is not the one used for training.
    """
    path = find_model(workspace, name)
    if path.suffix != ".safetensors":
        few = n_images is not None and n_images < _FEW_IMAGES
        return _open_probe(path, weights, device, runtime, few=few)
    if runtime not in (None, "torch"):
        what = "A fine-tuned network only runs in PyTorch."
        raise UsageError(what, expected="torch", got=runtime)
    from featpipe.finetuning.saved import load_head  # noqa: PLC0415 - a probe needs no skorch

    head = load_head(path, weights=weights, device=device)

    def classify(images: Tensor) -> Answers:
        probabilities = head.predict_proba(images)
        return probabilities.argmax(axis=1), probabilities, None

    return Predictor(head.classes, head.trunk.preprocessing, 32, 1, classify)


def _open_probe(
    path: Path, weights: str | None, device: str, runtime: str | None, *, few: bool
) -> Predictor:
    model = load_model(path)
    then = model.backbone
    try:
        name, prepared = then["model"], then["preprocessing"]
        crop, fit = prepared["crop"], prepared["fit"]
    except (KeyError, TypeError) as error:
        what = f"The model lacks a description of its backbone: {error}"
        raise ResultError(what, where=path, next_step="train it again") from None

    def missing(_: Preprocessing) -> Tensor:
        what = "The int8 network that this classifier was trained on is missing."
        advice = "extract the features of the training images again, which converts it"
        raise WeightsError(what, where="the cache of converted networks", next_step=advice)

    precision = then.get("precision", "float32")
    int8 = precision == "int8"
    backbone = load_backbone(
        model.model or name,
        weights or model.weights,
        device,
        crop,
        fit_of_identity(fit),
        decode=prepared.get("decode", "full"),
        runtime=runtime or then.get("runtime") or ("torch" if few and not int8 else None),
        precision=precision,
        calibration=Calibration(missing, str(then.get("calibration"))) if int8 else None,
    )
    now = backbone.describe()
    if now != then:
        raise WeightsError(
            "The backbone differs from the one this classifier was trained on.",
            where=", ".join(key for key in {**then, **now} if now.get(key) != then.get(key)),
            expected=then["weights"],
            got=now["weights"],
            next_step="give the weights used for training with --weights",
        )
    layers: tuple[str, ...] = (model.layer,)
    if int8:  # the fitted network is identified by all of its outputs
        stored = model.request.get("options", {}).get("layer", layers)
        logits = [] if backbone.source_classes is None else [LOGITS]
        layers = tuple(dict.fromkeys([*stored, *logits]))
    backbone.prepare(layers)
    width, expected = backbone.dim(model.layer), model.estimator.n_features_in_
    if math.prod(width) != expected:
        what = "The classifier does not fit the features of its backbone."
        got = f"{math.prod(width)} features at {model.layer}"
        raise ResultError(what, where=path, expected=f"{expected} features", got=got)

    def classify(images: Tensor) -> Answers:
        return model.answer(backbone.embed(images, layers)[model.layer])

    suits = backbone.preprocessing, backbone.batch_size, backbone.parallel
    return Predictor(model.classes, *suits, classify, (path, model, backbone))


def predict(
    predictor: Predictor, images: Sequence[Any], progress: Progress = SILENT
) -> list[Answer]:
    """Classify images with what :func:`open_predictor` returned; one answer per image, in order.

    ``images`` are files, PIL images or arrays; the latter two are named by their positions. An
    image that cannot be read gets an error instead of a label.
    """
    names = [str(one) if isinstance(one, Path) else f"image {i}" for i, one in enumerate(images)]

    def read(row: int, side: int | None) -> NDArray[np.uint8]:
        image = images[row]
        return read_image(image, side) if isinstance(image, Path) else pixels_of(image, row)

    def classify(batch: Batch) -> Answers | None:
        return None if batch.images is None else predictor.classify(batch.images)

    answers: list[Answer] = []
    options = ExtractOptions(on_error="skip")
    batches = work_on_images(read, range(len(images)), predictor, classify, options)
    with closing(batches), progress.task("predict", len(images)) as task:
        for batch, classified in batches:
            found = {row: Answer(names[row], error=why) for row, why in batch.skipped.items()}
            if classified is not None:
                labels, *graded = classified
                for number, (row, label) in enumerate(zip(batch.read, labels, strict=True)):
                    score, probability = (
                        None if part is None else round(float(part[number, label]), 6)
                        for part in graded
                    )
                    name = predictor.classes[label]
                    found[row] = Answer(names[row], name, probability, score)
            answers += [found[row] for row in batch.rows]
            task.advance(len(batch.rows))
    return answers


def images_of(images: Any) -> list[Any]:
    """Return files, those in folders and their subfolders, and images in memory as they are.

    Raises
    ------
    DataError
        If a folder holds none.
    """
    alone = isinstance(images, str | PathLike | Image.Image)
    alone |= isinstance(images, np.ndarray) and images.ndim in (2, 3)
    if not alone and not isinstance(images, Iterable):
        expected = "paths, folders, PIL images or arrays of uint8; one, or a list of them"
        raise UsageError("These are no images.", expected=expected, got=repr(images))
    found: list[Any] = []
    for image in [images] if alone else images:
        if not isinstance(image, str | PathLike):
            found.append(image)
            continue
        path = Path(image)
        inside = [path / name for name in images_below(path)] if path.is_dir() else [path]
        if not inside:
            raise DataError("There are no images in the folder.", where=path)
        found += inside
    return found


def write_answers(answers: Sequence[Answer], out: Path, *, force: bool = False) -> None:
    """Write answers as ``.csv``, ``.parquet`` or ``.json``.

    Raises
    ------
    UsageError
        For another ending, and for a file that featpipe did not write, unless ``force``.
    """
    rows = [asdict(answer) for answer in answers]
    for row in rows:  # a file's name need not be text
        row["image"] = os.fsencode(row["image"]).decode("utf-8", "backslashreplace")
    header = ",".join(asdict(Answer("")))
    marks = {".csv": header, ".parquet": _WRITTEN, ".json": _WRITTEN}
    if out.suffix not in marks:
        expected = f"a name that ends in {', '.join(marks)}"
        raise UsageError(f"Cannot write to {out.name!r}.", expected=expected)
    if out.suffix == ".parquet":
        check_installed("pyarrow", "parquet")
    refuse_foreign(out, marks[out.suffix].encode(), force=force)
    with atomic_write(out) as temporary:
        if out.suffix == ".json":
            content = {"written by": _WRITTEN, "answers": rows}
            text = json.dumps(content, indent=1, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8")
            return
        table = pd.DataFrame(rows, columns=header.split(","))
        table = table.astype({"probability": float, "score": float})
        if out.suffix == ".csv":
            neutralised(table).to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.attrs["written by"] = _WRITTEN  # pandas puts it into the file's metadata
            table.to_parquet(temporary, index=False)
