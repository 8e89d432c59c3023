"""How the rows of stores are split: which train, which validate and which test.

Test rows are never looked at before the one prediction that the metrics are computed from;
hyper-parameters are chosen on rows of the training part (:mod:`featpipe.evaluation.fitting`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from featpipe.errors import FitError, UsageError
from featpipe.evaluation.screening import Screening
from featpipe.probes.base import FEW_ROWS, FOLDS, SHARE
from featpipe.steps import grammar
from featpipe.store import FeatureStore

Rows = NDArray[np.int64]

_MOSTLY_ALONE = 0.9  # groups per row, from which on each row counts as a group
_MOST_ALIKE = 0.01  # of the rows in one of them, then
# How notes about groups, and about a protocol that was chosen automatically, begin.
GROUPED, CHOSEN = "Grouped by ", "Protocol chosen automatically"
_FAR = 0.05  # of the rows: if the share held out differs by more, a note says so
_FINEST = 10  # a share of groups is a number of folds out of at most so many


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a store, by their ascending numbers."""

    store: FeatureStore
    rows: Rows
    together: Rows | None = None  # a number for each row of the store: no split divides equal ones

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Rows:
        """Classes of the rows, of shape (n,)."""
        return self.store.labels[self.rows]

    @property
    def groups(self) -> Rows | None:
        """Numbers of what no split may divide, of shape (n,); None where every row is alone."""
        return None if self.together is None else self.together[self.rows]

    @property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return [self.store.ids[row] for row in self.rows]

    def take(self, values: Any) -> NDArray[Any]:
        """Return these rows of an array; all of them uncopied, if it is in one piece."""
        return np.asanyarray(values) if len(self.rows) == len(values) else values[self.rows]

    def width(self, layer: str | None) -> int:
        """Return how many features a row has; a FitError, if the layer holds maps."""
        _, *shape = self.store.features(layer).shape
        if len(shape) != 1:
            what = "A probe needs one vector per image, and this layer holds maps."
            got = f"shape {tuple(shape)} per image"
            advice = "extract the layer without ':map', or use featpipe finetune"
            raise FitError(what, where=self.store.path, got=got, next_step=advice)
        return int(shape[0])

    def features(self, layer: str | None) -> NDArray[np.float32]:
        """Return the features of the rows, of shape (n, d), float32 and finite."""
        self.width(layer)
        features = self.take(self.store.features(layer))
        _need_finite(features, self.store.path)
        return features.astype(np.float32, copy=False)


class StoredRows:
    """Features of rows that stay on disk; indexing reads those asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, rows: RowSet, layer: str | None) -> None:
        self._store, self._layer, self._rows = rows.store, layer, rows.rows
        self.shape = (len(rows), rows.width(layer))

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        numbers = np.atleast_1d(self._rows[rows])
        # A new mapping each time, because pages of a lasting one stay in memory.
        block = self._store.features(self._layer)[numbers].astype(np.float32)
        _need_finite(block, self._store.path)
        return block if np.ndim(self._rows[rows]) else block[0]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that train one model and rows that test it."""

    name: str  # "split", "fold 3" …
    train: RowSet
    test: RowSet
    train_per_class: int | None = None  # where the split is a point of a low-shot curve
    repeat: int | None = None  # which random draw of that point


def _need_finite(features: NDArray[Any], path: Path) -> None:
    if bad := np.count_nonzero(~np.isfinite(features).all(axis=1)):
        what = f"{bad} rows hold features that are not finite."
        raise FitError(what, where=path, next_step=f"featpipe store verify {path}")


