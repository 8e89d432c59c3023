"""How rows are split: which rows train a model and which rows test it.

Test rows are never looked at before the one prediction that the metrics are computed from;
hyper-parameters are chosen on rows of the training part (:mod:`featpipe.evaluate.fitting`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from featpipe.errors import FitError, UsageError
from featpipe.steps import grammar
from featpipe.store import FeatureStore

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a store.

    Parameters
    ----------
    store : FeatureStore
    rows : ndarray of shape (n,), int64
        Ascending row numbers.
    """

    store: FeatureStore
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the rows, of shape (n,)."""
        return self.store.labels[self.rows]

    @property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return [self.store.ids[row] for row in self.rows]

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return these rows of an array; the array itself, uncopied, where that is all of them."""
        if len(self.rows) == len(values):
            return values
        return values[self.rows]

    def features(self, layer: str | None) -> NDArray[np.float32]:
        """Return the features of the rows, of shape (n, d), float32.

        Raises
        ------
        FitError
            If the layer holds maps, or a value is not finite.
        """
        features = self.take(self.store.features(layer))
        if features.ndim != 2:
            raise FitError(
                "A probe needs one vector per image, and this layer holds maps.",
                where=self.store.path,
                got=f"shape {features.shape[1:]} per image",
                next_step="extract the layer without ':map', or use featpipe finetune",
            )
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise FitError(
                f"{np.count_nonzero(~finite)} rows hold features that are not finite.",
                where=self.store.path,
                next_step=f"featpipe store verify {self.store.path}",
            )
        return features.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that train one model and rows that test it.

    Parameters
    ----------
    name : str
        ``"split"``, ``"fold 3"`` …
    train, test : RowSet
    train_per_class : int or None
        Labelled images per class, where the split is a point of a low-shot curve.
    repeat : int or None
        Which random draw of that point.
    """

    name: str
    train: RowSet
    test: RowSet
    train_per_class: int | None = None
    repeat: int | None = None


def make_splits(
    protocol: str, train: FeatureStore, test: FeatureStore | None, seed: int
) -> tuple[str, list[Split]]:
    """Return the protocol that ``"auto"`` stands for, and its splits.

    Parameters
    ----------
    protocol : str
        ``"auto"``, ``"split"``, ``"folds"``, ``"fold:K"``, ``"kfold:K"``, ``"holdout:F"`` or
        ``"all"``.
    train : FeatureStore
    test : FeatureStore or None
        The dataset's own test rows, where there are such.
    seed : int

    Raises
    ------
    UsageError
        If the protocol is none of these, or the stores cannot serve it.
    FitError
        If there are too few rows for it, or an image occurs twice in a store.
    """
    protocol, test = resolve(protocol, test)
    for store in (train, test):
        if store is not None:
            _need_unique_ids(store)
    kind, number = grammar.protocol(protocol)
    if test is not None and kind != "all":
        _need_other_images(train, test)
    makers: dict[str, Callable[[], list[Split]]] = {
        "all": lambda: _every_row(train, test),
        "split": lambda: _own_split(train, test),
        "folds": lambda: list(_official_folds(train, test)),
        "fold": lambda: _one_fold(train, test, int(number or 0)),
        "kfold": lambda: list(_kfold(train, int(number or 0), seed)),
        "holdout": lambda: _holdout(train, number or 0.0, seed),
    }
    return protocol, makers[kind]()


def _need_unique_ids(store: FeatureStore) -> None:
    """Refuse images that occur twice: one could train the model that the other tests."""
    if len(set(store.ids)) < len(store.ids):
        twice = [name for name, count in Counter(store.ids).items() if count > 1]
        raise FitError(
            f"{len(twice)} images occur more than once.",
            where=store.path,
            got=", ".join(twice[:5]),
            next_step="extract from a source that lists every image once",
        )


def _need_other_images(train: FeatureStore, test: FeatureStore) -> None:
    """Refuse test rows that are training rows."""
    one, other = (store.manifest["dataset"] for store in (train, test))
    same_split = (one["name"], one["split"]) == (other["name"], other["split"])
    shared = sorted(set(train.ids) & set(test.ids)) if same_split else []
    if shared or one["fingerprint"] == other["fingerprint"]:
        raise FitError(
            "The test rows are training rows: the same images would train and test.",
            where=f"{train.path} and {test.path}",
            got=f"{len(shared)} shared images of {one['name']} {one['split']}" if shared else None,
            next_step="name another test split, or let one be cut: --protocol holdout:0.2",
        )


def resolve(protocol: str, test: FeatureStore | None) -> tuple[str, FeatureStore | None]:
    """Return the protocol that ``"auto"`` stands for, and the test store if it looks at one."""
    if protocol == "auto":
        protocol = "holdout:0.2" if test is None else "split"
    return protocol, None if protocol.startswith(("kfold:", "holdout:")) else test


def _every_row(train: FeatureStore, test: FeatureStore | None) -> list[Split]:
    """Test every row there is: no row trains, so only a method without training can be tested."""
    store = train if test is None else test
    return [Split("all rows", RowSet(train, train.usable[:0]), RowSet(store, store.usable))]


def _own_split(train: FeatureStore, test: FeatureStore | None) -> list[Split]:
    if test is None:
        raise UsageError(
            "The protocol 'split' needs a store of the dataset's own test rows.",
            where=train.path,
            next_step=f"featpipe extract --dataset {train.manifest['dataset']['name']} --model "
            f"{train.manifest['backbone']['model']} --split test, or --protocol holdout:0.2",
        )
    return [Split("split", RowSet(train, train.usable), RowSet(test, test.usable))]


def _official_folds(train: FeatureStore, test: FeatureStore | None) -> Iterator[Split]:
    """Train on each prescribed fold; test on the test split, else on the other training rows.

    STL-10 prescribes the former (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10/).
    """
    if not train.folds:
        raise UsageError(
            "The dataset prescribes no folds.",
            where=train.path,
            next_step="use --protocol kfold:5, split or holdout:0.2",
        )
    for number, fold in enumerate(train.folds):
        rows = np.intersect1d(fold, train.usable)
        tested = (
            RowSet(train, np.setdiff1d(train.usable, rows))
            if test is None
            else RowSet(test, test.usable)
        )
        yield Split(f"fold {number}", RowSet(train, rows), tested)


def _one_fold(train: FeatureStore, test: FeatureStore | None, number: int) -> list[Split]:
    folds = list(_official_folds(train, test))
    if number >= len(folds):
        raise UsageError(f"There is no fold {number}.", expected=f"0 to {len(folds) - 1}")
    return [folds[number]]


def _kfold(store: FeatureStore, n_folds: int, seed: int) -> Iterator[Split]:
    labels = store.labels[store.usable]
    _need_per_class(store, labels, n_folds, f"kfold:{n_folds}")
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(folds.split(labels, labels)):
        yield Split(
            f"fold {number} of {n_folds}",
            RowSet(store, store.usable[train]),
            RowSet(store, store.usable[test]),
        )


def _holdout(store: FeatureStore, share: float, seed: int) -> list[Split]:
    labels = store.labels[store.usable]
    _need_per_class(store, labels, 2, f"holdout:{share:g}")
    n_classes = len(np.unique(labels))
    n_test = min(max(round(share * len(labels)), n_classes), len(labels) - n_classes)
    splitter = StratifiedShuffleSplit(1, test_size=n_test, random_state=seed)
    train, test = next(splitter.split(labels, labels))
    return [
        Split(
            f"holdout {share:g}",
            RowSet(store, store.usable[np.sort(train)]),
            RowSet(store, store.usable[np.sort(test)]),
        )
    ]


def _need_per_class(store: FeatureStore, labels: Rows, needed: int, protocol: str) -> None:
    if not len(labels):
        raise FitError("There is no labelled row.", where=store.path)
    counts = np.bincount(labels, minlength=len(store.classes))
    few = [store.classes[c] for c in np.flatnonzero((counts > 0) & (counts < needed))]
    if few:
        raise FitError(
            f"{protocol} needs at least {needed} labelled images of every class.",
            where=store.path,
            got=f"fewer of {', '.join(few[:5])}{' …' if len(few) > 5 else ''}",
            next_step="add images, drop these classes with --classes, or take another --protocol",
        )


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
