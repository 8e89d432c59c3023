"""Evaluate one method on stored features: stores → splits → predictions → Result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from featpipe.backbones import folder_name
from featpipe.datasets import slug
from featpipe.errors import StoreError
from featpipe.evaluation.assemble import (
    MethodOutput,
    SplitPredictions,
    build_result,
    complete_result,
    outcome_of,
    renamed,
    save_result,
)
from featpipe.evaluation.calibration import calibrate
from featpipe.evaluation.fitting import fit_splits, n_parameters
from featpipe.evaluation.models import UnsafeModelError, save_model
from featpipe.evaluation.protocol import RowSet, Split, make_splits, mostly_alone, resolve
from featpipe.evaluation.result import Result
from featpipe.evaluation.screening import Screening
from featpipe.evaluation.stores import select_stores
from featpipe.fingerprint import FileHashes
from featpipe.labelmap import IDENTITY, OTHER, LabelMap, SourceClasses, for_pair
from featpipe.probes.base import Evaluation, Probe
from featpipe.probes.zeroshot import Zeroshot
from featpipe.provenance import package_version
from featpipe.steps import Context, Outcome
from featpipe.steps.grammar import LOGITS
from featpipe.store import FeatureStore
from featpipe.workspace import one_at_a_time, remove_leftovers

_MAPPED_ROWS = 4096  # logits are mapped in batches, without a float64 copy of all of them


@dataclass(frozen=True, eq=False)
class Setup:
    """A method on its stores, every automatic choice made: what is computed, and what names it."""

    step: Evaluation
    protocol: str  # never "auto"
    splits: list[Split]
    key: str  # fingerprint of what the numbers follow from
    notes: Sequence[str] = ()  # which rows were left out

    @property
    def name(self) -> str:
        """Return the name of its result: readable, and different for different numbers."""
        manifest = self.splits[0].train.store.manifest
        dataset, model = (
            slug(manifest["dataset"]["name"]),
            folder_name(manifest["backbone"]["model"]),
        )
        return f"{dataset}-{model}-{self.step.label}-{self.key[:8]}"


def set_up(step: Evaluation, train: FeatureStore, test: FeatureStore | None = None) -> Setup:
    """Split the rows of stores for a method, and name what follows from them; nothing is fitted.

    ``step`` is the method with its settings: ``Svm()``, ``Zeroshot(policy="group")`` … Without
    ``test``, the dataset's own test rows, the protocol splits the rows of ``train``.

    Raises
    ------
    FeatpipeError
        If the stores cannot serve the protocol, or hold no logits to map.
    """
    protocol, test = resolve(step.protocol, test)
    lists, screening = step.row_lists(), Screening.of(step, (train, test))
    _, splits = make_splits(protocol, train, test, step.seed, screening)
    splits = step.subsets(splits)
    stores = [store.fingerprint for store in (train, test) if store is not None]
    inputs: dict[str, Any] = {"stores": stores, "scikit-learn": package_version("scikit-learn")}
    if (kept := screening.together(train)) is not None:
        units = len(np.unique(kept))
        if mostly_alone(kept) or units != len(set(train.groups)):  # not only the dataset's groups
            inputs["kept together"] = str(units)
    key = step.key(inputs, protocol=protocol, **lists, **step.resolved(splits))
    return Setup(step, protocol, splits, key, screening.notes)


def run_evaluation(step: Evaluation, context: Context) -> Outcome:
    """Evaluate a method on the stores it means, unless the same result exists already."""
    for folder in (context.workspace.results, context.workspace.models):
        remove_leftovers(folder)
    setup, path, existing = look_up(step, context)
    if existing is None:
        return outcome_of(_evaluate(setup, context, path), "done")
    return outcome_of(renamed(existing, step.title, step.default_title), "up to date")


def look_up(step: Evaluation, context: Context) -> tuple[Setup, Path, Result | None]:
    """Return what a step evaluates, its result's path and, if up to date, the result.

    A result is made again where its predictions or the model asked for are missing.
    """
    setup = set_up(step, *select_stores(step, context))
    path = context.workspace.results / f"{setup.name}.json"
    if step.force:
        return setup, path, None
    models = context.workspace.models if getattr(step, "save_model", False) else None
    existing = complete_result(path, models, FileHashes(context.workspace.hashes))
    if existing is None and models is not None:
        existing = complete_result(path)
        existing = existing if existing and "not_saved" in existing.extra else None
    if existing and isinstance(step, Probe) and existing.extra.get("leaks") is None:
        parts = [part.store for split in setup.splits for part in (split.train, split.test)]
        if all(store.has_looks for store in parts):  # made before it was known what leaks
            existing = None
    if existing and getattr(step, "check_solver", False):
        unchecked = (split for split in existing.splits if "reference" not in split)
        if any(split["solver"]["name"] == "batched" for split in unchecked):
            existing = None
    return setup, path, existing


def evaluate(
    step: Evaluation,
    train: FeatureStore,
    test: FeatureStore | None = None,
    context: Context | None = None,
    path: Path | None = None,
) -> Result:
    """Train and test one method (see :func:`set_up`); the test rows are predicted once.

    The result (JSON), its predictions and its model are saved at ``path``, if it is given.

    Raises
    ------
    FitError
        If the rows cannot validly train or test a classifier.
    """
    return _evaluate(set_up(step, train, test), context or Context(), path)


def _evaluate(setup: Setup, context: Context, path: Path | None) -> Result:
    step = setup.step
    output = step.answer(setup.splits, context)
    output.notes.extend(setup.notes)
    result, table = build_result(step, setup.key, setup.protocol, output, context)
    if path is not None:
        model = None
        saved = output.estimator is not None and result.settings["save_model"]
        if saved and isinstance(step, Probe):
            chosen = output.splits[0].facts["chosen"]
            found = calibrate(setup.splits[0], step, chosen, context.jobs)
            result.extra["calibration"] = found
        with one_at_a_time(path.parent):
            if saved:
                try:
                    name = context.workspace.models / path.stem
                    model = save_model(name, output.estimator, result)
                    result.cost["model_bytes"] = model.stat().st_size
                except UnsafeModelError as error:
                    result.extra["not_saved"] = error.what
                    result.notes.append(error.what)
            save_result(result, path, table, model)
    return result


def train_and_test(probe: Probe, splits: list[Split], context: Context) -> MethodOutput:
    """Fit a probe on every split and test it once."""
    fits = []
    with context.progress.task(probe.display_name, len(splits)) as task:
        for fit in fit_splits(splits, probe, context.jobs):
            fits.append(fit)
            task.advance()
    predictions = [predicted for _, predicted in fits]
    facts, estimator = [one.facts for one in predictions], fits[0][0]
    # As the headline of a low-shot result is its largest N, so are its costs.
    largest = max(split.train_per_class or 0 for split in splits)
    paid = [f for f, s in zip(facts, splits, strict=True) if (s.train_per_class or 0) == largest]
    cost = {
        **{
            f"{part}_seconds": sum(one["seconds"][part] for one in paid)
            for part in ("search", "fit", "predict")
        },
        "parameters_trained": n_parameters(estimator),
    }
    notes, chosen, name = _row_notes(splits), [one["chosen"] for one in facts], probe.tuned
    if stopped := sum(not one["converged"] for one in facts):
        notes.append(
            f"The solver did not converge in {stopped} of {len(facts)} fits; "
            "raise --max-iter before trusting this number."
        )
    if predictions[0].scores is None:
        notes.append(
            "The classifier gives neither probabilities nor decision values: metrics that need "
            "them are left out."
        )
    if edges := sum(one.get("at_edge", False) for one in chosen):
        notes.append(
            f"The chosen {name} is at the edge of the grid in {edges} of {len(facts)} "
            f"fits; a wider --{name} may do better."
        )
    if checked := [one for one in facts if "reference" in one]:
        references = [one["reference"] for one in checked]
        differing, answers, seconds = (
            sum(one[part] for one in references)
            for part in ("different_answers", "answers", "seconds")
        )
        apart = max(one["largest_difference"] for one in references)
        ours = sum(one["seconds"]["fit"] for one in checked)
        notes.append(
            f"scikit-learn's own solver answers {differing} of {answers} test images otherwise; "
            f"its scores differ by at most {apart:.2g}. It took {seconds:.1f} s, this one "
            f"{ours:.1f} s."
        )
    if defaults := sum(one.get("by", "").startswith("default") for one in chosen):
        notes.append(
            f"{name} was not chosen but left at its default in {defaults} of "
            f"{len(facts)} fits: a class with a single training row leaves none to validate on."
        )
    return MethodOutput(probe.default_title, predictions, cost, notes, {}, estimator)


def _row_notes(splits: Sequence[Split]) -> list[str]:
    """Say in words which rows took no part."""
    notes = []
    stores = {id(s): s for split in splits for s in (split.train.store, split.test.store)}
    for store in stores.values():
        split = store.manifest["dataset"]["split"]
        if unlabelled := int((store.labels < 0).sum()):
            notes.append(f"{unlabelled} unlabelled rows of {split} were left out.")
        if store.skipped:
            notes.append(f"{len(store.skipped)} unreadable images of {split} were left out.")
    classes = splits[0].test.store.classes
    for part, rows in (("training", splits[0].train), ("test", splits[0].test)):
        absent = [classes[c] for c in np.setdiff1d(range(len(classes)), rows.labels)]
        if absent and len(rows):  # with no row at all, nothing was to be trained
            notes.append(f"No {part} row of: {', '.join(absent)}.")
    return notes


def map_logits(step: Zeroshot, splits: list[Split]) -> MethodOutput:
    """Map the stored logits of every split's test rows."""
    store = splits[0].test.store
    label_map = load_map(step, store)
    other = step.policy != "restricted" and OTHER in {row.target for row in label_map.rows}
    predictions, began = [], time.perf_counter()
    for split in splits:
        scores = _mapped(label_map, split.test, step.policy)[:, : None if other else -1]
        answers = scores.argmax(axis=1), scores.astype(np.float32)
        without = label_map.without_source
        predictions.append(SplitPredictions(split, *answers, True, other, without))
    seconds = time.perf_counter() - began
    notes = _row_notes(splits) + [label_map.note] * bool(label_map.note)
    if label_map.name == IDENTITY:
        rest = "other source classes are 'other'" if other else "there is no 'other'"
        notes.append(f"No label map: each class of the dataset is a source class; {rest}.")
    if label_map.without_source:
        notes.append(
            f"No source class maps to: {', '.join(label_map.without_source)}. "
            "Their recall is zero by construction."
        )
    about = {
        "name": label_map.name,
        "fingerprint": label_map.fingerprint,
        "without_source": list(label_map.without_source),
        "disputed": disputed_rows(label_map, splits, step.policy),
    }
    return MethodOutput(
        step.default_title,
        predictions,
        cost={
            "search_seconds": 0.0,
            "fit_seconds": 0.0,
            "predict_seconds": seconds,
            "parameters_trained": 0,
        },
        notes=notes,
        extra={"label_map": about},
        trains=False,
    )


