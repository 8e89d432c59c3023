"""Which rows take part: images left out or kept together by a list, and images on both sides."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featpipe.errors import DataError, FitError
from featpipe.evaluation.options import RowOptions
from featpipe.files import read_regular
from featpipe.statistics.intervals import accuracy_interval
from featpipe.store import FeatureStore
from featpipe.workspace import explain_os_errors, restore_cell, user_path

if TYPE_CHECKING:
    from featpipe.evaluation.protocol import Split

_MOST_BYTES = 1 << 30
_DROP = "drop"  # what audit.csv suggests for images to leave out
_CLUSTER = ("cluster", "group")  # columns that may say what an image belongs to

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Screening:
    """Images to leave out, images to keep together, and what is done about leaks.

    ``left_out`` and ``clusters`` name images by their split (empty: any) and id; ``notes`` are what
    was done, in words.
    """

    leaks: str = "warn"  # or "fail", "drop"
    left_out: frozenset[tuple[str, str]] = frozenset()
    clusters: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    drop: Path | None = None  # the list that left_out comes from
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, step: RowOptions, stores: Sequence[FeatureStore | None]) -> Screening:
        """Read the lists that a step names.

        Raises
        ------
        DataError
            If one cannot be read, or names no image of the stores.
        """
        there = [store for store in stores if store is not None]
        left_out, clusters = set(), defaultdict(list)
        for row in _read(step.drop, there) if step.drop is not None else ():
            if row.get("suggestion", _DROP).strip().lower() == _DROP:
                left_out.add((row.get("split", ""), row["id"]))
        looked = there if left_out else []
        known = {key for store in looked for n in range(len(store.ids)) for key in _keys(store, n)}
        notes = []
        if unknown := sorted(name for split, name in left_out if (split, name) not in known):
            some = ", ".join(unknown[:3]) + " …" * (len(unknown) > 3)
            notes.append(f"{len(unknown)} of {len(left_out)} listed images are not here: {some}.")
        for row in _read(step.groups, there, _CLUSTER) if step.groups is not None else ():
            if name := next((row[column] for column in _CLUSTER if row.get(column)), ""):
                clusters[row.get("split", ""), row["id"]].append(name)
                if row.get("partner"):
                    clusters[row.get("partner_split", ""), row["partner"]].append(name)
        return cls(
            getattr(step, "leaks", "warn"), frozenset(left_out), dict(clusters), step.drop, notes
        )

    def together(self, store: FeatureStore) -> Rows | None:
        """Return a number for each row, equal for those that no split may divide.

        These are rows of one image, of one group of the dataset, or of one cluster of a list.
        ``None``: every row may be on its own.
        """
        n = len(store.labels)
        edges: list[Any] = [np.empty((2, 0), np.int64)]
        groups = np.unique(store.groups, return_inverse=True)[1] if store.groups else None
        for numbers in (groups, first_of_same_image(store)):
            if numbers is not None:
                edges.append(np.stack([np.arange(len(numbers)), numbers + n]))
                n += int(numbers.max(initial=-1)) + 1
        names: dict[str, int] = {}
        listed = [
            (row, names.setdefault(name, len(names)))
            for row in range(len(store.labels) if self.clusters else 0)
            for key in _keys(store, row)
            for name in self.clusters.get(key, ())
        ]
        edges.append(np.array(listed, np.int64).reshape(-1, 2).T + np.array([[0], [n]]))
        n += len(names)
        ends = np.concatenate(edges, axis=1)
        graph = coo_array((np.ones(ends.shape[1], bool), tuple(ends)), shape=(n, n))
        joined = connected_components(graph, directed=False)[1][: len(store.labels)]
        units = len(np.unique(joined))
        if units == len(joined):
            return None
        if groups is not None and units == len(np.unique(groups)):
            return groups.astype(np.int64)  # numbered as the groups are named
        return joined.astype(np.int64)

    def screen(self, splits: Sequence[Split]) -> list[Split]:
        """Return splits without the images left out and, if they are to be dropped, without leaks.

        The splits were cut of all rows: with and without a list, the other rows are the same.

        Raises
        ------
        FitError
            If there are leaks and they are not allowed, or whether there are is not known.
        """
        found = [replace(s, train=self._kept(s.train), test=self._kept(s.test)) for s in splits]
        if self.drop is not None:
            sides = [
                sum(len(getattr(s, side)) for s in splits)
                - sum(len(getattr(s, side)) for s in found)
                for side in ("train", "test")
            ]
            of = f" of {len(splits)} splits" * (len(splits) > 1)
            self.notes.append(
                f"{self.drop.name} leaves out {sides[0]} training and {sides[1]} test rows{of}."
            )
        if self.leaks != "warn":
            found = [self._without_leaks(split) for split in found]
        if self.clusters:
            divided = max(
                len(self._clusters_of(s.train) & self._clusters_of(s.test)) for s in found
            )
            if divided:
                self.notes.append(
                    f"{divided} listed clusters are on both sides of the dataset's own split."
                )
        return found

    def _kept(self, rows: Any) -> Any:
        """Return rows without those that are left out."""
        if not self.left_out:
            return rows
        keys = map(partial(_keys, rows.store), rows.rows)
        return replace(rows, rows=rows.rows[[self.left_out.isdisjoint(both) for both in keys]])

    def _without_leaks(self, split: Split) -> Split:
        leaked = _shared(split.train, split.test)
        if leaked is None and len(split.train):
            raise FitError(
                "Whether images leak is not known: the stores hold no digests of their pixels.",
                where=split.train.store.path,
                got=f"--leaks {self.leaks}",
                next_step="delete the stores and extract the dataset again, or add --leaks warn",
            )
        if leaked is None or not leaked.any():
            return split
        if self.leaks == "fail":
            names = [split.train.ids[row] for row in np.flatnonzero(leaked)[:5]]
            raise FitError(
                f"{split.name}: {leaked.sum()} training images are test images, too.",
                where=split.train.store.path,
                got=", ".join(names),
                next_step="remove them, or leave them out of training: --leaks drop",
            )
        self.notes.append(
            f"{split.name}: {leaked.sum()} training images that are test images, too, were dropped."
        )
        return replace(split, train=replace(split.train, rows=split.train.rows[~leaked]))

    def _clusters_of(self, rows: Any) -> set[str]:
        keys = (key for row in rows.rows for key in _keys(rows.store, row))
        return {name for key in keys for name in self.clusters.get(key, ())}


def first_of_same_image(store: FeatureStore) -> Rows | None:
    """Return for each row the first one with the same pixels; None if that is not known."""
    digests = store.digests
    if digests is None:
        return None
    _, first, place = np.unique(digests, return_index=True, return_inverse=True)
    found = first[place].astype(np.int64)
    skipped = list(store.skipped)
    found[skipped] = skipped
    return found


def account_of_leaks(
    splits: Sequence[Split], predicted: Sequence[NDArray[np.int64]]
) -> dict[str, Any] | None:
    """Return how many test images are also training images, and the accuracy without them.

    Parameters
    ----------
    splits : sequence of Split
    predicted : sequence of ndarray of shape (n,), int64
        The answers for the test rows of each.

    Returns
    -------
    account : dict or None
        ``test_images``, ``leaked``, ``accuracy``, and if any image leaked ``accuracy_without`` (an
        interval; None if no image is left) and ``ids``; ``repeated``, how many rows of the stores
        show an image of a row before, and ``conflicting``, how many of these have another label.
        None where pixels were not compared.
    """
    masks = [_shared(split.test, split.train) for split in splits]
    if any(mask is None for mask in masks):
        return None
    leaked = np.concatenate([mask for mask in masks if mask is not None])
    ids = np.concatenate([split.test.ids for split in splits])
    rows = np.unique(ids, return_inverse=True)[1]
    labels = np.concatenate([split.test.labels for split in splits])
    correct = np.concatenate(predicted) == labels
    used: dict[int, list[Any]] = defaultdict(list)
    for split in splits:
        for part in (split.train, split.test):
            used[id(part.store)].append(part)
    repeats = [_repeats(parts) for parts in used.values()]
    account: dict[str, Any] = {
        "repeated": sum(n for n, _ in repeats),
        "conflicting": sum(n for _, n in repeats),
        "test_images": len(np.unique(rows)),
        "leaked": len(np.unique(rows[leaked])),
        "accuracy": accuracy_interval(correct, rows).as_dict(),
    }
    if leaked.any():
        without = None
        if not leaked.all():
            kept = np.unique(rows[~leaked], return_inverse=True)[1]
            without = accuracy_interval(correct[~leaked], kept).as_dict()
        account |= {"accuracy_without": without, "ids": np.unique(ids[leaked]).tolist()}
    return account


def notes_of_repeats(account: Mapping[str, Any]) -> list[str]:
    """Say how many images occur more than once within a split."""
    if not account["repeated"]:
        return []
    clash = f", {account['conflicting']} of them with another label" * bool(account["conflicting"])
    listed = "featpipe audit lists them"
    n = account["repeated"]
    what = "image repeats" if n == 1 else "images repeat"
    return [f"{n} {what} another of their split{clash}: {listed}."]


def note_of_leaks(account: Mapping[str, Any]) -> str:
    """Say what leaked images mean for the accuracy; empty where there are none."""
    if not account["leaked"]:
        return ""
    share = 100 * account["leaked"] / account["test_images"]
    text = (
        f"{account['leaked']} of {account['test_images']} test images ({share:.1f} %) are training "
        "images, too, pixel for pixel: "
    )
    without, with_them = account["accuracy_without"], account["accuracy"]
    if without is None:
        return text + "this accuracy says nothing about new images."
    return text + (
        f"accuracy {100 * with_them['value']:.2f} % with them, {100 * without['value']:.2f} % "
        f"[{100 * without['low']:.2f}, {100 * without['high']:.2f}] without. --leaks drop leaves "
        "them out of training."
    )


def _repeats(parts: Sequence[Any]) -> tuple[int, int]:
    """Return how many rows show an image of a row before, and how many differ in their label."""
    store = parts[0].store
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    _, first, place = np.unique(store.digests[rows], return_index=True, return_inverse=True)
    again = first[place] != np.arange(len(rows))
    labels = store.labels[rows]
    return int(again.sum()), int((again & (labels != labels[first[place]])).sum())


def _shared(rows: Any, others: Any) -> NDArray[np.bool_] | None:
    """Return which rows show an image that is among others; None if that is not known."""
    mine, theirs = rows.store.digests, others.store.digests
    if mine is None or theirs is None:
        return None
    return np.isin(mine[rows.rows], theirs[others.rows])


def _keys(store: FeatureStore, row: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the keys under which a list may name an image."""
    return (store.manifest["dataset"]["split"], store.ids[row]), ("", store.ids[row])


