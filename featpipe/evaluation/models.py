"""Trained classifiers on the disk: skops files, which hold no pickle and run no code."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator
from skops import io as skops_io  # imports all of scikit-learn: seconds

from featpipe.errors import ResultError
from featpipe.evaluation.result import Result
from featpipe.workspace import atomic_write

_FORMAT = 2  # 1 is that of featpipe 0.1
_OURS = ["featpipe.probes.estimators.NearestMean"]  # the rest are scikit-learn's and numpy's own


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


def save_model(path: Path, estimator: BaseEstimator, result: Result) -> int:
    """Write a classifier and what it needs of its features; return the size in bytes."""
    store = result.stores[0]
    bundle = {
        "featpipe_model": _FORMAT,
        "estimator": estimator,
        "classes": list(result.dataset["classes"]),
        "backbone": store["manifest"]["backbone"],
        "layer": store["layer"],
        "title": result.title,
        "weights": store["run"].get("weights", "DEFAULT"),
        "request": store["run"].get("request", {}),
    }
    with atomic_write(path) as temporary:
        skops_io.dump(bundle, temporary)
    return path.stat().st_size


def load_model(path: Path) -> TrainedModel:
    """Read a classifier; only types of scikit-learn, numpy and featpipe are loaded."""
    if not path.is_file():
        raise ResultError("There is no such model.", where=path, next_step="featpipe results")
    try:
        foreign = sorted(set(skops_io.get_untrusted_types(file=path)) - set(_OURS))
        bundle = None if foreign else skops_io.load(path, trusted=_OURS)
    except Exception as error:  # skops raises whatever its parts raise on damaged files
        raise ResultError(f"The model cannot be read: {error}", where=path) from error
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
    parts = [item.name for item in fields(TrainedModel)]
    if not isinstance(bundle, dict) or version != _FORMAT or not set(parts) <= set(bundle):
        raise ResultError("This is not a model of featpipe.", where=path)
    return TrainedModel(
        **{name: bundle[name] for name in parts} | {"classes": tuple(bundle["classes"])}
    )
