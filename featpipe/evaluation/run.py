"""Evaluate one method on stored features: stores → splits → predictions → Result."""

from __future__ import annotations

import time
from collections import Counter
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
    PARTS,
    MethodOutput,
    SplitPredictions,
    build_result,
    complete_result,
    outcome_of,
    renamed,
    save_result,
)
from featpipe.evaluation.fitting import calibrate, fit_splits, n_parameters
from featpipe.evaluation.leaks import pixels_known
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
from featpipe.steps.options import as_written
from featpipe.store import FeatureStore
from featpipe.workspace import one_at_a_time, remove_leftovers

_MAPPED_ROWS = 4096  # logits are mapped in batches, without a float64 copy of all of them


@dataclass(frozen=True, eq=False)
class Setup:
    """A method on its stores, with every automatic choice made, and the key of its result."""

    step: Evaluation
    protocol: str  # never "auto"
    splits: list[Split]
    key: str  # fingerprint of everything that determines the numbers
    notes: Sequence[str] = ()  # which rows were left out

    @property
    def name(self) -> str:
        """Return the name of its result: readable, and different for different numbers."""
        manifest = self.splits[0].train.store.manifest
        dataset = slug(manifest["dataset"]["name"])
        model = folder_name(manifest["backbone"]["model"])
        return f"{dataset}-{model}-{self.step.label}-{self.key[:8]}"


def set_up(step: Evaluation, train: FeatureStore, test: FeatureStore | None = None) -> Setup:
    """Split the rows of stores for a method and compute the key of its result; nothing is fitted.

    ``step`` is the method with its settings: ``Svm()``, ``Zeroshot(policy="group")`` … Without
    ``test``, the dataset's own test rows, the protocol splits the rows of ``train``.
    """
    protocol, tested = resolve(step.protocol, test)
    lists, screening = step.row_lists(), Screening.of(step, (train, tested))
    if test is not tested and test is not None:
        own, other = (store.manifest["dataset"]["split"] for store in (train, test))
        screening.notes.append(
            f"{protocol} tests parts of the {len(train.usable)} rows of {own!r}; the "
            f"{len(test.usable)} rows of {other!r}, the dataset's own test rows, are not used "
            "(--protocol split tests them)."
        )
    test = tested
    splits = step.subsets(make_splits(protocol, train, test, step.seed, screening)[1])
    stores = [store.fingerprint for store in (train, test) if store is not None]
    inputs: dict[str, Any] = {"stores": stores, "scikit-learn": package_version("scikit-learn")}
    if (kept := splits[0].train.together) is not None:
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
        return outcome_of(evaluate(setup, context, path), "done")
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
    if existing and isinstance(step, Probe) and existing.extra.get("leaks") is None:
        # Evaluated without digests of pixels, or by a version that did not look for leaks.
        existing = None if pixels_known(setup.splits) else existing
    if existing and getattr(step, "check_solver", False):
        batched = (s for s in existing.splits if s["solver"]["name"] == "batched")
        existing = existing if all("reference" in split for split in batched) else None
    return setup, path, existing


