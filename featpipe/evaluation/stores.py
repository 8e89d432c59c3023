"""Select the feature stores of a command: those that it names, or the only ones that fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featpipe.backbones import MODELS, folder_name
from featpipe.datasets import DATASETS, short_name, slug
from featpipe.errors import StoreError, UsageError, did_you_mean
from featpipe.fingerprint import FileHashes
from featpipe.probes.base import Evaluation, canonical_model
from featpipe.steps import Context, grammar
from featpipe.steps.grammar import LOGITS
from featpipe.store import FeatureStore, scan_stores
from featpipe.store.writer import unfinished_manifest
from featpipe.workspace import store_files

TEST_SPLITS = ("test", "val", "valid", "validation")
_UNLABELLED = "unlabeled"  # STL-10's name of it


def select_stores(step: Evaluation, context: Context) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the store of the training rows and, where there is one, that of the test rows.

    Stores that the user names must be a pair that fits. Where none are named, it is an error if
    none or several fit, or if one that belongs to them is damaged or unfinished: without it, other
    rows would be trained or tested.
    """
    if step.train is not None:
        hashes = FileHashes(context.workspace.hashes)
        named = [FeatureStore(path, hashes) for path in (step.train, step.test) if path is not None]
        for store in named:
            if not _is_asked_for(store, step):
                what = "The store is not one of the dataset and model asked for."
                expected = ", ".join(filter(None, (step.dataset, step.model)))
                raise UsageError(what, where=store.path, expected=expected, got=_label(store))
        if named[0].manifest["backbone"] != named[-1].manifest["backbone"]:
            what = "The features of the training and the test rows are not of one backbone."
            advice = "extract both splits with the same model, weights and preprocessing"
            raise UsageError(what, got=_listed(named), next_step=advice)
        return named[0], named[1] if step.test is not None else None
    fitting, unusable, damaged = _fitting(step, context)
    train, test = train_and_test(fitting, unusable, step.protocol)
    ignored = {error.details["where"]: error for error in (*damaged, *unusable.values())}
    for error in ignored.values():
        context.progress.note(f"ignored: {error}")
    unused = [store for store in fitting if store is not train and store.classes]
    if test is None and unused and step.protocol == "auto":
        splits = " and ".join(sorted(map(_split, unused)))
        hint = f"--train {str(train.path)!r} --test {str(unused[0].path)!r}"
        context.progress.note(
            f"No split is named {', '.join(TEST_SPLITS[:-1])} or {TEST_SPLITS[-1]}, so the split "
            f"{splits} is not used; to test on it: {hint}"
        )
    return train, test


def select_splits(step: Any, context: Context) -> list[FeatureStore]:
    """Return the stores of all splits of the dataset and model that a step means, tests last."""
    fitting, unusable, _ = _fitting(step, context)
    for error in unusable.values():
        raise error
    if len({_split(store) for store in fitting}) < len(fitting):
        raise _several_fit(fitting, files="featpipe audit FILE FILE")
    return sorted(fitting, key=lambda s: (_split(s) in TEST_SPLITS, _split(s) != "train"))


def _fitting(
    step: Any, context: Context
) -> tuple[list[FeatureStore], dict[str, StoreError], list[StoreError]]:
    """Return the stores that fit, of one dataset and model, and two kinds of errors.

    The first kind, by split, is for stores that would fit but are unusable; the second for all that
    are damaged.
    """
    folder = context.workspace.features
    stores, damaged = scan_stores(folder, FileHashes(context.workspace.hashes))
    asked = [store for store in stores if _is_asked_for(store, step)]
    fitting = [store for store in asked if step.layer in (None, *store.shapes)]
    unusable = _unusable(step, fitting, damaged, folder)
    if not (fitting or unusable):
        raise _none_fits(step, stores, asked, folder)
    if not embedded_alike(fitting) or len({*map(_dataset, fitting)}) > 1:
        raise _several_fit(fitting, any_layer=step.layer is None)
    return fitting, unusable, damaged


