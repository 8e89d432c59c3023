"""From the predictions of all splits to a Result, its files, and the line in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from featpipe.evaluation.metrics import (
    Predictions,
    classification_metrics,
    metrics_from_confusion,
)
from featpipe.evaluation.protocol import Split
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.fingerprint import FileHashes, of_file
from featpipe.provenance import environment, now
from featpipe.statistics.intervals import accuracy_interval, mean_sd
from featpipe.steps import Context, Outcome, Step


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """What one model predicted for the n test rows of its split."""

    split: Split
    predicted: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32] | None = None  # (n, columns)
    probabilities: bool = False  # whether the scores are probabilities
    other: bool = False  # whether "other" may be predicted; its column is the last
    without_source: tuple[str, ...] | None = None  # classes that a label map cannot predict
    facts: dict[str, Any] = field(default_factory=dict)  # what else is recorded of this split

    def record(self) -> dict[str, Any]:
        """Return the entry of this split in the result."""
        split = self.split
        predictions = Predictions(
            ids=np.array(split.test.ids),
            y_true=split.test.labels,
            y_pred=self.predicted,
            classes=split.test.store.classes,
            scores=None if self.probabilities else self.scores,
            probabilities=self.scores if self.probabilities else None,
            other=self.other,
        )
        return {
            "name": split.name,
            "n_train": len(split.train),
            "n_test": len(split.test),
            "train_per_class": split.train_per_class,
            "repeat": split.repeat,
            **self.facts,
            "metrics": classification_metrics(predictions, self.without_source),
        }


@dataclass(frozen=True, eq=False)
class MethodOutput:
    """What a method gave on all splits, before it becomes a Result."""

    title: str  # its name in tables, unless the step has a title
    splits: list[SplitPredictions]
    cost: dict[str, Any]  # train_seconds, predict_seconds, parameters_trained and what else it took
    notes: list[str]
    extra: dict[str, Any]
    estimator: BaseEstimator | None = None  # of the first split, where it can be saved


def prediction_table(splits: Sequence[SplitPredictions]) -> PredictionTable:
    """Join the predictions of all splits; a test row of several splits is stored once."""
    ids = np.concatenate([np.array(one.split.test.ids, dtype=np.str_) for one in splits])
    labels = np.concatenate([one.split.test.labels for one in splits])
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)  # the rows as they come, not by name
    scores = [one.scores for one in splits if one.scores is not None]
    return PredictionTable(
        ids=ids[first[order]],
        true=labels[first[order]].astype(np.int64),
        row=np.argsort(order)[place],
        split=np.repeat(np.arange(len(splits)), [len(one.predicted) for one in splits]),
        predicted=np.concatenate([one.predicted for one in splits]).astype(np.int64),
        scores=np.concatenate(scores).astype(np.float32) if len(scores) == len(splits) else None,
    )


def summarise(
    records: Sequence[dict[str, Any]], table: PredictionTable, classes: Sequence[str], other: bool
) -> dict[str, Any]:
    """Return metrics over all splits, with intervals and the spread over models.

    Counts are pooled over the splits. Metrics that need scores are averaged over them, because
    scores of different models have no common scale.
    """
    metrics = [record["metrics"] for record in records]
    summary: dict[str, Any] = {
        "accuracy": accuracy_interval(table.correct, table.row).as_dict(),
        "metrics": metrics[0],
        "spread": {},
    }
    if len(metrics) == 1:
        return summary
    counts = np.sum([m["confusion"] for m in metrics], axis=0)
    pooled = metrics_from_confusion(counts, classes, other)
    undefined = metrics[0]["undefined"]
    scalars = [k for k, v in metrics[0].items() if isinstance(v, float) or k in undefined]
    for name in scalars:
        values = [m[name] for m in metrics]
        lacking = sum(value is None for value in values)
        if not lacking:
            summary["spread"][name] = mean_sd(values).as_dict()
            pooled.setdefault(name, float(np.mean(values)))
        elif name not in pooled:
            pooled[name] = None
            why = next(m["undefined"][name] for m in metrics if m[name] is None)
            pooled["undefined"][name] = f"{why} (in {lacking} of {len(metrics)} splits)"
    summary["metrics"] = pooled
    return summary


def low_shot_curve(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return accuracy against labelled images per class: mean, deviation and extremes of draws."""
    sizes = sorted({r["train_per_class"] for r in records if r["train_per_class"] is not None})
    curve = []
    for size in sizes:
        values = [r["metrics"]["accuracy"] for r in records if r["train_per_class"] == size]
        curve.append({"train_per_class": size, "accuracies": values, **mean_sd(values).as_dict()})
    return curve


