"""The file of a trained classifier.

A linear one is stored as numbers (``.npz``), any other as skops stores it; neither file holds a
pickle or runs code, and what was read is tried out before it is used.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import ResultError
from featpipe.evaluation.classifier import (
    LinearClassifier,
    SoftmaxClassifier,
    linear_form,
    predict_with_scores,
    to_probabilities,
)
from featpipe.evaluation.result import Result
from featpipe.fingerprint import check_archive, seal_archive
from featpipe.lazy import Lazy
from featpipe.workspace import atomic_write

# They take seconds to import, which linear classifiers do not need.
skops_io, sklearn_base, trees = Lazy("skops.io"), Lazy("sklearn.base"), Lazy("sklearn.tree._tree")

# In addition to what skops trusts: plain classes, and trees, whose nodes are checked before use.
_TRUSTED = [
    "featpipe.probes.estimators.NearestMean",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
]
_BOOSTING, _FOREST = "sklearn.ensemble._gb", "sklearn.ensemble._forest"

ENDINGS = (".npz", ".skops")
_FORMAT = 2  # 1 is that of featpipe 0.1


@dataclass(frozen=True)
class TrainedModel:
    """A classifier with what is needed to use it on new images; it must be able to answer."""

    estimator: Any  # fitted, as scikit-learn's are: features → classes
    classes: tuple[str, ...]
    backbone: dict[str, Any]  # its description, as in the store's manifest
    layer: str
    title: str
    weights: str  # where the weights came from when the features were made
    request: dict[str, Any]  # options of the extraction that change the preprocessing
    temperature: float | None = None  # of its probabilities; None if they are not calibrated
    model: str = ""  # what the backbone was asked for as, where that is more than its name

    def __post_init__(self) -> None:
        for item in ("layer", "title", "model", "weights"):
            if not isinstance(getattr(self, item), str):
                raise TypeError(f"its {item} is not a string")
        if not (self.temperature is None or 0 < self.temperature < math.inf):
            raise ValueError("its temperature is not a positive number")
        if not isinstance(self.backbone, dict):
            raise TypeError("its backbone is not described")
        if not all(isinstance(name, str) for name in self.classes):
            raise TypeError("its classes have no names")
        places = range(len(self.classes))
        if not set(np.asarray(self.estimator.classes_).tolist()) <= {*places}:
            raise ValueError("its numbers do not fit together")
        row = np.zeros((1, self.estimator.n_features_in_), np.float32)
        predicted, scores, _ = predict_with_scores(self.estimator, row, len(self.classes))
        if predicted[0] not in places or not (scores is None or np.isfinite(scores).all()):
            raise ValueError("its answers are not classes")

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
    """A classifier that skops cannot store, or only in a way that could run code when loaded."""


def save_model(path: Path, estimator: Any, result: Result) -> Path:
    """Write a classifier and what describes its features; return ``path`` with its ending.

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
                skops_io.dump({**about, "estimator": estimator}, temporary)
                foreign = untrusted_types(temporary)
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
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, as no model of featpipe is")
        bundle: Any = None
        foreign = [] if path.suffix == ".npz" else untrusted_types(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                bundle = json.loads(arrays["about"].tobytes())
                kind = SoftmaxClassifier if bundle["softmax"] else LinearClassifier
                weight, bias, known = (arrays[name] for name in ("weight", "bias", "classes_"))
                bundle["estimator"] = kind(weight, bias, known, bool(arrays["unit"]))
        elif not foreign:
            bundle = load_skops(path)
        version = bundle.get("featpipe_model") if isinstance(bundle, dict) else None
        if version == 1 or foreign == ["featpipe.probes.neighbours.NearestMean"]:
            what, advice = "This is a model of featpipe 0.1.", "train it again, then delete it"
            raise ResultError(what, where=path, next_step=advice)
        if foreign:
            what = "The model holds types that are not trusted, so it is not loaded."
            raise ResultError(what, where=path, got=", ".join(foreign))
        parts = {item.name: item.default is MISSING for item in fields(TrainedModel)}
        required = {name for name, needed in parts.items() if needed}
        if version != _FORMAT or not required <= set(bundle):
            raise ResultError("This is not a model of featpipe.", where=path)
        check_archive(path)
        facts = {name: bundle[name] for name in parts if name in bundle}
        return TrainedModel(**{**facts, "classes": tuple(facts["classes"])})
    except ResultError:
        raise
    except Exception as error:  # whatever NumPy, skops and estimators raise on damaged files
        what = f"The model cannot be read: {str(error).partition(chr(10))[0][:200]}"
        advice = "train it again: the same command with --force"
        raise ResultError(what, where=path, next_step=advice) from error


def untrusted_types(path: Path) -> list[str]:
    """Return the types in a file of skops that are not loaded."""
    return sorted(set(skops_io.get_untrusted_types(file=path)) - set(_TRUSTED))


def load_skops(path: Path) -> Any:
    """Return what is in a file of skops; an exception of any kind if it is damaged."""
    content = skops_io.load(path, trusted=_TRUSTED)
    _check_arrays(content)
    return content


def _check_arrays(part: Any, owners: tuple[Any, ...] = ()) -> None:
    """Refuse what compiled code of scikit-learn would follow blindly, out of its arrays.

    No node of a tree may lead out of it, or back, or ask for a feature that it is not given.
    ``owners`` are the estimators around a part. Each checks the features that it gets, unless its
    methods are replaced, but boosting gives them to its trees, and forests used to, unchecked.
    """
    if isinstance(part, trees.Tree):
        unchecked = [one for one in owners if type(one).__module__ in (_BOOSTING, _FOREST)]
        takers = (*unchecked, *owners[-1:])
        width = min([part.n_features, *(one.n_features_in_ for one in takers)])
        left, right, nodes = part.children_left, part.children_right, np.arange(part.node_count)
        below = (nodes < left) & (left < len(nodes)) & (nodes < right) & (right < len(nodes))
        known = (part.feature >= 0) & (part.feature < width)
        if not len(nodes) or not (below & known)[left != -1].all():
            raise ValueError("a decision tree is damaged")
    elif isinstance(part, sklearn_base.BaseEstimator):
        if not _fits_together(part):
            raise ValueError(f"the numbers of its {type(part).__name__} do not fit together")
        for name, value in vars(part).items():
            if callable(getattr(type(part), name, None)):
                raise ValueError(f"{name}() of its {type(part).__name__} is replaced")
            # What boosting starts from is an estimator like any other.
            _check_arrays(value, owners if name in ("init", "init_") else (*owners, part))
    elif isinstance(part, dict):
        _check_arrays([*part, *part.values()], owners)
    elif isinstance(part, np.ndarray) and part.dtype == object:
        _check_arrays(part.ravel().tolist(), owners)
    elif isinstance(part, list | tuple | set | frozenset):
        for value in part:
            _check_arrays(value, owners)
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        _check_arrays(vars(part), owners)


def _fits_together(one: Any) -> bool:
    """Return whether arrays of boosting, neighbours and kernel machines have the sizes assumed.

    Unfitted estimators, which ensembles keep for copies, have none.
    """
    module, n_classes = type(one).__module__, len(getattr(one, "classes_", ()))
    if module == _BOOSTING and hasattr(one, "estimators_"):
        columns = n_classes if n_classes > 2 else 1
        start = len(getattr(one.init_, "classes_", one.classes_)) == n_classes
        return start and one.n_trees_per_iteration_ == columns == one.estimators_.shape[1]
    if module.startswith("sklearn.neighbors.") and hasattr(one, "_y"):
        labels = one._y
        return len(labels) == one.n_samples_fit_ and set(np.unique(labels)) <= {*range(n_classes)}
    if module == "sklearn.svm._classes" and hasattr(one, "_dual_coef_"):
        n, pairs = len(one.support_), n_classes * (n_classes - 1) // 2
        shapes = one._dual_coef_.shape, one._intercept_.shape, one._n_support.shape
        expected = (n_classes - 1, n), (pairs,), (n_classes,)
        return shapes == expected and len(one.support_vectors_) == n == one._n_support.sum()
    return True