def _read(
    path: Path, stores: Sequence[FeatureStore], needed: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read a list of images: a CSV file with a column ``id`` and, if any are named, one of them."""
    path = user_path(path)
    try:
        with explain_os_errors(path):
            text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or []
        rows = [{k: restore_cell(v or "") for k, v in row.items() if k} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("The list of images is no CSV file.", where=path, got=error) from error
    if "id" not in columns or (needed and not set(needed) & set(columns)):
        raise DataError(
            "The list of images lacks a column.",
            where=path,
            expected="id" + (f" and {' or '.join(needed)}" if needed else ""),
            got=", ".join(columns) or "no columns",
            next_step="take the list of featpipe audit, or a table of this form",
        )
    datasets = {store.manifest["dataset"]["name"] for store in stores}
    ours = [row for row in rows if row.get("dataset", "") in ("", *datasets)]
    known = {key for store in stores for row in range(len(store.ids)) for key in _keys(store, row)}
    if rows and known.isdisjoint((row.get("split", ""), row["id"]) for row in ours):
        split, example = min(known, default=("", ""), key=lambda key: (not key[0], key))
        got = rows[0]
        raise DataError(
            "The list names no image of this dataset.",
            where=path,
            expected=f"ids such as {example} of {split}, dataset {', '.join(sorted(datasets))}",
            got=" of ".join(filter(None, [got["id"], got.get("split"), got.get("dataset")])),
            next_step="name the list that was made for this dataset",
        )
    return ours
