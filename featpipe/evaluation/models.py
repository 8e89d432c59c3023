"""A trained classifier: its answers with their scores, and the skops file that keeps it.

Such a file holds no pickle and runs no code; what was read is tried out before it is used.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.tree._tree import Tree

from featpipe.errors import ResultError
from featpipe.evaluation.result import Result
from featpipe.fingerprint import check_archive, seal_archive
from featpipe.probes.solvers import learners
from featpipe.workspace import atomic_write

_MODEL_FORMAT = 2  # 1 is that of featpipe 0.1
# Beside what skops trusts: plain classes, and trees, whose nodes are checked before they are used.
_TRUSTED = [
    "featpipe.probes.estimators.NearestMean",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
]


def predict_with_scores(
    estimator: BaseEstimator, X: NDArray[Any], n_classes: int
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


def n_parameters(estimator: BaseEstimator) -> int | None:
    """Return how many numbers a fitted classifier has learned: weights, biases, means.

    Neighbours learn none; of what learns in another way, such as a tree, the number is not known.
    """
    names = ("coef_", "intercept_", "means_")
    solvers = learners(estimator)
    found = [getattr(s, name).size for s in solvers for name in names if hasattr(s, name)]
    rows_only = all(hasattr(s, "n_samples_fit_") for s in solvers)
    return int(sum(found)) if found or rows_only else None


@dataclass(frozen=True)
class TrainedModel:
    """A classifier with what is needed to use it on new images."""

    estimator: BaseEstimator  # fitted pipeline: features → classes
    classes: tuple[str, ...]
    backbone: dict[str, Any]  # its description, as in the store's manifest
    layer: str
    title: str
    weights: str  # where the weights came from when the features were made
    request: dict[str, Any]  # options of the extraction that change the preprocessing
    temperature: float | None = None  # of its probabilities; None if they are not calibrated
    model: str = ""  # what the backbone was asked for as, where that is more than its name


class UnsafeModelError(ResultError):
    """A classifier that skops cannot keep, or only in a way that could run code when loaded."""


def save_model(path: Path, estimator: BaseEstimator, result: Result) -> int:
    """Write a classifier and what it needs of its features; return the size in bytes.

    Raises
    ------
    UnsafeModelError
        If it could not be loaded again by :func:`load_model`; then nothing is written.
    """
    store = result.stores[0]
    model = TrainedModel(
        estimator,
        classes=tuple(result.dataset["classes"]),
        backbone=store["manifest"]["backbone"],
        layer=store["layer"],
        title=result.title,
        weights=store["run"].get("weights", "DEFAULT"),
        request=store["run"].get("request", {}),
        temperature=result.extra.get("calibration", {}).get("temperature"),
        model=store["run"].get("model", ""),
    )
    from skops import io as skops_io  # noqa: PLC0415 - takes seconds

    with atomic_write(path) as temporary:
        try:
            skops_io.dump({"featpipe_model": _MODEL_FORMAT, **vars(model)}, temporary)
            foreign = _foreign_types(temporary)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise UnsafeModelError(f"The model is not saved: {error}") from error
        if foreign:
            raise UnsafeModelError(
                "The model is not saved: a file of skops would hold types that it does not trust "
                f"({', '.join(foreign)})."
            )
        seal_archive(temporary)
    return path.stat().st_size


def load_model(path: Path) -> TrainedModel:
    """Read a classifier; only types of scikit-learn, numpy and featpipe are loaded.

    Raises
    ------
    ResultError
        If the file is missing, damaged, of featpipe 0.1, or holds anything else.
    """
    from skops import io as skops_io  # noqa: PLC0415 - takes seconds

    if not path.is_file():
        raise ResultError("There is no such model.", where=path, next_step="featpipe results")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, as no model of featpipe is")
        foreign = _foreign_types(path)
        bundle = None if foreign else skops_io.load(path, trusted=_TRUSTED)
    except Exception as error:  # skops raises whatever its parts raise on damaged files
        raise _unreadable(path, error) from error
    version = bundle.get("featpipe_model") if isinstance(bundle, dict) else None
    if version == 1 or foreign == ["featpipe.probes.neighbours.NearestMean"]:
        raise ResultError(
            "This model was written by featpipe 0.1.",
            where=path,
            next_step="train it again, then delete this file",
        )
    if foreign:
        raise ResultError(
            "The model holds types that are not trusted, so it is not loaded.",
            where=path,
            got=", ".join(foreign),
        )
    parts = {item.name for item in fields(TrainedModel)}
    required = {item.name for item in fields(TrainedModel) if item.default is MISSING}
    if not isinstance(bundle, dict) or version != _MODEL_FORMAT or not required <= set(bundle):
        raise ResultError("This is not a model of featpipe.", where=path)
    model = TrainedModel(**{name: bundle[name] for name in parts & set(bundle)})
    try:
        check_archive(path)
        _try_out(model)
    except Exception as error:  # an estimator whose parts do not fit together may raise anything
        raise _unreadable(path, error) from error
    return model


def _foreign_types(path: Path) -> list[str]:
    """Return the types in a file that neither skops nor featpipe trusts."""
    from skops import io as skops_io  # noqa: PLC0415 - takes seconds

    return sorted(set(skops_io.get_untrusted_types(file=path)) - set(_TRUSTED))


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
    _check_trees(model.estimator)
    row = np.zeros((1, model.estimator.n_features_in_), np.float32)
    predicted, scores, _ = predict_with_scores(model.estimator, row, len(model.classes))
    finite = scores is None or np.isfinite(scores).all()
    if not 0 <= predicted[0] < len(model.classes) or not finite:
        raise ValueError("its answers are no classes")


def _check_trees(part: Any, owners: tuple[Any, ...] = ()) -> None:
    """Refuse decision trees whose nodes lead out of them, or back: they are followed blindly.

    ``owners`` are the estimators around a part. A tree asks for no feature that the one around it,
    or the ensemble around that one, does not take.
    """
    if isinstance(part, Tree):
        width = min([part.n_features, *(owner.n_features_in_ for owner in owners[-2:])])
        left, right, nodes = part.children_left, part.children_right, np.arange(part.node_count)
        below = (nodes < left) & (left < len(nodes)) & (nodes < right) & (right < len(nodes))
        known = (part.feature >= 0) & (part.feature < width)
        if not len(nodes) or not (below & known)[left != -1].all():
            raise ValueError("a decision tree is damaged")
    elif isinstance(part, BaseEstimator):
        for value in vars(part).values():
            _check_trees(value, (*owners, part))
    elif isinstance(part, dict):
        _check_trees(list(part.values()), owners)
    elif isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype == object):
        for value in part:
            _check_trees(value, owners)


def _unreadable(path: Path, error: Exception) -> ResultError:
    return ResultError(
        f"The model cannot be read: {str(error).partition(chr(10))[0][:200]}",
        where=path,
        next_step="train it again: the same command with --force",
    )
