"""Which stores a command means, and how their rows are split: which rows train and which test.

Test rows are never looked at before the one prediction that the metrics are computed from;
hyper-parameters are chosen on rows of the training part (:mod:`featpipe.evaluation.fitting`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from featpipe.datasets import short_name
from featpipe.errors import FitError, StoreError, UsageError
from featpipe.probes.base import LOGITS, Evaluation, canonical_model
from featpipe.steps import Context, grammar
from featpipe.store import FeatureStore, scan_stores

_TEST_SPLITS = ("test", "val", "valid", "validation")
_UNLABELLED = "unlabeled"  # STL-10's name of it
_FEW_ROWS = 2000  # below this, one validation holdout is too noisy a judge and folds are cheap

Rows = NDArray[np.int64]


# Stores


def select_stores(step: Evaluation, context: Context) -> tuple[FeatureStore, FeatureStore | None]:
    """Return the store of the training rows and, where there is one, that of the test rows."""
    if step.train is not None:
        return _open_named(step, step.train)
    folder = context.workspace.features
    stores, damaged = scan_stores(folder)
    for error in damaged:
        context.progress.note(f"ignored: {error}")
    fitting = []
    for store in stores:
        layers = {None, *store.layers} | ({LOGITS} if store.logits is not None else set())
        if _is_asked_for(store, step) and step.layer in layers:
            fitting.append(store)
    if not fitting:
        model, dataset = step.model or "MODEL", step.dataset or "DATASET"
        layer = f" --layer {step.layer}" if step.layer not in (None, LOGITS) else ""
        raise StoreError(
            "There is no feature store for this.",
            where=folder,
            expected=f"dataset {dataset}, model {model}"
            + (f", layer {step.layer}" if step.layer else ""),
            got="; ".join(sorted({_label(store) for store in stores})) or "no store at all",
            next_step=f"featpipe extract --model {model} --dataset {dataset}{layer}",
        )
    shared = [{**s.manifest, "dataset": s.manifest["dataset"]["name"]} for s in fitting]
    if any(one != shared[0] for one in shared):  # they differ in more than the split
        raise _several_fit(fitting)
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
            got="".join(f"\n    {_label(store)}: {store.path}" for store in (train, test)),
            next_step="extract both splits with the same model, weights and preprocessing",
        )
    return train, test


def _is_asked_for(store: FeatureStore, step: Evaluation) -> bool:
    dataset, model = store.manifest["dataset"], store.manifest["backbone"]["model"]
    return (
        (step.dataset is None or short_name(step.dataset) == dataset["name"])
        and (step.model is None or canonical_model(step.model) == model)
        and dataset["split"] != _UNLABELLED
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


def _several_fit(stores: list[FeatureStore]) -> UsageError:
    return UsageError(
        "Several feature stores fit; say which.",
        got="".join(f"\n    {_label(store)}: {store.path}" for store in stores),
        next_step="add --dataset, --model or --layer if that tells them apart, or name the files: "
        "--train FILE --test FILE",
    )


def _label(store: FeatureStore) -> str:
    dataset = store.manifest["dataset"]
    return (
        f"{dataset['name']} {dataset['split']} ({dataset['images']} images) × "
        f"{store.manifest['backbone']['model']} {'/'.join(store.layers)}"
    )


# Rows


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a store, by their ascending numbers."""

    store: FeatureStore
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Rows:
        """Classes of the rows, of shape (n,)."""
        return self.store.labels[self.rows]

    @property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return [self.store.ids[row] for row in self.rows]

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return these rows of an array; the array itself, uncopied, where that is all of them."""
        return values if len(self.rows) == len(values) else values[self.rows]

    def features(self, layer: str | None) -> NDArray[np.float32]:
        """Return the features of the rows, of shape (n, d), float32 and finite."""
        features = self.take(self.store.features(layer))
        if features.ndim != 2:
            raise FitError(
                "A probe needs one vector per image, and this layer holds maps.",
                where=self.store.path,
                got=f"shape {features.shape[1:]} per image",
                next_step="extract the layer without ':map', or use featpipe finetune",
            )
        if bad := np.count_nonzero(~np.isfinite(features).all(axis=1)):
            raise FitError(
                f"{bad} rows hold features that are not finite.",
                where=self.store.path,
                next_step=f"featpipe store verify {self.store.path}",
            )
        return features.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that train one model and rows that test it."""

    name: str  # "split", "fold 3" …
    train: RowSet
    test: RowSet
    train_per_class: int | None = None  # where the split is a point of a low-shot curve
    repeat: int | None = None  # which random draw of that point