def make_splits(
    protocol: str,
    train: FeatureStore,
    test: FeatureStore | None,
    seed: int,
    screening: Screening | None = None,
) -> tuple[str, list[Split]]:
    """Return the protocol that ``"auto"`` means, and its splits.

    ``test`` holds the dataset's own test rows; ``screening`` says which rows take part. It is an
    error if the stores cannot serve the protocol, if there are too few rows for it or if an image
    occurs twice in a store.
    """
    protocol, test = resolve(protocol, test)
    screening = screening or Screening()
    kind, number = grammar.protocol(protocol)
    _refuse_repeated_images(train, test, trained=kind != "all")
    rows = RowSet(train, train.usable, screening.together(train))
    test_rows = None if test is None else RowSet(test, test.usable)
    if kind == "all":  # no row trains, so only a method without training can be tested
        tested = rows if test_rows is None else test_rows
        splits = [Split("all rows", replace(rows, rows=rows.rows[:0]), tested)]
    elif kind in ("kfold", "holdout"):
        splits = _random_splits(rows, protocol, seed)
    elif kind == "split":
        if test_rows is None:
            raise UsageError(
                "The protocol 'split' needs a store of the dataset's own test rows.",
                where=train.path,
                next_step=f"featpipe extract --dataset {train.manifest['dataset']['name']} --model "
                f"{train.manifest['backbone']['model']} --split test, or --protocol holdout:0.2",
            )
        splits = [Split("split", rows, test_rows)]
    else:
        splits = _official_folds(rows, test_rows, None if number is None else int(number))
    return protocol, screening.screen(splits)


def _official_folds(rows: RowSet, test_rows: RowSet | None, number: int | None) -> list[Split]:
    """Train on each prescribed fold, or one; test on the test split, else on the other rows.

    STL-10 prescribes the former (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10/).
    """
    prescribed, advice = rows.store.folds, "use --protocol kfold:5, split or holdout:0.2"
    if not prescribed:
        what = "The dataset prescribes no folds."
        raise UsageError(what, where=rows.store.path, next_step=advice)
    if number is not None and number >= len(prescribed):
        raise UsageError(f"There is no fold {number}.", expected=f"0 to {len(prescribed) - 1}")
    splits = []
    for i in range(len(prescribed)) if number is None else [number]:
        train = replace(rows, rows=np.intersect1d(prescribed[i], rows.rows))
        others = replace(rows, rows=np.setdiff1d(rows.rows, prescribed[i]))
        splits.append(Split(f"fold {i}", train, others if test_rows is None else test_rows))
    return splits


def resolve(protocol: str, test: FeatureStore | None) -> tuple[str, FeatureStore | None]:
    """Return what a protocol means, in one spelling, and the test store if it looks at one."""
    if protocol == "auto":
        protocol = f"holdout:{SHARE}" if test is None else "split"
    kind, number = grammar.protocol(protocol)
    return _spelled(kind, number), None if kind in ("kfold", "holdout") else test


def _spelled(kind: str, number: float | None) -> str:
    """Return the one spelling of what a grammar has read: of ``holdout:.20``, ``holdout:0.2``."""
    return kind if number is None else f"{kind}:{number}"


def _refuse_repeated_images(
    train: FeatureStore, test: FeatureStore | None, *, trained: bool
) -> None:
    """Refuse an image that occurs twice: it could train the model that it tests."""
    for store in [train] if test is None else [train, test]:
        if twice := [name for name, count in Counter(store.ids).items() if count > 1]:
            what, got = f"{len(twice)} images occur more than once.", ", ".join(twice[:5])
            advice = "extract from a source that lists every image once"
            raise FitError(what, where=store.path, got=got, next_step=advice)
    if test is None or not trained:
        return
    one, other = (store.manifest["dataset"] for store in (train, test))
    same_split = (one["name"], one["split"]) == (other["name"], other["split"])
    shared = set(train.ids) & set(test.ids) if same_split else set()
    if shared or one["fingerprint"] == other["fingerprint"]:
        what = "The test rows are training rows: the same images would train and test."
        both = f"{len(shared)} shared images of {one['name']} {one['split']}" if shared else None
        advice = "name another test split, or hold out rows: --protocol holdout:0.2"
        raise FitError(what, where=f"{train.path} and {test.path}", got=both, next_step=advice)


