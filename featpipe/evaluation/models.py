"""A trained classifier: its answers with their scores, and the file that keeps it.

Linear ones are kept as numbers (``.npz``), all others as skops keeps them; neither file holds a
pickle or runs code, and what was read is tried out before it is used.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import ResultError
from featpipe.evaluation import skops_file
from featpipe.evaluation.linear import LinearClassifier, SoftmaxClassifier, linear_form, softmax
from featpipe.evaluation.result import Result
from featpipe.fingerprint import check_archive, seal_archive
from featpipe.workspace import atomic_write

ENDINGS = (".npz", ".skops")
LEAST = 1e-6  # a probability of zero, of which there is no logarithm
_FORMAT = 2  # 1 is that of featpipe 0.1


class Classifier(Protocol):
    """What is asked of a fitted estimator; some have ``decision_function``, ``predict_proba``."""

    classes_: Any
    n_features_in_: int

    def predict(self, X: Any, /) -> Any:
        """Return the predicted classes."""


def predict_with_scores(
    estimator: Any, X: NDArray[Any], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, bool]:
    """Return predictions, a score for every class of the dataset, and whether it is a probability.

    Classes that no training row had get the lowest score there is, or probability zero.
    """
    predicted = estimator.predict(X).astype(np.int64)
    probabilities = hasattr(estimator, "predict_proba")
    if probabilities:
        known = estimator.predict_proba(X)
    elif hasattr(estimator, "decision_function"):
        known = estimator.decision_function(X)
        if known.ndim == 1:  # scikit-learn gives one column for two classes
            known = np.column_stack([-known, known])
    else:
        return predicted, None, False
    lowest = 0.0 if probabilities else float(known.min()) - 1.0
    scores = np.full((len(known), n_classes), lowest, dtype=np.float32)
    scores[:, estimator.classes_] = known
    return predicted, scores, probabilities


def as_logits(scores: NDArray[Any], *, graded: bool) -> NDArray[np.float64]:
    """Return scores, or the logarithms of what are probabilities."""
    values = np.asarray(scores, dtype=np.float64)
    return np.log(np.maximum(values, LEAST)) if graded else values


def to_probabilities(
    scores: NDArray[Any], known: NDArray[np.int64], temperature: float, *, graded: bool
) -> NDArray[np.float64]:
    """Return a probability for every class, of shape (n, classes); those not ``known`` have 0."""
    logits = as_logits(scores[:, known], graded=graded) / temperature
    found = np.zeros(scores.shape)
    found[:, known] = softmax(logits)
    return found


@dataclass(frozen=True)
class TrainedModel:
    """A classifier with what is needed to use it on new images."""

    estimator: Classifier  # features → classes
    classes: tuple[str, ...]
    backbone: dict[str, Any]  # its description, as in the store's manifest
    layer: str
    title: str
    weights: str  # where the weights came from when the features were made
    request: dict[str, Any]  # options of the extraction that change the preprocessing
    temperature: float | None = None  # of its probabilities; None if they are not calibrated
    model: str = ""  # what the backbone was asked for as, where that is more than its name

    def answer(
        self, features: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, NDArray[np.float64] | None]:
        """Return labels (n,); scores and calibrated probabilities (n, classes), or ``None``."""
        predicted, scores, graded = predict_with_scores(self.estimator, features, len(self.classes))
        if scores is None or self.temperature is None:
            return predicted, scores, None
        known = np.asarray(self.estimator.classes_)
        found = to_probabilities(scores, known, self.temperature, graded=graded)
        return predicted, scores, found


class UnsafeModelError(ResultError):
    """A classifier that skops cannot keep, or only in a way that could run code when loaded."""


def save_model(path: Path, estimator: Any, result: Result) -> Path:
    """Write a classifier and what it needs of its features; return ``path`` with its ending.

    Raises
    ------
    UnsafeModelError
        If it could not be loaded again by :func:`load_model`; then nothing is written.
    """
    store = result.stores[0]
    about = {
        "featpipe_model": _FORMAT,
        "classes": list(result.dataset["classes"]),
        "backbone": store["manifest"]["backbone"],
        "layer": store["layer"],
        "title": result.title,
        "weights": store["run"].get("weights", "DEFAULT"),
        "request": store["run"].get("request", {}),
        "temperature": result.extra.get("calibration", {}).get("temperature"),
        "model": store["run"].get("model", ""),
    }
    linear = linear_form(estimator)
    written, other = (path.with_name(path.name + end) for end in ENDINGS[:: 1 if linear else -1])
    with atomic_write(written) as temporary:
        if linear:
            about["softmax"] = isinstance(linear, SoftmaxClassifier)
            text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
            with temporary.open("wb") as stream:
                np.savez(stream, about=text, **vars(linear))
        else:
            try:
                foreign = skops_file.dump(temporary, {**about, "estimator": estimator})
            except (TypeError, ValueError, AttributeError, LookupError) as error:
                raise UnsafeModelError(f"The model is not saved: {error}") from error
            if foreign:
                raise UnsafeModelError(
                    "The model is not saved: a file of skops would hold types that it does not "
                    f"trust ({', '.join(foreign)})."
                )
        seal_archive(temporary)
    other.unlink(missing_ok=True)
    return written


def load_model(path: Path) -> TrainedModel:
    """Read a classifier; only numbers, or types of scikit-learn, numpy and featpipe, are loaded.

    Raises
    ------
    ResultError
        If the file is missing, damaged, of featpipe 0.1, or holds anything else.
    """
    if not path.is_file():
        raise ResultError("There is no such model.", where=path, next_step="featpipe results")
    foreign: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, as no model of featpipe is")
        if path.suffix == ".npz":
            bundle = _read_linear(path)
        else:
            bundle, foreign = skops_file.load(path)
        version = bundle.get("featpipe_model") if isinstance(bundle, dict) else None
        if version == 1 or foreign == ["featpipe.probes.neighbours.NearestMean"]:
            what, advice = (
                "This model was written by featpipe 0.1.",
                "train it again, then delete it",
            )
            raise ResultError(what, where=path, next_step=advice)
        if foreign:
            what = "The model holds types that are not trusted, so it is not loaded."
            raise ResultError(what, where=path, got=", ".join(foreign))
        parts = {item.name for item in fields(TrainedModel)}
        required = {item.name for item in fields(TrainedModel) if item.default is MISSING}
        if version != _FORMAT or not required <= set(bundle):
            raise ResultError("This is not a model of featpipe.", where=path)
        check_archive(path)
        known = {name: bundle[name] for name in parts & set(bundle)}
        model = TrainedModel(**{**known, "classes": tuple(bundle["classes"])})
        _try_out(model)
    except ResultError:
        raise
    except Exception as error:  # whatever NumPy, skops and estimators raise on damaged files
        what = f"The model cannot be read: {str(error).partition(chr(10))[0][:200]}"
        advice = "train it again: the same command with --force"
        raise ResultError(what, where=path, next_step=advice) from error
    return model


def _read_linear(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        about: dict[str, Any] = json.loads(arrays["about"].tobytes())
        kind = SoftmaxClassifier if about["softmax"] else LinearClassifier
        weight, bias, known = (arrays[name] for name in ("weight", "bias", "classes_"))
        about["estimator"] = kind(weight, bias, known, bool(arrays["unit"]))
    places = range(len(about["classes"]))
    if not (
        weight.shape == (len(weight), len(known)) == (len(weight), *bias.shape)
        and weight.dtype == bias.dtype == np.float64
        and known.dtype == np.int64
        and set(known.tolist()) <= {*places}
        and (np.diff(known) > 0).all()
    ):
        raise ValueError("its numbers do not fit together")
    return about


def _try_out(model: TrainedModel) -> None:
    """Raise whatever comes where a model cannot answer, or its facts are of other types."""
    for item in ("layer", "title", "model", "weights"):
        if not isinstance(getattr(model, item), str):
            raise TypeError(f"its {item} is no text")
    if not (model.temperature is None or 0 < model.temperature < math.inf):
        raise ValueError("its temperature is no positive number")
    if not isinstance(model.backbone, dict):
        raise TypeError("its backbone is not described")
    if not all(isinstance(name, str) for name in model.classes):
        raise TypeError("its classes have no names")
    row = np.zeros((1, model.estimator.n_features_in_), np.float32)
    predicted, scores, _ = predict_with_scores(model.estimator, row, len(model.classes))
    finite = scores is None or np.isfinite(scores).all()
    if not 0 <= predicted[0] < len(model.classes) or not finite:
        raise ValueError("its answers are no classes")
