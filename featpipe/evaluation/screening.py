"""Which rows take part: lists of images to leave out or to keep together, and leaks to drop."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featpipe.errors import DataError, FitError
from featpipe.evaluation.leaks import first_of_same_image, image_numbers, pixels_known, shared
from featpipe.evaluation.options import RowOptions
from featpipe.files import read_regular
from featpipe.store import FeatureStore
from featpipe.workspace import explain_os_errors, restore_cell, user_path

if TYPE_CHECKING:
    from featpipe.evaluation.protocol import RowSet, Split

_MOST_BYTES = 1 << 30
_DROP = "drop"  # what audit.csv suggests for images to leave out
_CLUSTER = ("cluster", "group")  # columns that may say what an image belongs to
Key = tuple[str, str, str]  # dataset, split, id; each of the first two may be empty: any


@dataclass(frozen=True)
class Screening:
    """Images to leave out, images to keep together, and what is done about leaks.

    ``left_out`` and ``clusters`` name images by dataset and split (empty: any) and id; ``notes``
    are what was done, in words.
    """

    leaks: str = "warn"  # or "fail", "drop"
    left_out: frozenset[Key] = frozenset()
    clusters: Mapping[Key, Sequence[str]] = field(default_factory=dict)
    drop: Path | None = None  # the list that left_out comes from
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, step: RowOptions, stores: Sequence[FeatureStore | None]) -> Screening:
        """Read the lists that a step names; one that names no image of the stores is refused."""
        there = [store for store in stores if store is not None]
        left_out = {
            _key(row)
            for row in _read(step.drop, there)
            if row.get("suggestion", _DROP).strip().lower() == _DROP
        }
        known = {key for store in there for _, key in _found(store, left_out)}
        notes = []
        if unknown := sorted(name for *_, name in left_out - known):
            some = ", ".join(unknown[:3]) + " …" * (len(unknown) > 3)
            notes.append(f"{len(unknown)} of {len(left_out)} listed images are not here: {some}.")
        clusters = defaultdict(list)
        for row in _read(step.groups, there, _CLUSTER):
            if name := next((row[column] for column in _CLUSTER if row.get(column)), ""):
                clusters[_key(row)].append(name)
                if row.get("partner"):
                    clusters[_key(row, "partner", "partner_")].append(name)
        leaks = getattr(step, "leaks", "warn")
        return cls(leaks, frozenset(left_out), dict(clusters), step.drop, notes)

    def together(self, store: FeatureStore) -> NDArray[np.int64] | None:
        """Return a number for each row, equal for those that no split may divide.

        These are rows of one image, of one group of the dataset, or of one cluster of a list.
        ``None``: every row may be on its own.
        """
        n = len(store.labels)
        links: list[Any] = []  # rows, and the names of what they belong to
        if store.groups:
            links.append((np.arange(n), store.groups))
        if store.has_looks:
            links.append((np.arange(n), first_of_same_image(store)))
        if listed := self._listed(store):
            links.append(zip(*listed, strict=True))
        rows, units, total = [], [], n
        for members, names in links:
            known, number = np.unique(names, return_inverse=True)
            rows.append(np.asarray(members, np.int64))
            units.append(number + total)
            total += len(known)
        if not links:
            return None
        joined = components(total, np.concatenate(rows), np.concatenate(units))[:n]
        n_units = len(np.unique(joined))
        if n_units == n:
            return None
        if store.groups and n_units == len(set(store.groups)):  # numbered as the groups are named
            joined = np.unique(store.groups, return_inverse=True)[1]
        return joined.astype(np.int64)

    def _listed(self, store: FeatureStore) -> list[tuple[int, str]]:
        """Return rows of a store with the name of each cluster that a list has them in."""
        found = _found(store, self.clusters)
        return [(row, name) for row, key in found for name in self.clusters[key]]

    def _clusters(self, rows: RowSet) -> set[str]:
        listed = self._listed(rows.store)
        inside = np.isin([row for row, _ in listed], rows.rows)
        return {name for (_, name), one in zip(listed, inside, strict=True) if one}

    def screen(self, splits: Sequence[Split]) -> list[Split]:
        """Return splits without the images left out and, if they are to be dropped, without leaks.

        The splits were cut of all rows: with and without a list, the other rows are the same.
        """
        found = [replace(s, train=self._kept(s.train), test=self._kept(s.test)) for s in splits]
        if self.drop is not None:
            train = sum(len(s.train) - len(f.train) for s, f in zip(splits, found, strict=True))
            test = sum(len(s.test) - len(f.test) for s, f in zip(splits, found, strict=True))
            of = f" of {len(splits)} splits" * (len(splits) > 1)
            self.notes.append(
                f"{self.drop.name} leaves out {train} training and {test} test rows{of}."
            )
        if self.leaks != "warn":
            found = [self._without_leaks(split) for split in found]
        if divided := max(len(self._clusters(s.train) & self._clusters(s.test)) for s in found):
            self.notes.append(
                f"{divided} listed clusters are on both sides of the dataset's own split."
            )
        return found

    def _kept(self, rows: RowSet) -> RowSet:
        """Return rows without those that are left out."""
        left_out = [row for row, _ in _found(rows.store, self.left_out)]
        return replace(rows, rows=np.setdiff1d(rows.rows, left_out)) if left_out else rows

    def _without_leaks(self, split: Split) -> Split:
        if not len(split.train):
            return split
        where = split.train.store.path
        if not pixels_known([split]):
            what = "Whether images leak is not known: the stores hold no digests of their pixels."
            advice = "delete the stores and extract the dataset again, or add --leaks warn"
            raise FitError(what, where=where, got=f"--leaks {self.leaks}", next_step=advice)
        images = image_numbers((split.train.store, split.test.store))
        leaked = shared(split.train, split.test, images)
        if not leaked.any():
            return split
        if self.leaks == "fail":
            one = leaked.sum() == 1
            are = "image is also a test image" if one else "images are also test images"
            got = ", ".join(split.train.ids[row] for row in np.flatnonzero(leaked)[:5])
            advice = "remove them, or leave them out of training: --leaks drop"
            what = f"{split.name}: {leaked.sum()} training {are}."
            raise FitError(what, where=where, got=got, next_step=advice)
        if leaked.all():
            what = "--leaks drop leaves no training image: all are test images, too."
            advice = "train on other images"
            raise FitError(f"{split.name}: {what}", where=where, next_step=advice)
        self.notes.append(
            f"{split.name}: training images that are also test images were left out of training "
            f"({leaked.sum()})."
        )
        return replace(split, train=replace(split.train, rows=split.train.rows[~leaked]))


def components(n: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the connected component, a number, of each of n nodes, of which a are joined to b."""
    ends = a.astype(np.int32), b.astype(np.int32)  # the only type that older SciPy takes
    graph = coo_array((np.ones(len(a), bool), ends), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _key(row: Mapping[str, str], name: str = "id", prefix: str = "") -> Key:
    """Return what a row of a list names an image by."""
    return row.get(f"{prefix}dataset", ""), row.get(f"{prefix}split", ""), row[name]


def _found(store: FeatureStore, keys: Collection[Key]) -> list[tuple[int, Key]]:
    """Return the row of each image of the store that is among those named."""
    if not keys:
        return []
    dataset, split = map(store.manifest["dataset"].get, ("name", "split"))
    row_of = {name: row for row, name in enumerate(store.ids)}
    return [
        (row_of[name], (of, part, name))
        for of, part, name in keys
        if of in ("", dataset) and part in ("", split) and name in row_of
    ]


def _read(
    path: Path | None, stores: Sequence[FeatureStore], needed: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read a list of images: a CSV file with a column ``id`` and, if any are needed, one of them.

    One that names no image of the stores is refused; rows of other datasets are left out.
    """
    if path is None:
        return []
    path = user_path(path)
    try:
        with explain_os_errors(path):
            text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or []
        rows = [{k: restore_cell(v or "") for k, v in row.items() if k} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("The list of images is not a CSV file.", where=path, got=error) from error
    if "id" not in columns or (needed and not set(needed) & set(columns)):
        what, got = "The list of images lacks a column.", ", ".join(columns) or "no columns"
        expected = "id" + (f" and {' or '.join(needed)}" if needed else "")
        advice = "take the list of featpipe audit, or a table of this form"
        raise DataError(what, where=path, expected=expected, got=got, next_step=advice)
    datasets = {store.manifest["dataset"]["name"] for store in stores}
    ours = [row for row in rows if row.get("dataset", "") in ("", *datasets)]
    keys = {*map(_key, ours)}
    if rows and not any(_found(store, keys) for store in stores):
        example, split = next(iter(stores[0].ids), ""), stores[0].manifest["dataset"]["split"]
        expected = f"ids such as {example} of {split}, dataset {', '.join(sorted(datasets))}"
        got = " of ".join(filter(None, map(rows[0].get, ("id", "split", "dataset"))))
        what = "The list names no image of this dataset."
        advice = "name the list that was made for this dataset"
        raise DataError(what, where=path, expected=expected, got=got, next_step=advice)
    return ours
