"""From the predictions of all splits to a Result, its files and the summary in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from featpipe import fingerprint
from featpipe.evaluation.bootstrap import metric_intervals
from featpipe.evaluation.leaks import (
    account_of_leaks,
    contamination,
    note_of_leaks,
    note_of_repeats,
)
from featpipe.evaluation.metrics import (
    Predictions,
    classification_metrics,
    metrics_over_models,
)
from featpipe.evaluation.protocol import CHOSEN, Split, group_notes, grouped_by
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.fingerprint import FileHashes, of_file
from featpipe.provenance import environment, now
from featpipe.statistics.intervals import accuracy_interval, mean_sd, methods_interval
from featpipe.statistics.paired_tests import ONE_TRAINING_SET, SAME_TRAINING_SET, Answers
from featpipe.steps import Context, Outcome, Step
from featpipe.store import FeatureStore

# Ratio of the largest to the smallest class from which classes are called unbalanced; KEEL's
# collection of unbalanced data sets starts there (Alcalá-Fdez et al. 2011, J. Mult.-Valued Log. S.
# 17: 255–287).
IMBALANCE = 1.5
PARTS = ("search", "fit", "predict")  # of the seconds that a method takes
NOTHING_TRAINED = "nothing is trained: the interval of the accuracy holds for the method"
OTHER_ROWS = (
    "training and test images differ between the models; only models tested on the same images, "
    "as by --protocol folds, would tell the two effects apart"
)


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """What one model predicted for the n test rows of its split."""

    split: Split
    predicted: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32] | None = None  # (n, columns)
    probabilities: bool = False  # whether the scores are probabilities
    other: bool = False  # whether "other" may be predicted; its column is the last
    without_source: tuple[str, ...] | None = None  # classes that a label map cannot predict
    facts: dict[str, Any] = field(default_factory=dict)  # what else its record holds

    def named(self, table: PredictionTable) -> Predictions:
        """Return predictions of this method, or of all its models, with the names of classes."""
        how = {"other": self.other, "probabilities": self.probabilities}
        return Predictions.of_table(table, self.split.test.store.classes, **how)

    def record(self) -> dict[str, Any]:
        """Return the entry of this split in the result."""
        split = self.split
        predictions = self.named(prediction_table([self]))
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
    """The output of a method on all splits, before it becomes a Result."""

    title: str  # its name in tables, unless the step has a title
    splits: list[SplitPredictions]
    # search_seconds, fit_seconds, predict_seconds, parameters_trained and what else it took
    cost: dict[str, Any]
    notes: list[str]
    extra: dict[str, Any]
    estimator: BaseEstimator | None = None  # of the first split, where it can be saved
    trains: bool = True  # whether its answers depend on training rows at all


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


def training_sets(splits: Sequence[Split]) -> dict[str, Any]:
    """Return what the statistics need to know about the training rows, ready for JSON.

    ``sets`` are fingerprints of the images that trained each model, equal for equal images whatever
    the features; ``rows`` their mean number; ``overlap`` the mean of |s ∩ t| / √(|s||t|) over pairs
    of different sets, 0 where there is no pair; ``own_pool`` whether rows that test one model train
    another.
    """
    store = splits[0].train.store
    images = store.manifest["dataset"]["fingerprint"]
    sets = [fingerprint.of_mapping({"images": images, "ids": s.train.ids}) for s in splits]
    used = np.zeros((len(splits), len(store)), dtype=np.float32)
    for one, split in zip(used, splits, strict=True):
        one[split.train.rows] = 1
    different = used[np.unique(sets, return_index=True)[1]]
    sizes = different.sum(axis=1, dtype=np.float64)
    shared = different @ different.T / np.sqrt(np.outer(sizes, sizes))
    pairs = shared[np.triu_indices(len(shared), 1)]
    return {
        "sets": sets,
        "rows": float(np.mean([len(split.train) for split in splits])),
        "overlap": float(pairs.mean()) if len(pairs) else 0.0,
        "own_pool": any(s.test.store is store and used[:, s.test.rows].any() for s in splits),
    }


def summarise(
    records: Sequence[dict[str, Any]],
    table: PredictionTable,
    pooled: Predictions,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return metrics over all splits, with intervals and the spread over models.

    ``training`` is that of :func:`training_sets`; None if nothing is trained, so that models do not
    differ.
    """
    accuracy = accuracy_interval(table.correct, table.row)
    values, spread = records[0]["metrics"], dict[str, Any]()
    if len(records) > 1:
        values, spread = metrics_over_models([record["metrics"] for record in records], pooled)
        values["accuracy"] = accuracy.value
    answers = Answers.of(table.row, table.correct, table.split, training)
    methods, reason = None, None
    parts: dict[str, float | None] = {"training_sd": None, "few_rows_sd": None}  # of the deviation
    if (sets := answers.training) is None:
        reason, spread = NOTHING_TRAINED, {}
    elif sets.distinct < 2:
        reason = ONE_TRAINING_SET if len(sets.sets) == 1 else SAME_TRAINING_SET
    else:
        keys, shares = answers.by_training_set
        interval, variance = methods_interval(shares, *np.divmod(keys, sets.distinct), sets)
        methods = interval.as_dict()
        parts = {"training_sd": variance.training_sd, "few_rows_sd": variance.few_rows_sd}
    if "accuracy" in spread:
        inseparable = OTHER_ROWS if methods and parts["training_sd"] is None else None
        spread["accuracy"] |= {**parts, "reason": reason or inseparable}
    intervals = metric_intervals(pooled, table.row, table.split, values)
    return {
        "accuracy": accuracy.as_dict(),
        "accuracy_methods": methods,  # with respect to other training images, too
        "reason_methods": reason,  # why it is not known
        "metrics": values,
        "intervals": {name: interval.as_dict() for name, interval in intervals.items()},
        "spread": spread,
    }