def _mapped(label_map: LabelMap, rows: RowSet, policy: str) -> NDArray[np.float64]:
    """Return a probability for each target class and "other" of some rows, by their logits."""
    logits = rows.take(rows.store.features(LOGITS))
    batches = gen_batches(len(logits), _MAPPED_ROWS)
    return np.concatenate([label_map.probabilities(logits[batch], policy) for batch in batches])


def disputed_rows(label_map: LabelMap, splits: list[Split], policy: str) -> list[dict[str, Any]]:
    """Say what each group of disputed rows of a map matters, were it mapped otherwise.

    ``changed`` counts the test images that would be answered otherwise; ``accuracy`` is what it
    would then be over all test images, and ``difference`` how much more that is than now.
    """
    store = splits[0].test.store
    rows = RowSet(store, np.unique(np.concatenate([split.test.rows for split in splits])))

    def answers(variant: LabelMap) -> NDArray[np.intp]:
        return _mapped(variant, rows, policy).argmax(axis=1)

    found = []
    now = answers(label_map) if label_map.disputed else None
    for group, members in label_map.disputed.items():
        then = answers(label_map.otherwise(group))
        found.append(
            {
                "group": group,
                "source_classes": [row.source_name or row.source_id for row in members],
                "target": ", ".join(dict.fromkeys(row.target for row in members)),
                "otherwise": ", ".join(dict.fromkeys(row.alternative[1] for row in members)),
                "changed": int(np.count_nonzero(then != now)),
                "accuracy": float(np.mean(then == rows.labels)),
                "difference": float(np.mean(then == rows.labels) - np.mean(now == rows.labels)),
            }
        )
    return found


def load_map(step: Zeroshot, store: FeatureStore) -> LabelMap:
    """Return the label map that a step names, or the one that fits the dataset's classes."""
    if LOGITS not in store.shapes or store.source_classes is None:
        raise StoreError(
            "The store holds no logits: its backbone has no classifier with named classes.",
            where=store.path,
            next_step="extract with weights that have one: featpipe extract --dataset "
            f"{store.manifest['dataset']['name']} --model resnet50",
        )
    source = SourceClasses(*map(tuple, store.source_classes))
    if step.map is None:
        return for_pair(source, store.classes)
    return LabelMap.load(step.map, store.classes, source.ids)
