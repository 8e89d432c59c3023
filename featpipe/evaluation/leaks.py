"""Test images that are training images, too: which they are, and the accuracy without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.statistics.intervals import accuracy_interval
from featpipe.store import FeatureStore

if TYPE_CHECKING:
    from featpipe.evaluation.protocol import RowSet, Split

_reported: set[tuple[str, ...]] = set()  # stores whose leaks a result has been shown with


def pixels_known(splits: Iterable[Split]) -> bool:
    """Return whether the stores of all rows hold digests of their pixels."""
    return all(part.store.has_looks for split in splits for part in (split.train, split.test))


def shared(rows: RowSet, others: RowSet) -> NDArray[np.bool_]:
    """Return which rows show an image that is among others, where :func:`pixels_known`."""
    return np.isin(_digests(rows.store)[rows.rows], _digests(others.store)[others.rows])


def first_of_same_image(store: FeatureStore) -> NDArray[np.int64]:
    """Return for each row the first one with the same pixels; a skipped row is like no other."""
    _, first, place = np.unique(_digests(store), return_index=True, return_inverse=True)
    found = first[place].astype(np.int64)
    skipped = list(store.skipped)
    found[skipped] = skipped
    return found


def account_of_leaks(
    splits: Sequence[Split], predicted: Sequence[NDArray[np.int64]]
) -> dict[str, Any] | None:
    """Return how many test images are also training images, and the accuracy without them.

    ``predicted`` are the answers for the test rows of each split. The account has ``test_images``,
    ``leaked``, ``accuracy``, and if any image leaked ``accuracy_without`` (an interval; None if no
    image is left) and ``ids``; ``repeated``, how many rows of the stores show an image of a row
    before, and ``conflicting``, how many of these have another label. None where pixels are not
    known.
    """
    if not pixels_known(splits):
        return None
    leaked = np.concatenate([shared(split.test, split.train) for split in splits])
    ids = np.concatenate([split.test.ids for split in splits])
    rows = np.unique(ids, return_inverse=True)[1]
    correct = np.concatenate(predicted) == np.concatenate([s.test.labels for s in splits])
    used: dict[int, list[RowSet]] = {}
    for part in (part for split in splits for part in (split.train, split.test)):
        used.setdefault(id(part.store), []).append(part)
    repeats = np.sum([_repeats(parts) for parts in used.values()], axis=0).tolist()
    account: dict[str, Any] = {
        "repeated": repeats[0],
        "conflicting": repeats[1],
        "test_images": len(np.unique(rows)),
        "leaked": len(np.unique(rows[leaked])),
        "accuracy": accuracy_interval(correct, rows).as_dict(),
    }
    if leaked.any():
        without = None
        if not leaked.all():
            without = accuracy_interval(correct[~leaked], rows[~leaked]).as_dict()
        account |= {"accuracy_without": without, "ids": np.unique(ids[leaked]).tolist()}
    return account


def notes_of_repeats(account: Mapping[str, Any]) -> list[str]:
    """Say how many images occur more than once within a split."""
    if not (n := account["repeated"]):
        return []
    clash = f", {account['conflicting']} of them with another label" * bool(account["conflicting"])
    what = "image repeats" if n == 1 else "images repeat"
    return [f"{n} {what} another of their split{clash}: featpipe audit lists them."]


def note_of_leaks(account: Mapping[str, Any] | None, *, in_full: bool = True) -> str:
    """Say what leaked images mean for the accuracy; empty where there are none.

    ``in_full``: with their number, which is the same for every method on these stores.
    """
    if account is None or not account["leaked"]:
        return ""
    if (without := account["accuracy_without"]) is None:
        after = "no test image is left without them, so nothing was measured on new images"
    else:
        value, low, high = (100 * without[name] for name in ("value", "low", "high"))
        after = f"accuracy {value:.2f} % [{low:.2f}, {high:.2f}] without them"
    if not in_full:
        return f"Leaked test images: {after}"
    share = 100 * account["leaked"] / account["test_images"]
    return (
        f"{account['leaked']} of {account['test_images']} test images ({share:.1f} %) are training "
        f"images, too, pixel for pixel: {after}, {100 * account['accuracy']['value']:.2f} % with "
        "them. --leaks drop leaves them out of training."
    )


def first_report(stores: Sequence[str]) -> bool:
    """Return whether the leaks between stores (by fingerprint) have not been reported before."""
    told = tuple(stores) in _reported
    _reported.add(tuple(stores))
    return not told


def _digests(store: FeatureStore) -> NDArray[np.void]:
    digests = store.digests
    assert digests is not None  # asked for only where the pixels are known
    return digests


def _repeats(parts: Sequence[RowSet]) -> tuple[int, int]:
    """Return how many rows show an image of a row before, and how many differ in their label."""
    store, rows = parts[0].store, np.unique(np.concatenate([part.rows for part in parts]))
    _, first, place = np.unique(_digests(store)[rows], return_index=True, return_inverse=True)
    again = first[place] != np.arange(len(rows))
    labels = store.labels[rows]
    return int(again.sum()), int((again & (labels != labels[first[place]])).sum())