def evaluate(setup: Setup, context: Context, path: Path | None = None) -> Result:
    """Train and test one method; the test rows are predicted once.

    The result (JSON), its predictions and its model are saved at ``path``, if it is given.
    """
    step = setup.step
    output = step.answer(setup.splits, context)
    output.notes.extend(setup.notes)
    result, table = build_result(step, setup.key, setup.protocol, output, context)
    if path is not None:
        model = None
        saved = output.estimator is not None and result.settings["save_model"]
        if saved and isinstance(step, Probe):
            chosen = output.splits[0].facts["chosen"]
            result.extra["calibration"] = calibrate(setup.splits[0], step, chosen, context.jobs)
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
        for fit in fit_splits(splits, probe, context.jobs, context.progress):
            fits.append(fit)
            task.advance()
    estimator, predictions = fits[0][0], [predicted for _, predicted in fits]
    facts = [one.facts for one in predictions]
    # As the headline of a low-shot result is its largest N, so are its costs.
    largest = max(split.train_per_class or 0 for split in splits)
    paid = [f for f, s in zip(facts, splits, strict=True) if (s.train_per_class or 0) == largest]
    cost = {f"{part}_seconds": sum(one["seconds"][part] for one in paid) for part in PARTS}
    cost["parameters_trained"] = n_parameters(estimator)
    notes = _row_notes(splits)
    if stopped := sum(not one["converged"] for one in facts):
        notes.append(
            f"The solver did not converge in {stopped} of {len(facts)} fits; "
            "raise --max-iter before trusting this number."
        )
    if predictions[0].scores is None:
        notes.append("The classifier gives no scores: metrics that need them are left out.")
    chosen, name, grid = [one["chosen"] for one in facts], probe.tuned, probe.candidates()
    for end, last, beyond in ((0, "smallest", "smaller"), (-1, "largest", "larger")):
        if at_end := sum(one.get("at_edge", False) and one[name] == grid[end] for one in chosen):
            notes.append(
                f"In {at_end} of {len(facts)} fits the best {name} was {as_written(grid[end])}, "
                f"the {last} of the values tried: a {beyond} one may do better. Add {beyond} "
                f"values to --{name}."
            )
    if references := [one["reference"] for one in facts if "reference" in one]:
        parts = ("different_answers", "answers", "seconds")
        differing, answers, seconds = (sum(one[part] for one in references) for part in parts)
        apart = max(one["largest_difference"] for one in references)
        ours = sum(one["seconds"]["fit"] for one in facts if "reference" in one)
        notes.append(
            f"scikit-learn's own solver answers {differing} of {answers} test images differently; "
            f"its scores differ by at most {apart:.2g}. It took {seconds:.1f} s, this one "
            f"{ours:.1f} s."
        )
    for by, times in Counter(one.get("by", "") for one in chosen).items():
        kind, _, why = by.partition(": ")
        if kind == "default":
            what = f"{name} was not chosen but left at its default"
            notes.append(f"{what} in {times} of {len(facts)} fits: {why}.")
    return MethodOutput(probe.default_title, predictions, cost, notes, {}, estimator)


def _row_notes(splits: Sequence[Split]) -> list[str]:
    """Return notes about rows that took no part."""
    notes = []
    for store in dict.fromkeys((splits[0].train.store, splits[0].test.store)):
        split = store.manifest["dataset"]["split"]
        if unlabelled := int((store.labels < 0).sum()):
            notes.append(f"{unlabelled} unlabelled rows of {split} were left out.")
        if store.skipped:
            notes.append(f"{split}: unreadable images left out: {len(store.skipped)}.")
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
    cost: dict[str, Any] = dict.fromkeys([f"{part}_seconds" for part in PARTS], 0.0)
    cost |= {"predict_seconds": seconds, "parameters_trained": 0}
    extra = {"label_map": about}
    return MethodOutput(step.default_title, predictions, cost, notes, extra, trains=False)


def _mapped(label_map: LabelMap, rows: RowSet, policy: str) -> NDArray[np.float64]:
    """Return a probability for each target class and "other" of some rows, by their logits."""
    logits = rows.take(rows.store.features(LOGITS))
    batches = gen_batches(len(logits), _MAPPED_ROWS)
    return np.concatenate([label_map.probabilities(logits[batch], policy) for batch in batches])


def disputed_rows(label_map: LabelMap, splits: list[Split], policy: str) -> list[dict[str, Any]]:
    """Return what would change if each group of disputed rows of a map had its other target.

    ``changed`` counts the test images with another answer; ``accuracy`` is that over all test
    images then, and ``difference`` how much more that is than now.
    """
    store = splits[0].test.store
    rows = RowSet(store, np.unique(np.concatenate([split.test.rows for split in splits])))

    def answers(variant: LabelMap) -> NDArray[np.intp]:
        return _mapped(variant, rows, policy).argmax(axis=1)

    now = answers(label_map) if label_map.disputed else None
    then = {group: answers(label_map.otherwise(group)) for group in label_map.disputed}
    return [
        {
            "group": group,
            "source_classes": [row.source_name or row.source_id for row in members],
            "target": ", ".join(dict.fromkeys(row.target for row in members)),
            "otherwise": ", ".join(dict.fromkeys(row.alternative[1] for row in members)),
            "changed": int(np.count_nonzero(then[group] != now)),
            "accuracy": float(np.mean(then[group] == rows.labels)),
            "difference": float(np.mean(then[group] == rows.labels) - np.mean(now == rows.labels)),
        }
        for group, members in label_map.disputed.items()
    ]


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
