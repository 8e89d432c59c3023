"""Which feature stores a command means: those that it names, or the only ones that fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featpipe.backbones import MODELS
from featpipe.datasets import DATASETS, short_name
from featpipe.errors import StoreError, UsageError, did_you_mean
from featpipe.probes.base import Evaluation, canonical_model
from featpipe.steps import Context
from featpipe.steps.grammar import LOGITS
from featpipe.store import FeatureStore, scan_stores

_TEST_SPLITS = ("test", "val", "valid", "validation")
_UNLABELLED = "unlabeled"  # STL-10's name of it


def select_stores(step: Evaluation, context: Context) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the store of the training rows and, where there is one, that of the test rows.

    Raises
    ------
    StoreError
        If no store fits.
    UsageError
        If several do, or the stores that the step names do not belong together.
    """
    if step.train is not None:
        return _open_named(step, step.train)
    stores, damaged = scan_stores(context.workspace.features)
    for error in damaged:
        context.progress.note(f"ignored: {error}")
    asked = [store for store in stores if _is_asked_for(store, step)]
    fitting = [store for store in asked if step.layer in (None, *_layers(store))]
    if not fitting:
        raise _none_fits(step, stores, asked, context.workspace.features)
    shared = [{**s.manifest, "dataset": s.manifest["dataset"]["name"]} for s in fitting]
    if any(one != shared[0] for one in shared):  # they differ in more than the split
        raise _several_fit(fitting, any_layer=step.layer is None)
    return train_and_test(fitting)


def _open_named(step: Evaluation, path: Path) -> tuple[FeatureStore, FeatureStore | None]:
    """Open the stores that the user named; a wrong pair would give numbers all the same."""
    train = FeatureStore(path)
    test = None if step.test is None else FeatureStore(step.test)
    for store in (train, test):
        if store is not None and not _is_asked_for(store, step):
            raise UsageError(
                "The store is not one of the dataset and model asked for.",
                where=store.path,
                expected=", ".join(name for name in (step.dataset, step.model) if name),
                got=_label(store),
            )
    if test is not None and test.manifest["backbone"] != train.manifest["backbone"]:
        raise UsageError(
            "The features of the training and the test rows are not of one backbone.",
            got=_listed([train, test]),
            next_step="extract both splits with the same model, weights and preprocessing",
        )
    return train, test


def _is_asked_for(store: FeatureStore, step: Evaluation) -> bool:
    """Whether a store is of the dataset and the model asked for; unlabelled rows never are."""
    return (
        (step.dataset is None or short_name(step.dataset) == _dataset(store))
        and (step.model is None or canonical_model(step.model) == _model(store))
        and store.manifest["dataset"]["split"] != _UNLABELLED
    )


def open_train_and_test(paths: Sequence[Path]) -> tuple[FeatureStore, FeatureStore | None]:
    """Open the stores of one extraction and return those of the training and of the test rows."""
    return train_and_test([FeatureStore(path) for path in paths])


def train_and_test(group: Sequence[FeatureStore]) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the stores of the training and of the test rows out of those of one extraction."""
    by_split: dict[str, FeatureStore] = {}
    for store in group:
        split = store.manifest["dataset"]["split"]
        if by_split.setdefault(split, store) is not store:
            raise _several_fit([by_split[split], store])
    by_split.pop(_UNLABELLED, None)
    tests = [by_split.pop(name) for name in _TEST_SPLITS if name in by_split]
    trains = [by_split["train"]] if "train" in by_split else list(by_split.values())
    if not (trains or tests):
        raise StoreError(
            "There are only unlabelled rows: nothing can be trained or tested on them.",
            next_step="extract a labelled split, too",
        )
    if len(trains) > 1:
        raise _several_fit(trains)
    if not trains:  # only a test split was extracted: its rows are all there is
        return tests[0], None
    return trains[0], tests[0] if tests else None


# What a store is, and what is said where none or several fit.


def _dataset(store: FeatureStore) -> str:
    return str(store.manifest["dataset"]["name"])


def _model(store: FeatureStore) -> str:
    return str(store.manifest["backbone"]["model"])


def _layers(store: FeatureStore) -> list[str]:
    """Return the layers that a probe can be trained on."""
    return [*store.layers, *([] if store.logits is None else [LOGITS])]


def _label(store: FeatureStore) -> str:
    dataset = store.manifest["dataset"]
    return (
        f"{_dataset(store)} {dataset['split']} ({dataset['images']} images) × "
        f"{_model(store)} {'/'.join(store.layers)}"
    )


def _listed(stores: Sequence[FeatureStore]) -> str:
    return "".join(f"\n    {_label(store)}: {store.path}" for store in stores)


def _none_fits(
    step: Evaluation, stores: Sequence[FeatureStore], asked: Sequence[FeatureStore], folder: Path
) -> StoreError:
    """Say how to make the store, or which name is misspelt.

    ``asked`` are those of the ``stores`` that lack no more than the layer.
    """
    parts = {"dataset": step.dataset, "model": step.model, "layer": step.layer}
    command = f"featpipe extract --model {step.model or 'MODEL'}"
    command += f" --dataset {step.dataset or 'DATASET'}"
    if step.layer not in (None, LOGITS):  # logits cannot be asked for: the weights decide
        command += f" --layer {step.layer}"
    aliases = [alias for name in MODELS.names() for alias in MODELS.aliases_of(name)]
    models = [*map(_model, stores), *MODELS.names(), *aliases]
    datasets = [*map(_dataset, stores), *DATASETS.names()]
    layers = [layer for store in asked for layer in _layers(store)]
    hint = None
    for name, known in ((step.dataset, datasets), (step.model, models)):
        if name and {name, name.partition(":")[0]}.isdisjoint(known):  # "timm:NAME", "csv:PATH"
            hint = did_you_mean(name, known) or hint
    if step.layer and (near := did_you_mean(step.layer, layers)):
        hint = f"{near} or extract it: {command}"
    return StoreError(
        "There is no feature store for this.",
        where=folder,
        expected=", ".join(f"{kind} {name}" for kind, name in parts.items() if name) or None,
        got="; ".join(sorted({_label(store) for store in stores})) or "no store at all",
        next_step=hint or command,
    )


def _several_fit(stores: Sequence[FeatureStore], *, any_layer: bool = False) -> UsageError:
    """Say which options tell the stores apart; ``any_layer``: whether none was asked for."""
    datasets, models = {_dataset(store) for store in stores}, {_model(store) for store in stores}
    first, *others = (set(_layers(store)) for store in stores)
    apart: dict[str, set[str]] = {
        "--dataset": datasets if len(datasets) > 1 else set(),
        "--model": models if len(models) > 1 else set(),
        "--layer": first.union(*others) - first.intersection(*others) if any_layer else set(),
    }
    options = [f"{flag} ({' or '.join(sorted(names))})" for flag, names in apart.items() if names]
    files = "name the files: --train FILE --test FILE"
    return UsageError(
        "Several feature stores fit; say which.",
        got=_listed(stores),
        next_step=f"add {', '.join(options)}; or {files}" if options else files,
    )
