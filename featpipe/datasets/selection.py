"""Subsets of a source: rows, classes, and rows drawn with a seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe.datasets.source import UNLABELLED, ImageSource, are_rows
from featpipe.errors import DataError, UnknownNameError, UsageError
from featpipe.fingerprint import of_bytes, of_mapping


class Subset(ImageSource):
    """Chosen rows of a source, each once, in the order given.

    Folds keep the chosen rows. The fingerprint is derived from the source's and the rows, so that
    features of a subset are not mistaken for features of the whole.
    """

    def __init__(self, source: ImageSource, rows: ArrayLike) -> None:
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        if not are_rows(chosen, len(source)):
            what = f"These are not rows of {source.name} {source.split}, each once."
            raise UsageError(what, expected=f"distinct rows from 0 to {len(source) - 1}")
        self.source, self.rows = source, chosen
        self.name, self.split, self.classes = source.name, source.split, source.classes
        self.ids = tuple(source.ids[row] for row in chosen.tolist())
        self.labels = source.labels[chosen]
        new_row = np.full(len(source), -1, dtype=np.int64)
        new_row[chosen] = np.arange(len(chosen))
        self.folds = tuple(new_row[fold][new_row[fold] >= 0] for fold in source.folds)
        self.grouped_by = source.grouped_by
        self.groups = tuple(source.groups[row] for row in chosen.tolist() if source.groups)
        unreadable = source.unreadable.items()
        self.unreadable = {int(new_row[row]): why for row, why in unreadable if new_row[row] >= 0}
        self.fingerprint = subset_fingerprint(source, chosen)

    @property
    def size(self) -> tuple[int, int] | None:
        """The size of the whole source, so that a subset is prepared in the same way."""
        return self.source.size

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image of the source."""
        return self.source.read(int(self.rows[row]))

    def read_scaled(self, row: int, side: int | None) -> NDArray[np.uint8]:
        """Return one image of the source, perhaps smaller."""
        return self.source.read_scaled(int(self.rows[row]), side)


def subset_fingerprint(source: ImageSource, rows: ArrayLike) -> str:
    """Return the fingerprint that a subset would have."""
    digest = of_bytes(np.asarray(rows, dtype="<i8").tobytes())
    return of_mapping({"of": source.fingerprint, "rows": digest})


def groups_of(ids: Sequence[str], rule: str) -> list[str]:
    """Return the group of each image by a rule for ids (:func:`featpipe.steps.grammar.grouping`).

    Examples
    --------
    >>> groups_of(["video7_001.png", "video7_002.png"], "regex:^(.+)_")
    ['video7', 'video7']
    """
    pattern = r"(?:^|.*/)([^/]+)/[^/]*$" if rule == "folder" else rule.removeprefix("regex:")
    found = [re.search(pattern, name) for name in ids]
    if None in found:
        what, got = f"{found.count(None)} images have no group.", ids[found.index(None)]
        wanted = "a folder around every image" if rule == "folder" else "a match in every id"
        raise DataError(what, where=f"--group-by {rule}", expected=wanted, got=got)
    return [match[match.re.groups and 1] or "" for match in found if match]


def keep_classes(source: ImageSource, chosen: str) -> ImageSource:
    """Return the images of some classes and the unlabelled ones; labels are renumbered."""
    kept = choose_classes(chosen, source.classes)
    if len(kept) == len(source.classes):
        return source
    new_label = np.full(len(source.classes) + 1, -2, dtype=np.int64)
    new_label[-1] = UNLABELLED  # which label -1 indexes
    new_label[kept] = np.arange(len(kept))
    subset = Subset(source, np.flatnonzero(new_label[source.labels] > -2))
    subset.classes = tuple(source.classes[label] for label in kept)
    subset.labels = new_label[subset.labels]
    subset.fingerprint = of_mapping({"of": subset.fingerprint, "classes": subset.classes})
    return subset


def choose_classes(chosen: str, classes: Sequence[str]) -> list[int]:
    """Return the indices of chosen classes, ascending: ``"first:N"``, or names with commas."""
    if chosen.startswith("first:"):
        number = chosen.removeprefix("first:").strip()
        if not number.isdecimal() or not 1 <= int(number) <= len(classes):
            what = "The number of classes to keep is not possible."
            expected = f"first:N with N from 1 to {len(classes)}"
            raise UsageError(what, where="--classes", expected=expected, got=chosen)
        return list(range(int(number)))
    listed = [name.strip() for name in chosen.split(",")]
    names = set(listed)
    if twice := [name for name in listed if listed.count(name) > 1]:
        what, expected = f"The class {twice[0]!r} is chosen twice.", "each class once"
        raise UsageError(what, where="--classes", expected=expected, got=chosen)
    for name in sorted(names - set(classes)):
        listed = [*classes[:20], *(["…"] if len(classes) > 20 else [])]
        what, where = f"There is no class named {name!r}.", "--classes"
        raise UnknownNameError(what, name, classes, where=where, expected=", ".join(listed))
    return [label for label, name in enumerate(classes) if name in names]


def class_balanced_rows(labels: ArrayLike, n: int, seed: int) -> NDArray[np.int64]:
    """Choose ``n`` rows, ascending, spread over the classes as evenly as their sizes allow.

    Unlabelled rows are left out unless all are unlabelled. No class has more than one row more than
    a class with rows left over.
    """
    labels = np.asarray(labels, dtype=np.int64)
    candidates = np.flatnonzero(labels != UNLABELLED)
    if not candidates.size:
        candidates = np.arange(len(labels))
    if not 1 <= n <= len(candidates):
        what = "That many images cannot be chosen."
        raise UsageError(what, expected=f"1 to {len(candidates)}", got=n)
    order = candidates[seeded_order([str(row) for row in candidates], seed)]
    # Rows are dealt like cards: the first of every class, then the second of every class, …
    round_of = np.empty(len(order), dtype=np.int64)
    for label in np.unique(labels[order]):
        members = labels[order] == label
        round_of[members] = np.arange(members.sum())
    dealt = np.argsort(round_of, kind="stable")
    return np.sort(order[dealt[:n]])


def seeded_order(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return a pseudo-random permutation that depends on names and seed only.

    The order is that of a SHA-256 of each name: unlike a random generator's stream, it cannot
    change with a library's version, and one more image does not reshuffle the others.
    """
    drawn = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=drawn.__getitem__), dtype=np.int64)


def stratified_split(
    ids: Sequence[str], labels: ArrayLike, test_share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and test rows, ascending, with the same share of every class.

    ``test_share`` is rounded in each class. scikit-learn's ``train_test_split`` does this too, but
    its result depends on the order of the rows and the stream of NumPy's generator; see
    :func:`seeded_order`.
    """
    labels = np.asarray(labels, dtype=np.int64)
    order = seeded_order(ids, seed)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        test[members[: round(len(members) * test_share)]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)