def embedded_alike(stores: Sequence[FeatureStore]) -> bool:
    """Return whether stores, perhaps of several datasets, hold the same features."""
    shared = [{**store.manifest, "dataset": {}} for store in stores]
    return all(each == shared[0] for each in shared)


def _unusable(
    step: Evaluation, fitting: Sequence[FeatureStore], damaged: Sequence[StoreError], folder: Path
) -> dict[str, StoreError]:
    """Return, by split, the error for each store that belongs to the fitting ones and is unusable.

    A damaged store is known by its place, ``DATASET/MODEL/SPLIT-….h5``, an unfinished one by its
    manifest, too. A split of which another store fits is not missing.
    """
    places = {store.path.parent for store in fitting}
    found = {Path(error.details["where"]): error.what for error in damaged}
    unfinished = [path for path in store_files(folder, "*.h5.partial") if path.is_file()]
    found |= dict.fromkeys(unfinished, "The feature store is unfinished.")
    dataset = step.dataset and slug(short_name(step.dataset))
    model = step.model and folder_name(canonical_model(step.model))
    without = "name the store (--train FILE) or a protocol (--protocol holdout:0.2)"
    if not hasattr(step, "train"):
        without = f"name the other stores: featpipe {step.name} FILE"
    missing: dict[str, StoreError] = {}
    for path, what in sorted(found.items()):
        partial = path.suffix == ".partial"
        asked = dataset in (None, path.parent.parent.name) and model in (None, path.parent.name)
        asked = asked and (not places or path.parent in places)
        if partial and (manifest := unfinished_manifest(path)) is not None:
            own = {**manifest, "dataset": manifest["dataset"]["name"]}  # all but the split
            asked = asked and all({**s.manifest, "dataset": _dataset(s)} == own for s in fitting)
            asked = asked and step.layer in (None, LOGITS, *manifest["layers"])
        split = re.sub(r"(-[0-9a-f]+)?\.h5(\..*)?$", "", path.name)
        if asked and split not in {slug(_split(store)) for store in fitting}:
            command = f"featpipe extract --model {step.model or path.parent.name} --dataset "
            command += step.dataset or (_dataset(fitting[0]) if fitting else "DATASET")
            again = command if partial else f"rm {str(path)!r}; {command}"
            missing[split] = StoreError(
                f"The store of the {split} rows, {path.name}, cannot be used: {what}",
                where=path,
                next_step=f"extract it again: {again}; or, to do without its rows, {without}",
            )
    return missing


def _is_asked_for(store: FeatureStore, step: Evaluation) -> bool:
    """Whether a store is of the dataset and the model asked for.

    Unlabelled rows never are, those of a dataset without labels only by its name, or for a step
    that needs no labels.
    """
    named = step.dataset is not None or getattr(step, "train", None) is not None
    return (
        (bool(store.classes) or named or step.takes_unlabelled)
        and (step.dataset is None or short_name(step.dataset) == _dataset(store))
        and (step.model is None or canonical_model(step.model) == _model(store))
        and _split(store) != _UNLABELLED
    )


