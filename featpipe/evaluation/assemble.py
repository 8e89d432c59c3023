"""From the predictions of all splits to a Result, its files, and the line in the terminal."""

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
from featpipe.evaluation.contamination import contamination
from featpipe.evaluation.metrics import (
    Predictions,
    classification_metrics,
    metrics_from_confusion,
    reliability_curve,
)
from featpipe.evaluation.protocol import Split, group_notes, grouped_by
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.evaluation.screening import account_of_leaks, note_of_leaks, notes_of_repeats
from featpipe.fingerprint import FileHashes, of_file
from featpipe.provenance import environment, now
from featpipe.statistics.intervals import Interval, accuracy_interval, mean_sd, methods_interval
from featpipe.statistics.paired_tests import ONE_TRAINING_SET, SAME_TRAINING_SET, Answers
from featpipe.statistics.two_way import Variance
from featpipe.steps import Context, Outcome, Step
from featpipe.store import FeatureStore

# Ratio of the largest to the smallest class from which classes are called unbalanced; KEEL's
# collection of unbalanced data sets starts there (Alcalá-Fdez et al. 2011, J. Mult.-Valued Log. S.
# 17: 255–287).
IMBALANCE = 1.5
NOTHING_TRAINED = "nothing is trained: the interval of the accuracy holds for the method"
OTHER_ROWS = "models were tested on different rows, so the two cannot be told apart"


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
    """Return what statistics need to know of the training rows, ready for JSON.

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

    Counts and calibration are those of the pooled predictions: the few rows of a split leave noise
    in every bin, which averaging would keep. Metrics of a ranking are averaged over the splits,
    because scores of different models have no common scale.

    ``training`` is what :func:`training_sets` says of the splits; None where nothing is trained,
    so that models do not differ.
    """
    metrics = [record["metrics"] for record in records]
    accuracy, values = accuracy_interval(table.correct, table.row), metrics[0]
    spread: dict[str, Any] = {}
    if len(metrics) > 1:
        counts = np.sum([m["confusion"] for m in metrics], axis=0)
        values = metrics_from_confusion(counts, pooled.classes, pooled.other)
        values["accuracy"] = accuracy.value
        if pooled.confidence is not None:
            values["ece"] = reliability_curve(pooled)["ece"]
        undefined = metrics[0]["undefined"]
        for name in [k for k, v in metrics[0].items() if isinstance(v, float) or k in undefined]:
            each = [m[name] for m in metrics]
            lacking = sum(value is None for value in each)
            if not lacking:
                spread[name] = mean_sd(each).as_dict()
                values.setdefault(name, float(np.mean(each)))
            elif name not in values:
                values[name] = None
                why = next(m["undefined"][name] for m in metrics if m[name] is None)
                values["undefined"][name] = f"{why} (in {lacking} of {len(metrics)} splits)"
    intervals = metric_intervals(pooled, table.row, table.split, values)
    summary: dict[str, Any] = {
        "accuracy": accuracy.as_dict(),
        "accuracy_methods": None,  # with respect to other training images, too
        "reason_methods": None,  # why it is not known
        "metrics": values,
        "intervals": {name: interval.as_dict() for name, interval in intervals.items()},
        "spread": {} if training is None else spread,
    }
    both = _over_training_sets(table, training)
    parts: dict[str, Any] = {"training_sd": None, "few_rows_sd": None}  # of the deviation
    if isinstance(both, str):
        summary["reason_methods"] = parts["reason"] = both
    else:
        interval, variance = both
        summary["accuracy_methods"] = interval.as_dict()
        parts |= {"training_sd": variance.training_sd, "few_rows_sd": variance.few_rows_sd}
        parts["reason"] = OTHER_ROWS if variance.training_sd is None else None
    if "accuracy" in summary["spread"]:
        summary["spread"]["accuracy"] |= parts
    return summary


def _over_training_sets(
    table: PredictionTable, about: Mapping[str, Any] | None
) -> tuple[Interval, Variance] | str:
    """Return the interval of the accuracy over rows and training sets, or why there is none."""
    answers = Answers.of(table.row, table.correct, table.split, about)
    if (training := answers.training) is None:
        return NOTHING_TRAINED
    if training.distinct < 2:
        return ONE_TRAINING_SET if len(training.sets) == 1 else SAME_TRAINING_SET
    keys, shares = answers.by_training_set
    return methods_interval(shares, *np.divmod(keys, training.distinct), training)


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
    headline, extra, notes = list(range(len(records))), dict(output.extra), list(output.notes)
    if curve := low_shot_curve(records):  # the headline of a low-shot result is its largest N
        largest = curve[-1]["train_per_class"]
        headline = [i for i in headline if records[i]["train_per_class"] == largest]
        table = table.only_splits(headline)
        extra["low_shot"] = curve
    notes += group_notes([one.split for one in output.splits])
    training, leaked = None, ""
    if output.trains:
        splits = [output.splits[i].split for i in headline]
        leaks = account_of_leaks(splits, [output.splits[i].predicted for i in headline])
        extra["leaks"] = leaks
        if leaks is not None:
            notes += notes_of_repeats(leaks)
            leaked = note_of_leaks(leaks)
        if leaked:
            context.progress.note(f"warning: {leaked}")
        training = {"splits": headline, **training_sets(splits)}
        notes += _imbalance_note(splits, settings)
    pooled = Predictions.of_table(
        table, test.classes, other=first.other, probabilities=first.probabilities
    )
    if context.recipe is not None:
        extra["recipe"] = dict(context.recipe)
    start = extra.get("network") or stores[0].manifest["backbone"]
    if seen := contamination(start, test.manifest["dataset"]):
        extra["contamination"] = seen
        notes.append(seen)
    if settings.get("protocol") == "auto":
        there = "there is a store" if protocol == "split" else "there is no store"
        notes.insert(0, f"Protocol chosen automatically: {protocol}, since {there} of test rows.")
    if leaked:
        notes.insert(0, leaked)
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
            **({"grouped_by": by} if (by := grouped_by(test)) else {}),
        },
        splits=records,
        summary=summarise([records[i] for i in headline], table, pooled, training),
        cost=_cost(output, stores if output.trains else [test]),
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