def low_shot_curve(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return accuracy against labelled images per class: mean, deviation and extremes of draws."""
    sizes = sorted({r["train_per_class"] for r in records if r["train_per_class"] is not None})
    curve = []
    for size in sizes:
        values = [r["metrics"]["accuracy"] for r in records if r["train_per_class"] == size]
        curve.append({"train_per_class": size, "accuracies": values, **mean_sd(values)})
    return curve


def build_result(
    step: Step, key: str, protocol: str, output: MethodOutput, context: Context
) -> tuple[Result, PredictionTable]:
    """Make the Result of a method, and the table of predictions to store with it.

    ``key`` is the fingerprint of everything that determines the numbers; ``protocol`` is never
    ``"auto"``.
    """
    settings, first = step.settings(), output.splits[0]
    stores = list({s.path: s for s in (first.split.train.store, first.split.test.store)}.values())
    test, manifest = first.split.test.store, stores[0].manifest
    records, extra = [one.record() for one in output.splits], dict(output.extra)
    table, training = prediction_table(output.splits), None
    curve = low_shot_curve(records)
    largest = curve[-1]["train_per_class"] if curve else None  # the headline of a low-shot result
    numbers = [i for i, record in enumerate(records) if record["train_per_class"] == largest]
    headline = [output.splits[i] for i in numbers]
    splits = [one.split for one in headline]
    if curve:
        extra["low_shot"], table = curve, table.only_splits(numbers)
    if output.trains:
        extra["leaks"] = account_of_leaks(splits, [one.predicted for one in headline])
        training = {"splits": numbers, **training_sets(splits)}
    if context.recipe is not None:
        extra["recipe"] = dict(context.recipe)
    start = extra.get("network") or stores[0].manifest["backbone"]
    if seen := contamination(start, test.manifest["dataset"]):
        extra["contamination"] = seen
    by = grouped_by(test)
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
        protocol={
            "name": protocol,
            "splits": len(records),
            "n_test": len(table.ids),
            "training": training,
            **({"grouped_by": by} if by else {}),
        },
        splits=records,
        summary=summarise([records[i] for i in numbers], table, first.named(table), training),
        cost=_cost(output, stores if output.trains else [test]),
        stores=[_described(store, settings.get("layer")) for store in stores],
        environment=environment(),
        created=now(),
        command=context.command,
        notes=_notes(output, headline, settings, protocol, extra),
        extra=extra,
    )
    return result, table


def _described(store: FeatureStore, layer: str | None) -> dict[str, Any]:
    """Return the entry of a store in a result."""
    facts = {name: getattr(store, name) for name in ("fingerprint", "manifest", "run")}
    return {"path": str(store.path), "layer": layer or store.layers[0], **facts}


def _cost(output: MethodOutput, stores: Sequence[FeatureStore]) -> dict[str, Any]:
    """Add the cost of the features; a store that methods share counts in full for each of them."""
    extraction = sum(store.run["seconds"] for store in stores)
    return {
        **output.cost,
        "extract_seconds": extraction,
        "total_seconds": extraction + sum(output.cost[f"{part}_seconds"] for part in PARTS),
        "store_bytes": sum(store.n_bytes for store in stores),
    }


def _notes(
    output: MethodOutput,
    headline: Sequence[SplitPredictions],
    settings: Mapping[str, Any],
    protocol: str,
    extra: Mapping[str, Any],
) -> list[str]:
    """Return what readers of the numbers must know, leaks first."""
    leaks = extra.get("leaks")
    notes = [note_of_leaks(leaks)]
    if settings.get("protocol") == "auto":
        there = "there is a test split" if protocol == "split" else "there is no test split"
        notes.append(f"{CHOSEN}: {protocol}, because {there}.")
    notes += [*output.notes, *group_notes([one.split for one in output.splits])]
    notes.append(note_of_repeats(leaks))
    if output.trains:
        ratio = imbalance(np.bincount(np.concatenate([s.split.train.labels for s in headline])))
        if ratio >= IMBALANCE:
            unweighted = settings.get("class_weight") == "none"
            advice = ", --class-weight balanced in training" * unweighted
            notes.append(
                f"Unbalanced training rows: the largest class has {ratio:.1f} times the rows of "
                f"the smallest. Balanced accuracy gives every class the same weight{advice}."
            )
    return [note for note in (*notes, extra.get("contamination")) if note]


def imbalance(counts: ArrayLike) -> float:
    """Return the ratio of the largest to the smallest class, of those that have rows."""
    found = np.asarray(counts)[np.asarray(counts) > 0]
    return float(found.max() / found.min())


def save_result(
    result: Result, path: Path, table: PredictionTable, model: Path | None = None
) -> None:
    """Write the predictions first and the JSON last: a result that exists has all its files.

    The JSON holds the digests of the predictions and of the ``model``, which exists already; a
    network has a JSON file of its own.
    """
    files = {"predictions": path.with_name(f"{path.stem}.predictions.npz")}
    if model is not None:
        files["model"] = model
        if model.suffix == ".safetensors":  # that of a network
            files["head"] = model.with_suffix(".json")
    table.save(files["predictions"])
    result.files = {kind: file.name for kind, file in files.items()}
    result.digests = {kind: of_file(file) for kind, file in files.items()}
    result.save(path)


def complete_result(
    path: Path, models: Path | None = None, hashes: FileHashes | None = None
) -> Result | None:
    """Return the result at a path if it, its predictions and its model are all there.

    ``models`` is the folder of the model; without it, none is asked for, nor is one that could not
    be saved. A file that was changed after it was written is a ``ResultError``: nothing damaged is
    up to date.
    """
    if not path.exists():
        return None
    result = Result.load(path)
    saved = models is None or "model" in result.files or "not_saved" in result.extra
    if "predictions" not in result.files or not saved:
        return None
    files = {k: models / f for k, f in result.files.items() if models and k != "predictions"}
    if not all(file.exists() for file in (result.predictions_path, *files.values())):
        return None
    for kind, file in files.items():
        result.check_file(kind, file, hashes)
    result.predictions()
    return result


def renamed(result: Result, title: str | None, default: str) -> Result:
    """Give an existing result a new title; nothing is computed again for it."""
    if result.path is not None and result.settings["title"] != title:
        result.settings["title"], result.title = title, title or default
        result.save(result.path)
    return result


def outcome_of(result: Result, status: str) -> Outcome:
    """Return what was measured, as text for the terminal and as data."""
    summary = result.summary
    accuracy, metrics = summary["accuracy"], summary["metrics"]
    spread, methods = summary["spread"].get("accuracy"), summary["accuracy_methods"]
    text = f"{status}: {result.title}: accuracy {_with_limits(accuracy)}"
    if imbalance([entry["support"] for entry in metrics["per_class"]]) >= IMBALANCE:
        text += f", balanced {100 * metrics['balanced_accuracy']:.2f} %"
    text += f" ({result.protocol['n_test']} test rows, {result.protocol['name']})"
    if spread is not None:
        text += f"\n  ± {100 * spread['sd']:.2f} points over {spread['n']} models"
        parts = spread["reason"]
        if spread["training_sd"] is not None:
            parts = f"± {100 * spread['training_sd']:.2f} from training images, "
            parts += f"± {100 * spread['few_rows_sd']:.2f} from few test rows"
        text += f" ({parts})"
    if methods is not None:
        text += f"\n  with other training images, too: {_with_limits(methods)}"
    leaked = note_of_leaks(result.extra.get("leaks"))
    said = [f"  {'warning' if note == leaked else 'note'}: {note}" for note in result.notes]
    lines = [text, *said, f"  → {result.path}"]
    facts = {
        "title": result.title,
        "key": result.key,
        "protocol": result.protocol["name"],
        "accuracy": accuracy,
        "accuracy_methods": methods,
        "metrics": _numbers(metrics),
        "intervals": summary["intervals"],
        "cost": _numbers(result.cost),
        "settings": result.settings,
        "spread": spread,
        "chosen": [split.get("chosen", {}) for split in result.splits],
    }
    if "history" in result.extra:
        facts["history"] = result.extra["history"]
    return Outcome(status, "\n".join(lines), (result.path,) if result.path else (), facts)


def _with_limits(interval: Mapping[str, float]) -> str:
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a single finite number."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