def _random_splits(rows: RowSet, protocol: str, seed: int) -> list[Split]:
    """Divide the rows of one store, stratified by class, into folds or once."""
    kind, number = grammar.protocol(protocol)
    store, labels, n_folds = rows.store, rows.labels, int(number or 0) if kind == "kfold" else 2
    if not len(labels):
        raise no_labels(store)
    groups, by = rows.groups, grouped_by(store)
    if groups is not None and len(np.unique(groups)) == 1:
        alike, got = "identical or in one cluster", None
        advice = "add different images; featpipe audit lists identical ones"
        if by:
            alike, got = "in one group", f"{store.groups[rows.rows[0]]!r}, by {by}"
            advice = "extract with groups that are smaller (--group-by), or with none"
        what = f"All labelled images are {alike}, which cannot both train and test."
        raise FitError(what, where=store.path, got=got, next_step=advice)
    counts = units_per_class(labels, groups, len(store.classes))
    if few := np.flatnonzero((counts > 0) & (counts < n_folds)).tolist():
        units = f"groups (by {by}) with images" if by else "images or clusters of similar images"
        units = "images" if groups is None else units
        what = f"{protocol} needs at least {n_folds} labelled {units} of every class."
        got = "of " + ", ".join(f"{store.classes[c]}: {counts[c]}" for c in few[:5])
        got += " …" * (len(few) > 5)
        advice = "add images, drop these classes with --classes, or take another --protocol"
        raise FitError(what, where=store.path, got=got, next_step=advice)
    splits = []
    for i, parts in enumerate(cut(protocol, labels, groups, seed)):
        train, test = (replace(rows, rows=rows.rows[np.sort(part)]) for part in parts)
        name = f"fold {i} of {n_folds}" if kind == "kfold" else f"holdout {number:g}"
        splits.append(Split(name, train, test))
    return splits


def no_labels(store: FeatureStore) -> FitError:
    """Return the error for a store that nothing can be trained or tested on."""
    got = f"{len(store.labels)} images without a class"
    advice = "sort the images into class folders, or give a CSV a column label; then extract again"
    return FitError("There is no labelled row.", where=store.path, got=got, next_step=advice)


def units_per_class(labels: Rows, groups: Rows | None, n_classes: int = 0) -> Rows:
    """Return how many rows of each class there are or, with groups, how many groups with some."""
    if groups is not None:
        labels = np.unique(np.stack([labels, groups]), axis=1)[0]
    return np.bincount(labels, minlength=n_classes)


