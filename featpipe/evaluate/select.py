"""Find the stores that a command means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featpipe import fingerprint
from featpipe.backbones import MODELS
from featpipe.datasets import short_name
from featpipe.errors import StoreError, UsageError
from featpipe.steps import Context, EvaluationStep
from featpipe.store import FeatureStore, scan_stores

_TEST_SPLITS = ("test", "val", "valid", "validation")


def select_stores(
    step: EvaluationStep, context: Context
) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the store of the training rows and, where there is one, that of the test rows.

    Raises
    ------
    StoreError
        If no store fits; the message is the extract command that makes one.
    UsageError
        If several fit, or the named ones are not what the other options ask for, or not of one
        backbone; the message names what tells them apart.
    """
    if step.train is not None:
        return _named(step, step.train)
    if step.test is not None:
        raise UsageError("--test needs --train: name both stores.")
    stores, damaged = scan_stores(context.workspace.features)
    for error in damaged:
        context.progress.note(f"ignored: {error}")
    groups = _groups([store for store in stores if _fits(store, step)])
    if not groups:
        raise _none_fits(step, stores, context.workspace.features)
    if len(groups) > 1:
        raise _several_fit(groups)
    return train_and_test(groups[0])


def _named(step: EvaluationStep, path: Path) -> tuple[FeatureStore, FeatureStore | None]:
    """Open the stores that the user named; a wrong pair would give numbers all the same."""
    train = FeatureStore(path)
    test = None if step.test is None else FeatureStore(step.test)
    for store in (train, test):
        if store is not None and not _fits(store, replace(step, layer=None)):
            raise UsageError(
                "The store is not one of the dataset and model asked for.",
                where=store.path,
                expected=", ".join(name for name in (step.dataset, step.model) if name),
                got=_label(store),
            )
    if test is not None and test.manifest["backbone"] != train.manifest["backbone"]:
        raise UsageError(
            "The features of the training and the test rows are not of one backbone.",
            got="".join(f"\n    {_label(store)}: {store.path}" for store in (train, test)),
            next_step="extract both splits with the same model, weights and preprocessing",
        )
    return train, test


def _fits(store: FeatureStore, step: EvaluationStep) -> bool:
    manifest = store.manifest
    return (
        (step.dataset is None or short_name(step.dataset) == manifest["dataset"]["name"])
        and _model_name(step.model) in (None, manifest["backbone"]["model"])
        and (step.layer is None or step.layer in store.layers)
        and manifest["dataset"]["split"] != "unlabeled"
    )


def _model_name(asked: str | None) -> str | None:
    """Return the name that stores are made under; a model may be asked for by an alias."""
    return MODELS.entry(asked).name if asked is not None and asked in MODELS else asked


def _groups(stores: Sequence[FeatureStore]) -> list[list[FeatureStore]]:
    """Return stores grouped by everything but the split."""
    groups: dict[str, list[FeatureStore]] = {}
    for store in stores:
        shared = {key: value for key, value in store.manifest.items() if key != "dataset"}
        shared["dataset"] = store.manifest["dataset"]["name"]
        groups.setdefault(fingerprint.of_mapping(shared), []).append(store)
    return list(groups.values())


def train_and_test(group: Sequence[FeatureStore]) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the stores of the training and of the test rows out of those of one extraction."""
    if not group:
        raise StoreError(
            "There are only unlabelled rows: nothing can be trained or tested on them.",
            next_step="extract a labelled split, too",
        )
    by_split: dict[str, FeatureStore] = {}
    for store in group:
        split = store.manifest["dataset"]["split"]
        if split in by_split:
            raise _several_fit([[by_split[split]], [store]])
        by_split[split] = store
    tests = [by_split.pop(name) for name in _TEST_SPLITS if name in by_split]
    if not by_split:  # only a test split was extracted: its rows are all there is
        return tests[0], None
    if "train" not in by_split and len(by_split) > 1:
        raise _several_fit([list(by_split.values())])
    train = by_split["train"] if "train" in by_split else next(iter(by_split.values()))
    return train, tests[0] if tests else None


def _none_fits(step: EvaluationStep, stores: list[FeatureStore], folder: Path) -> StoreError:
    model, dataset = step.model or "MODEL", step.dataset or "DATASET"
    layer = f" --layer {step.layer}" if step.layer else ""
    there = sorted({_label(store) for store in stores})
    return StoreError(
        "There is no feature store for this.",
        where=folder,
        expected=f"dataset {dataset}, model {model}{layer}",
        got="; ".join(there) or "no store at all",
        next_step=f"featpipe extract --model {model} --dataset {dataset}{layer}",
    )


def _several_fit(groups: list[list[FeatureStore]]) -> UsageError:
    lines = [f"\n    {_label(store)}: {store.path}" for group in groups for store in group]
    return UsageError(
        "Several feature stores fit; say which.",
        got="".join(lines),
        next_step="add --dataset or --model, or name the files: --train FILE --test FILE",
    )


def _label(store: FeatureStore) -> str:
    dataset = store.manifest["dataset"]
    return (
        f"{dataset['name']} {dataset['split']} ({dataset['images']} images) × "
        f"{store.manifest['backbone']['model']} {'/'.join(store.layers)}"
    )