def make_splits(
    protocol: str, train: FeatureStore, test: FeatureStore | None, seed: int
) -> tuple[str, list[Split]]:
    """Return the protocol that ``"auto"`` means, and its splits.

    ``test`` holds the dataset's own test rows.

    Raises
    ------
    UsageError
        If there is no such protocol, or the stores cannot serve it.
    FitError
        If there are too few rows for it, or an image occurs twice in a store.
    """
    protocol, test = resolve(protocol, test)
    kind, number = grammar.protocol(protocol)
    rows = RowSet(train, train.usable)
    test_rows = None if test is None else RowSet(test, test.usable)
    _need_other_images(train, test, trained=kind != "all")
    if kind == "all":  # no row trains, so only a method without training can be tested
        nothing = RowSet(train, train.usable[:0])
        return protocol, [Split("all rows", nothing, rows if test_rows is None else test_rows)]
    if kind in ("kfold", "holdout"):
        return protocol, _random_splits(rows, protocol, seed)
    if kind == "split":
        if test_rows is None:
            manifest = train.manifest
            raise UsageError(
                "The protocol 'split' needs a store of the dataset's own test rows.",
                where=train.path,
                next_step=f"featpipe extract --dataset {manifest['dataset']['name']} --model "
                f"{manifest['backbone']['model']} --split test, or --protocol holdout:0.2",
            )
        return protocol, [Split("split", rows, test_rows)]
    if not train.folds:
        raise UsageError(
            "The dataset prescribes no folds.",
            where=train.path,
            next_step="use --protocol kfold:5, split or holdout:0.2",
        )
    # Train on each prescribed fold; test on the test split, else on the other training rows.
    # STL-10 prescribes the former (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10/).
    folds = []
    for i, fold in enumerate(train.folds):
        inside = np.intersect1d(fold, train.usable)
        outside = RowSet(train, np.setdiff1d(train.usable, inside))
        tested = outside if test_rows is None else test_rows
        folds.append(Split(f"fold {i}", RowSet(train, inside), tested))
    if kind == "folds":
        return protocol, folds
    if int(number or 0) >= len(folds):
        raise UsageError(f"There is no fold {number}.", expected=f"0 to {len(folds) - 1}")
    return protocol, [folds[int(number or 0)]]


def resolve(protocol: str, test: FeatureStore | None) -> tuple[str, FeatureStore | None]:
    """Return the protocol that ``"auto"`` means, and the test store if it looks at one."""
    if protocol == "auto":
        protocol = "holdout:0.2" if test is None else "split"
    return protocol, None if protocol.startswith(("kfold:", "holdout:")) else test


def _need_other_images(train: FeatureStore, test: FeatureStore | None, *, trained: bool) -> None:
    """Refuse an image that occurs twice: it could train the model that it tests."""
    for store in [train] if test is None else [train, test]:
        if twice := [name for name, count in Counter(store.ids).items() if count > 1]:
            raise FitError(
                f"{len(twice)} images occur more than once.",
                where=store.path,
                got=", ".join(twice[:5]),
                next_step="extract from a source that lists every image once",
            )
    if test is None or not trained:
        return
    one, other = (store.manifest["dataset"] for store in (train, test))
    same_split = (one["name"], one["split"]) == (other["name"], other["split"])
    shared = set(train.ids) & set(test.ids) if same_split else set()
    if shared or one["fingerprint"] == other["fingerprint"]:
        raise FitError(
            "The test rows are training rows: the same images would train and test.",
            where=f"{train.path} and {test.path}",
            got=f"{len(shared)} shared images of {one['name']} {one['split']}" if shared else None,
            next_step="name another test split, or let one be cut: --protocol holdout:0.2",
        )