def cut(how: str, labels: Rows, groups: Rows | None, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide rows into two parts, stratified by class: once, or once for each fold.

    ``how`` is ``"kfold:K"`` or ``"holdout:F"``; returned are rows that train, and those held out.
    No group is in both parts. If few rows share a group, groups are divided like their first rows;
    otherwise F is rounded to a number of folds by group, out of at most ten.
    """
    kind, number = grammar.protocol(how)
    n_folds = int(number or 0) if kind == "kfold" else 0
    if groups is None:
        n, n_classes = len(labels), len(np.unique(labels))
        if n_folds:
            cv: Any = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
            return list(cv.split(labels, labels))
        # Each side has room for a row of every class.
        n_apart = min(max(round((number or 0.0) * n), n_classes), n - n_classes)
        cv = StratifiedShuffleSplit(1, test_size=n_apart, random_state=seed)
        return list(cv.split(labels, labels))
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    kept = np.bincount(labels[first], minlength=labels.max() + 1)
    fewest = kept[np.unique(labels)].min()  # a class whose images are all copies of others: 0
    if mostly_alone(groups) and fewest >= max(2, n_folds):
        cuts = cut(how, labels[first], None, seed)
        isin = [(np.isin(unit, train), np.isin(unit, apart)) for train, apart in cuts]
        return [(np.flatnonzero(train), np.flatnonzero(apart)) for train, apart in isin]
    n_apart = 1
    if kind == "holdout":
        most = min(_FINEST, len(first), int(np.bincount(labels).max()))
        share = Fraction(number or 0).limit_denominator(most)
        share = min(max(share, Fraction(1, most)), Fraction(most - 1, most))
        n_folds, n_apart = share.denominator, share.numerator
    cv = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # about a class with fewer rows than folds, harmless here
        warnings.simplefilter("ignore", UserWarning)
        parts = list(cv.split(labels, labels, groups))
    if kind == "kfold":
        return parts

    def off(folds: Iterable[tuple[Rows, Rows]]) -> float:
        return abs(sum(len(apart) for _, apart in folds) - (number or 0.0) * len(labels))

    # Folds are random; others than the first are held out only where large groups make these unfit.
    chosen: Iterable[tuple[Rows, Rows]] = parts[:n_apart]
    if off(chosen) > _FAR * len(labels):
        chosen = min(combinations(parts, n_apart), key=off)
    apart = np.sort(np.concatenate([held_out for _, held_out in chosen]))
    return [(np.setdiff1d(np.arange(len(labels)), apart), apart)]


def mostly_alone(groups: Rows) -> bool:
    """Return whether nearly every row is a group of its own, and no group is large."""
    sizes = np.unique(groups, return_counts=True)[1]
    alone = len(sizes) > _MOSTLY_ALONE * len(groups)
    return alone and bool(sizes.max() <= max(2, _MOST_ALIKE * len(groups)))


def grouped_by(store: FeatureStore) -> str:
    """Return where the groups of a store's rows come from; empty where there are none."""
    return str(store.manifest["dataset"].get("grouped_by", ""))


def group_notes(splits: Sequence[Split]) -> list[str]:
    """Return notes about groups: what was kept together, and what a dataset's own split divides."""
    if not (by := grouped_by(splits[0].test.store)):
        return []

    def names(rows: RowSet) -> set[str]:
        groups = rows.store.groups
        return {groups[row] for row in rows.rows} if groups else set()

    sides = [(names(split.train), names(split.test)) for split in splits]
    straddling = max(len(train & test) for train, test in sides)
    across = "none of which is on both sides of a split."
    if straddling:
        across = f"{straddling} of which are on both sides of the dataset's own split."
    every = set().union(*(side for both in sides for side in both))
    notes = []
    kind, _, asked = splits[0].name.partition(" ")
    held_out = len(splits[0].test) / max(1, len(splits[0].train) + len(splits[0].test))
    if kind == "holdout" and abs(held_out - float(asked)) > _FAR:
        notes.append(
            f"{held_out:.0%} of the images are held out instead of {float(asked):.0%}, because "
            "groups are not divided and some are large."
        )
    return [
        *notes,
        f"{GROUPED}{by}: {len(every)} groups, {across} Intervals and tests count "
        "images, as if those of a group were independent.",
    ]


def low_shot(splits: Sequence[Split], sizes: Sequence[int], repeats: int, seed: int) -> list[Split]:
    """Return every split with only N training rows of each class, several draws for each N.

    Draws are nested: the rows for a smaller N are among those for a larger one, so the curve
    shows what *more* labels bring and not the luck of other images.
    """
    drawn = []
    for number, split in enumerate(splits):
        train, labels = split.train, split.train.labels
        classes, counts = np.unique(labels, return_counts=True)
        if max(sizes) > counts.min():
            what, n = f"There are no {max(sizes)} training images of every class.", counts.min()
            got = f"{n} of {train.store.classes[classes[counts.argmin()]]!r}"
            advice = f"--train-per-class up to {n}"
            raise FitError(what, where=split.name, got=got, next_step=advice)
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, number, repeat])
            order = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
            for size in sizes:
                chosen = np.sort(np.concatenate([rows[:size] for rows in order]))
                few = replace(train, rows=train.rows[chosen])
                name = f"{split.name}, {size} per class, draw {repeat}"
                drawn.append(Split(name, few, split.test, size, repeat))
    return drawn


def resolve_validation(spec: str, y: Rows, groups: Rows | None = None) -> str:
    """Return how training rows of the classes ``y`` choose hyper-parameters, in one spelling.

    That is ``"none"`` where some class has a single row, so that no row of it can be held out, or
    is in a single group.
    """
    kind, number = grammar.validation(spec)
    counts = units_per_class(y, groups)
    fewest = int(min(counts[counts > 0], default=0))
    if fewest < 2:
        return "none"
    if kind == "auto":
        folds = "kfold", min(FOLDS, fewest)
        kind, number = folds if len(y) < FEW_ROWS else ("holdout", SHARE)
    if kind == "kfold" and number is not None and number > fewest:
        units, advice = "rows" if groups is None else "groups", f"--validation kfold:{fewest}"
        what = f"{spec} needs {number} training {units} of every class."
        raise FitError(what, got=f"a class with {fewest}", next_step=advice)
    return _spelled(kind, number)


def validation_folds(
    spec: str, y: Rows, groups: Rows | None, seed: int
) -> tuple[list[tuple[Rows, Rows]], str] | None:
    """Return the parts of :func:`resolve_validation`, and how many in words; None for none."""
    resolved = resolve_validation(spec, y, groups)
    if resolved == "none":
        return None
    folds = cut(resolved, y, groups, seed)
    several = resolved.startswith("kfold")
    on = f"{len(folds)} folds" if several else f"{len(folds[0][1])} held-out rows"
    return folds, on if groups is None else f"{on} (whole groups)"
