"""Which rows take part: images left out or kept together by a list, and images on both sides."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    ``left_out`` and ``clusters`` have keys of a split's name (or an empty one: any split) and an
    image's id.
    """

    leaks: str = "warn"  # or "fail", "drop"
    left_out: frozenset[tuple[str, str]] = frozenset()
    clusters: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, step: RowOptions, stores: Sequence[FeatureStore | None]) -> Screening:
        """Read the lists that a step names.

        Raises
        ------
        DataError
            If one cannot be read, or names no image of the stores.
        """
        known = {name for store in stores if store is not None for name in store.ids}
        left_out, clusters = set(), {}
        for row in _read(step.drop, known) if step.drop is not None else ():
            if row.get("suggestion", _DROP) == _DROP:
                left_out.add((row.get("split", ""), row["id"]))
        for row in _read(step.groups, known, _CLUSTER) if step.groups is not None else ():
            if name := next((row[column] for column in _CLUSTER if row.get(column)), ""):
                clusters[row.get("split", ""), row["id"]] = name
                clusters[row.get("partner_split", ""), row.get("partner", "")] = name
        return cls(step.leaks, frozenset(left_out), clusters)

    def usable(self, store: FeatureStore) -> Rows:
        """Return the rows with features and a label that no list leaves out."""
        if not self.left_out:
            return store.usable
        keys = [_keys(store, row) for row in store.usable]
        return store.usable[[self.left_out.isdisjoint(both) for both in keys]]

    def together(self, store: FeatureStore) -> Rows | None:
        """Return a number for each row, equal for those that no split may divide.

        These are rows of one image, of one group of the dataset, or of one cluster of a list.
        ``None``: every row may be on its own.
        """
        n, kinds = len(store.labels), [same_images(store)]
        if store.groups:
            kinds.append(np.unique(store.groups, return_inverse=True)[1])
        if self.clusters:
            named = [
                next((self.clusters[key] for key in _keys(store, row) if key in self.clusters), "")
                for row in range(n)
            ]
            unlike = [name or f"\0{row}" for row, name in enumerate(named)]
            kinds.append(np.unique(unlike, return_inverse=True)[1])
        shared = [kind for kind in kinds if kind is not None and len(np.unique(kind)) < n]
        if len(shared) < 2:
            return shared[0] if shared else None
        ends = []  # the first row of what each row belongs to
        for kind in shared:
            _, first, place = np.unique(kind, return_index=True, return_inverse=True)
            ends.append(first[place])
        edges = np.tile(np.arange(n), len(ends)), np.concatenate(ends)
        graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(n, n))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def screen(self, splits: Sequence[Split]) -> list[Split]:
        """Return splits without leaks, if they are to be dropped from the training rows.

        Raises
        ------
        FitError
            If there are leaks, and they are not allowed; or no training row is left.
        """
        if self.leaks == "warn":
            return list(splits)
        screened = []
        for split in splits:
            leaked = _shared(split.train, split.test)
            if leaked is None and len(split.train):
                raise _no_looks(split, self.leaks)
            if leaked is not None and leaked.any():
                if self.leaks == "fail":
                    names = [split.train.ids[row] for row in np.flatnonzero(leaked)[:5]]
                    raise FitError(
                        f"{split.name}: {leaked.sum()} training images are test images, too.",
                        where=split.train.store.path,
                        got=", ".join(names),
                        next_step="remove them, or leave them out of training: --leaks drop",
                    )
                kept = replace(split.train, rows=split.train.rows[~leaked])
                split = replace(split, train=kept)  # noqa: PLW2901 - the one without leaks
            screened.append(split)
        return screened


def same_images(store: FeatureStore) -> Rows | None:
    """Return a number for each row, equal for equal pixels; None if that is not known."""
    digests = store.digests
    if digests is None:
        return None
    numbers = np.unique(digests, return_inverse=True)[1].astype(np.int64)
    skipped = list(store.skipped)
    numbers[skipped] = len(digests) + np.arange(len(skipped))
    return numbers


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
        interval; None if no image is left) and ``ids``; None where pixels were not compared.
    """
    masks = [_shared(split.test, split.train) for split in splits]
    if any(mask is None for mask in masks):
        return None
    leaked = np.concatenate([mask for mask in masks if mask is not None])
    ids = np.concatenate([split.test.ids for split in splits])
    rows = np.unique(ids, return_inverse=True)[1]
    labels = np.concatenate([split.test.labels for split in splits])
    correct = np.concatenate(predicted) == labels
    account: dict[str, Any] = {
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


def _shared(rows: Any, others: Any) -> NDArray[np.bool_] | None:
    """Return which rows show an image that is among others; None if that is not known."""
    mine, theirs = rows.store.digests, others.store.digests
    if mine is None or theirs is None:
        return None
    return np.isin(mine[rows.rows], theirs[others.rows])


def _keys(store: FeatureStore, row: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the keys under which a list may name an image."""
    return (store.manifest["dataset"]["split"], store.ids[row]), ("", store.ids[row])


def _read(path: Path, known: set[str], needed: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a list of images: a CSV file with a column ``id`` and, if any are named, one of them."""
    path = user_path(path)
    try:
        with explain_os_errors(path):
            text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), strict=True)
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
            next_step="take the audit.csv of featpipe audit, or a table of this form",
        )
    if rows and known.isdisjoint(row["id"] for row in rows):
        raise DataError(
            "The list names no image of this dataset.",
            where=path,
            expected=f"ids such as {min(known, default='')}",
            got=rows[0]["id"],
            next_step="name the list that was made for this dataset",
        )
    return rows


def _no_looks(split: Split, policy: str) -> FitError:
    return FitError(
        "Whether images leak is not known: the stores do not hold the digests of their pixels.",
        where=split.train.store.path,
        got=f"--leaks {policy}",
        next_step="delete the stores and extract the dataset again, or add --leaks warn",
    )