def train_and_test(
    group: Iterable[FeatureStore],
    unusable: Mapping[str, StoreError] | None = None,
    protocol: str = "auto",
) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the stores of the training and of the test rows out of those of one extraction.

    ``unusable`` are further stores of it, by split, that would be chosen from if they were whole;
    one that would have been chosen is raised, unless the ``protocol`` does not look at it.
    """
    by_split: dict[str, FeatureStore] = {}
    for store in group:
        if (first := by_split.setdefault(_split(store), store)) is not store:
            raise _several_fit([first, store])
    missing = unusable or {}
    splits = [split for split in {**by_split, **missing} if split != _UNLABELLED]
    tests = [split for split in TEST_SPLITS if split in splits]
    trains = ["train"] if "train" in splits else [split for split in splits if split not in tests]
    if not splits:
        what = "There are only unlabelled rows: nothing can be trained or tested on them."
        raise StoreError(what, next_step="extract a labelled split, too")
    if not trains:  # only a test split was extracted: its rows are all there is
        trains, tests = tests[:1], []
    kind, _ = grammar.protocol(protocol)
    for split in [*trains, *(tests[:1] if kind not in ("kfold", "holdout") else [])]:
        if split in missing:
            raise missing[split]
    if len(trains) > 1:
        raise _several_fit([by_split[split] for split in trains])
    return by_split[trains[0]], by_split.get(tests[0]) if tests else None


# Names of a store, and the errors if none or several fit.


def _dataset(store: FeatureStore) -> str:
    return str(store.manifest["dataset"]["name"])


def _split(store: FeatureStore) -> str:
    return str(store.manifest["dataset"]["split"])


def _model(store: FeatureStore) -> str:
    return str(store.manifest["backbone"]["model"])


def _label(store: FeatureStore) -> str:
    rows = f"{_dataset(store)} {_split(store)} ({store.manifest['dataset']['images']} images)"
    return f"{rows} × {_model(store)} {'/'.join(store.layers)}"


def _listed(stores: Sequence[FeatureStore]) -> str:
    return "".join(f"\n    {_label(store)}: {store.path}" for store in stores)


def _none_fits(
    step: Evaluation, stores: Sequence[FeatureStore], asked: Sequence[FeatureStore], folder: Path
) -> StoreError:
    """Return the error that shows how to make the store, or which name is misspelt.

    ``asked`` are those of the ``stores`` that lack at most the layer.
    """
    parts = {"dataset": step.dataset, "model": step.model, "layer": step.layer}
    model, dataset = step.model or "MODEL", step.dataset or "DATASET"
    command = f"featpipe extract --model {model} --dataset {dataset}"
    if step.layer not in (None, LOGITS):  # logits cannot be asked for: the weights decide
        command += f" --layer {step.layer}"
    aliases = [alias for name in MODELS.names() for alias in MODELS.aliases_of(name)]
    models = [*map(_model, stores), *MODELS.names(), *aliases]
    datasets = [*map(_dataset, stores), *DATASETS.names()]
    layers = [layer for store in asked for layer in store.shapes]
    hint = None
    for name, known in ((step.dataset, datasets), (step.model, models)):
        kind, colon, _ = (name or "").partition(":")
        if colon and kind in known:  # "timm:NAME", "csv:PATH"
            alike = [one for one in known if one.startswith(f"{kind}:")]
            if name not in alike and (near := did_you_mean(name or "", alike)):
                hint = f"{near} or extract it: {command}"
        elif name and name not in known:
            hint = did_you_mean(name, known) or hint
    if step.layer and (near := did_you_mean(step.layer, layers)):
        hint = f"{near} or extract it: {command}"
    expected = ", ".join(f"{kind} {name}" for kind, name in parts.items() if name) or None
    got, advice = "; ".join(sorted({*map(_label, stores)})) or "no stores", hint or command
    what = "No feature store fits."
    return StoreError(what, where=folder, expected=expected, got=got, next_step=advice)


def _several_fit(
    stores: Sequence[FeatureStore],
    *,
    any_layer: bool = False,
    files: str = "--train FILE --test FILE",
) -> UsageError:
    """Return the error with the options that differ; ``any_layer``: no layer was asked for."""
    layers = [set(store.shapes) for store in stores]
    apart = {"--dataset": {*map(_dataset, stores)}, "--model": {*map(_model, stores)}}
    apart = {flag: names for flag, names in apart.items() if len(names) > 1}
    if any_layer:
        apart["--layer"] = layers[0].union(*layers) - layers[0].intersection(*layers)
    options = [f"{flag} ({' or '.join(sorted(names))})" for flag, names in apart.items() if names]
    advice, what = f"name the files: {files}", "Several feature stores fit; say which."
    advice = f"add {', '.join(options)}; or {advice}" if options else advice
    return UsageError(what, got=_listed(stores), next_step=advice)