def _cost(output: MethodOutput, stores: Sequence[FeatureStore]) -> dict[str, Any]:
    """Add what the features took, and the total from images to answers.

    A store that several methods share counts in full for each, as if it had been made for it alone.
    """
    extraction = sum(store.run["seconds"] for store in stores)
    parts = [output.cost[f"{part}_seconds"] for part in ("search", "fit", "predict")]
    return {
        **output.cost,
        "extract_seconds": extraction,
        "total_seconds": extraction + sum(parts),
        "store_bytes": sum(store.n_bytes for store in stores),
    }


def _imbalance_note(splits: Sequence[Split], settings: Mapping[str, Any]) -> list[str]:
    """Say where classes differ much in their number of training rows."""
    labels = np.concatenate([split.train.labels for split in splits])
    ratio = imbalance(np.bincount(labels))
    if ratio < IMBALANCE:
        return []
    advice = ", --class-weight balanced in training" * (settings.get("class_weight") == "none")
    return [
        f"Unbalanced training rows: the largest class has {ratio:.1f} times the rows of the "
        f"smallest. Balanced accuracy gives every class the same weight{advice}."
    ]


def imbalance(counts: ArrayLike) -> float:
    """Return the ratio of the largest to the smallest class, of those that have rows."""
    found = np.asarray(counts)[np.asarray(counts) > 0]
    return float(found.max() / found.min())


def save_result(
    result: Result, path: Path, table: PredictionTable, model: Path | None = None
) -> None:
    """Write the predictions first and the JSON last: a result that exists has all its files.

    The JSON has the digests of the predictions and of the ``model``, which is there already, with
    the JSON beside it if it is a network.
    """
    files = {"predictions": path.with_name(f"{path.stem}.predictions.npz")}
    files |= {} if model is None else _files_of(model)
    table.save(files["predictions"])
    result.files = {kind: file.name for kind, file in files.items()}
    result.digests = {kind: of_file(file) for kind, file in files.items()}
    result.save(path)


def complete_result(
    path: Path, models: Path | None = None, hashes: FileHashes | None = None
) -> Result | None:
    """Return the result at a path if it, its predictions and its model are all there.

    ``models`` is the folder of the model; without it, none is asked for.

    Raises
    ------
    ResultError
        If one of them was changed after it was written, or the accuracy is not that of the
        predictions: nothing that is damaged is up to date.
    """
    if not path.exists():
        return None
    result = Result.load(path)
    if "predictions" not in result.files or (models is not None and "model" not in result.files):
        return None
    folders = {"predictions": path.parent, "model": models, "head": models}
    files = {
        kind: folder / result.files[kind]
        for kind, folder in folders.items()
        if folder is not None and kind in result.files
    }
    if not all(file.exists() for file in files.values()):
        return None
    for kind, file in files.items():
        if kind != "predictions":
            result.check_file(kind, file, hashes)
    result.predictions()
    return result


def _files_of(model: Path) -> dict[str, Path]:
    """Return the files of a model: that of a network has a JSON beside it."""
    beside = {"head": model.with_suffix(".json")} if model.suffix == ".safetensors" else {}
    return {"model": model, **beside}


def renamed(result: Result, title: str | None, default: str) -> Result:
    """Give an existing result the title asked for; nothing is computed again for a name."""
    if result.path is not None and result.settings["title"] != title:
        result.settings["title"], result.title = title, title or default
        result.save(result.path)
    return result


def outcome_of(result: Result, status: str) -> Outcome:
    """Say in the terminal, and as data, what was measured."""
    summary = result.summary
    accuracy, metrics = summary["accuracy"], summary["metrics"]
    spread, methods = summary["spread"].get("accuracy"), summary["accuracy_methods"]
    text = f"{status}: {result.title}: accuracy {_with_limits(accuracy)}"
    if imbalance([entry["support"] for entry in metrics["per_class"]]) >= IMBALANCE:
        text += f", balanced {metrics['balanced_accuracy']:.4f}"
    text += f" ({result.protocol['n_test']} test rows, {result.protocol['name']})"
    if spread is not None:
        text += f"\n  ± {spread['sd']:.4f} over {spread['n']} models"
        if spread["training_sd"] is None:
            text += f" ({spread['reason']})"
        else:
            text += (
                f" (± {spread['training_sd']:.4f} from training images, "
                f"± {spread['few_rows_sd']:.4f} from few test rows)"
            )
    if methods is not None:
        text += f"\n  with other training images, too: {_with_limits(methods)}"
    lines = [text, *(f"  note: {note}" for note in result.notes), f"  → {result.path}"]
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
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a single finite number."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