def build_result(
    step: Step, key: str, protocol: str, output: MethodOutput, context: Context
) -> tuple[Result, PredictionTable]:
    """Make the Result of a method, with the predictions that are stored beside it.

    ``key`` is the fingerprint of what the numbers follow from, ``protocol`` is never ``"auto"``.
    """
    settings, first = step.settings(), output.splits[0]
    stores = list({s.path: s for s in (first.split.train.store, first.split.test.store)}.values())
    test, manifest = first.split.test.store, stores[0].manifest
    table = prediction_table(output.splits)
    records = [one.record() for one in output.splits]
    headline, extra, notes = records, dict(output.extra), list(output.notes)
    if curve := low_shot_curve(records):  # the headline of a low-shot result is its largest N
        largest = curve[-1]["train_per_class"]
        headline = [r for r in records if r["train_per_class"] == largest]
        table = table.only_splits([i for i, r in enumerate(records) if r in headline])
        extra["low_shot"] = curve
    if context.recipe is not None:
        extra["recipe"] = dict(context.recipe)
    if settings.get("protocol") == "auto":
        there = "there is a store" if protocol == "split" else "there is no store"
        notes.insert(0, f"Protocol chosen automatically: {protocol}, since {there} of test rows.")
    result = Result(
        method=step.name,
        title=settings.get("title") or output.title,
        key=key,
        dataset={
            "name": manifest["dataset"]["name"],
            "classes": list(test.classes),
            "other": first.other,
            "test": test.manifest["dataset"],
        },
        settings=settings,
        protocol={"name": protocol, "splits": len(records), "n_test": len(table.ids)},
        splits=records,
        summary=summarise(headline, table, test.classes, first.other),
        cost={
            **output.cost,
            "extract_seconds": sum(store.run["seconds"] for store in stores),
            "store_bytes": sum(store.n_bytes for store in stores),
        },
        stores=[
            {
                "path": str(store.path),
                "fingerprint": store.fingerprint,
                "layer": settings.get("layer") or store.layers[0],
                "manifest": store.manifest,
                "run": store.run,
            }
            for store in stores
        ],
        environment=environment(),
        created=now(),
        command=context.command,
        notes=notes,
        extra=extra,
    )
    return result, table


def save_result(
    result: Result, path: Path, table: PredictionTable, model: Path | None = None
) -> None:
    """Write the predictions first and the JSON last: a result that exists has all its files.

    The JSON has the digests of the predictions and of the ``model``, which is there already.
    """
    files = {"predictions": path.with_name(f"{path.stem}.predictions.npz")}
    files |= {} if model is None else {"model": model}
    table.save(files["predictions"])
    result.files = {kind: file.name for kind, file in files.items()}
    result.digests = {kind: of_file(file) for kind, file in files.items()}
    result.save(path)


def complete_result(
    path: Path, model: Path | None = None, hashes: FileHashes | None = None
) -> Result | None:
    """Return the result at a path if it, its predictions and the model asked for are all there.

    Raises
    ------
    ResultError
        If one of them was changed after it was written, or the accuracy is not that of the
        predictions: nothing that is damaged is up to date.
    """
    if not path.exists() or not (model is None or model.exists()):
        return None
    result = Result.load(path)
    wanted = {"predictions", *(() if model is None else ("model",))}
    if not wanted <= result.files.keys():
        return None
    if not path.with_name(result.files["predictions"]).exists():
        return None
    if model is not None:
        result.check_file("model", model, hashes)
    result.predictions()
    return result


def renamed(result: Result, title: str | None, default: str) -> Result:
    """Give an existing result the title asked for; nothing is computed again for a name."""
    if result.path is not None and result.settings["title"] != title:
        result.settings["title"], result.title = title, title or default
        result.save(result.path)
    return result


def outcome_of(result: Result, status: str) -> Outcome:
    """Say in the terminal, and as data, what was measured."""
    accuracy, spread = result.summary["accuracy"], result.summary["spread"].get("accuracy")
    value, low, high = (accuracy[name] for name in ("value", "low", "high"))
    text = f"{status}: {result.title}: accuracy {value:.4f} [{low:.4f}, {high:.4f}]"
    if spread is not None and spread["sd"] is not None:
        text += f", {spread['mean']:.4f} ± {spread['sd']:.4f} over {spread['n']} models"
    text += f" ({result.protocol['n_test']} test rows, {result.protocol['name']})"
    lines = [text, *(f"  note: {note}" for note in result.notes), f"  → {result.path}"]
    facts = {
        "title": result.title,
        "key": result.key,
        "protocol": result.protocol["name"],
        "accuracy": accuracy,
        "metrics": _numbers(result.summary["metrics"]),
        "cost": _numbers(result.cost),
        "settings": result.settings,
        "spread": spread,
        "chosen": [split.get("chosen", {}) for split in result.splits],
    }
    if "history" in result.extra:
        facts["history"] = result.extra["history"]
    return Outcome(status, "\n".join(lines), (result.path,) if result.path else (), facts)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a single finite number."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