def _random_splits(rows: RowSet, protocol: str, seed: int) -> list[Split]:
    """Cut the rows of one store, stratified by class, into folds or once."""
    kind, number = grammar.protocol(protocol)
    store, labels, n_folds = rows.store, rows.labels, int(number or 0) if kind == "kfold" else 2
    if not len(labels):
        raise FitError("There is no labelled row.", where=store.path)
    counts = np.bincount(labels, minlength=len(store.classes))
    if few := [store.classes[c] for c in np.flatnonzero((counts > 0) & (counts < n_folds))]:
        raise FitError(
            f"{protocol} needs at least {n_folds} labelled images of every class.",
            where=store.path,
            got=f"fewer of {', '.join(few[:5])}{' …' if len(few) > 5 else ''}",
            next_step="add images, drop these classes with --classes, or take another --protocol",
        )
    cv = (
        StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        if kind == "kfold"
        else _stratified_share(labels, number or 0.0, seed)
    )
    return [
        Split(
            f"fold {i} of {n_folds}" if kind == "kfold" else f"holdout {number:g}",
            RowSet(store, rows.rows[np.sort(train)]),
            RowSet(store, rows.rows[np.sort(test)]),
        )
        for i, (train, test) in enumerate(cv.split(labels, labels))
    ]


def _stratified_share(labels: Rows, share: float, seed: int) -> StratifiedShuffleSplit:
    """Split off a share of the rows; each side has room for a row of every class."""
    n_classes = len(np.unique(labels))
    n_apart = min(max(round(share * len(labels)), n_classes), len(labels) - n_classes)
    return StratifiedShuffleSplit(1, test_size=n_apart, random_state=seed)


def low_shot(splits: Sequence[Split], sizes: Sequence[int], repeats: int, seed: int) -> list[Split]:
    """Return every split with only N training rows of each class, several draws for each N.

    Draws are nested: the rows for a smaller N are among those for a larger one, so the curve
    shows what *more* labels bring and not the luck of other images.
    """
    drawn = []
    for number, split in enumerate(splits):
        labels = split.train.labels
        classes, counts = np.unique(labels, return_counts=True)
        if max(sizes) > counts.min():
            raise FitError(
                f"There are no {max(sizes)} training images of every class.",
                where=split.name,
                got=f"{counts.min()} of {split.train.store.classes[classes[counts.argmin()]]!r}",
                next_step=f"--train-per-class up to {counts.min()}",
            )
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, number, repeat])
            order = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
            for size in sizes:
                chosen = np.sort(np.concatenate([rows[:size] for rows in order]))
                drawn.append(
                    replace(
                        split,
                        name=f"{split.name}, {size} per class, draw {repeat}",
                        train=RowSet(split.train.store, split.train.rows[chosen]),
                        train_per_class=size,
                        repeat=repeat,
                    )
                )
    return drawn


def validation_rows(
    spec: str, y: NDArray[np.int64], seed: int
) -> StratifiedKFold | StratifiedShuffleSplit | None:
    """Return how training rows are split to choose hyper-parameters; test rows are not used.

    Returns ``None`` where some class has a single row, so that no row of it can be held out.
    """
    kind, number = grammar.validation(spec)
    least = int(np.unique(y, return_counts=True)[1].min())
    if least < 2:
        return None
    if kind == "kfold" or (kind == "auto" and len(y) < _FEW_ROWS):
        folds = int(number or 3)
        if kind == "kfold" and folds > least:
            raise FitError(
                f"kfold:{folds} needs {folds} training rows of every class.",
                got=f"a class with {least}",
                next_step=f"--validation kfold:{least}",
            )
        return StratifiedKFold(min(folds, least), shuffle=True, random_state=seed)
    return _stratified_share(y, number or 0.2, seed)
