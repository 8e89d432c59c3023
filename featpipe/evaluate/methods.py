"""What each method does with the splits: fit a probe, or map stored logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from featpipe.errors import StoreError
from featpipe.evaluate.assemble import Tested
from featpipe.evaluate.fitting import FitSettings, FittedSplit, fit_splits
from featpipe.evaluate.protocol import Split, low_shot
from featpipe.labelmap import LabelMap, SourceClasses, for_pair
from featpipe.probes import MappedClassifier, Probe, probe_of
from featpipe.probes.probe import n_parameters
from featpipe.steps.old import Context, ProbeStep, ZeroshotStep
from featpipe.store import FeatureStore


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a method gave on all splits, before it becomes a Result."""

    title: str
    tested: list[Tested]
    cost: dict[str, Any]
    notes: list[str]
    extra: dict[str, Any]
    model: FittedSplit | None = None


def run_probe(step: ProbeStep, splits: list[Split], context: Context) -> Evaluated:
    """Fit a probe on every split and test it once."""
    probe = probe_of(step)
    if step.train_per_class:
        splits = low_shot(splits, step.train_per_class, step.repeats, step.seed)
    settings = FitSettings(step.layer, step.validation, step.seed, context.jobs)
    with context.progress.task(f"{probe.title}", len(splits)) as task:
        fits = []
        for fit in fit_splits(splits, probe, settings):
            fits.append(fit)
            task.advance()
    tested = [
        Tested(split, fit.predicted, fit.scores, fit.probabilities, facts=_facts(fit))
        for split, fit in zip(splits, fits, strict=True)
    ]
    total = {part: sum(fit.seconds[part] for fit in fits) for part in fits[0].seconds}
    cost = {
        "train_seconds": total["search"] + total["fit"],
        "predict_seconds": total["predict"],
        "parameters_trained": n_parameters(fits[0].estimator),
    }
    few = f", {max(step.train_per_class)} per class" if step.train_per_class else ""
    notes = _probe_notes(probe, splits, fits)
    return Evaluated(probe.title + few, tested, cost, notes, {}, fits[0])


def _facts(fit: FittedSplit) -> dict[str, Any]:
    return {
        "chosen": fit.chosen,
        "search": fit.search,
        "converged": fit.converged,
        "seconds": fit.seconds,
    }


def _probe_notes(probe: Probe, splits: Sequence[Split], fits: Sequence[FittedSplit]) -> list[str]:
    """Say in words what a reader of the numbers must know."""
    notes = _row_notes(splits)
    stopped = sum(not fit.converged for fit in fits)
    if stopped:
        notes.append(
            f"The solver did not converge in {stopped} of {len(fits)} fits; "
            "raise --max-iter before trusting this number."
        )
    edges = sum(fit.chosen.get("at_edge", False) for fit in fits)
    if edges:
        notes.append(
            f"The chosen {probe.parameter} lies at the edge of the grid in {edges} of {len(fits)} "
            f"fits; a wider --{probe.parameter} may do better."
        )
    defaults = sum(str(fit.chosen.get("by", "")).startswith("default") for fit in fits)
    if defaults:
        notes.append(
            f"{probe.parameter} was not chosen but left at its default in {defaults} of "
            f"{len(fits)} fits: a class with a single training row leaves none to validate on."
        )
    return notes


def _row_notes(splits: Sequence[Split]) -> list[str]:
    notes = []
    stores = {id(s): s for split in splits for s in (split.train.store, split.test.store)}
    for store in stores.values():
        split = store.manifest["dataset"]["split"]
        unlabelled = int((store.labels < 0).sum())
        if unlabelled:
            notes.append(f"{unlabelled} unlabelled rows of {split} were left out.")
        if store.skipped:
            notes.append(f"{len(store.skipped)} unreadable images of {split} were left out.")
    classes = splits[0].test.store.classes
    for part, rows in (("training", splits[0].train), ("test", splits[0].test)):
        if not len(rows):  # nothing was to be trained
            continue
        absent = [classes[c] for c in range(len(classes)) if c not in set(rows.labels.tolist())]
        if absent:
            notes.append(f"No {part} row of: {', '.join(absent)}.")
    return notes


def run_zeroshot(step: ZeroshotStep, splits: list[Split], context: Context) -> Evaluated:
    """Map the stored logits of every split's test rows."""
    store = splits[0].test.store
    label_map = load_map(step, store)
    classifier = MappedClassifier(label_map.columns(), len(store.classes), step.policy).fit()
    other = step.policy != "restricted"
    tested = []
    for split in splits:
        logits = _logits(split.test.store)
        probabilities = _in_batches(classifier, split.test.take(logits))
        tested.append(
            Tested(
                split,
                probabilities.argmax(axis=1),
                (probabilities if other else probabilities[:, :-1]).astype(np.float32),
                probabilities=True,
                other=other,
                without_source=label_map.without_source,
            )
        )
    notes = _row_notes(splits)
    if label_map.without_source:
        notes.append(
            f"No source class stands for: {', '.join(label_map.without_source)}. "
            "Their recall is zero by construction."
        )
    extra = {
        "label_map": {
            "name": label_map.name,
            "fingerprint": label_map.fingerprint,
            "without_source": list(label_map.without_source),
        }
    }
    cost = {"train_seconds": 0.0, "predict_seconds": 0.0, "parameters_trained": 0}
    return Evaluated(f"Mapped classifier ({step.policy})", tested, cost, notes, extra)


def _in_batches(classifier: MappedClassifier, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities without a float64 copy of all logits at once."""
    batches = gen_batches(len(logits), 4096)
    return np.concatenate([classifier.predict_proba(logits[rows]) for rows in batches])


def load_map(step: ZeroshotStep, store: FeatureStore) -> LabelMap:
    """Return the label map that a step names, or the built-in one that fits the classes."""
    _logits(store)
    assert store.source_classes is not None
    source = SourceClasses(tuple(store.source_classes[0]), tuple(store.source_classes[1]))
    if step.map is None:
        return for_pair(source.name or "these source classes", store.classes)
    return LabelMap.load(step.map, store.classes, source.ids)


def _logits(store: FeatureStore) -> NDArray[np.float32]:
    if store.logits is None or store.source_classes is None:
        raise StoreError(
            "The store holds no logits: its backbone has no classifier with named classes.",
            where=store.path,
            next_step="extract with weights that have one: featpipe extract --dataset "
            f"{store.manifest['dataset']['name']} --model resnet50",
        )
    return store.logits
