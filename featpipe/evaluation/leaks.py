"""Test images that were seen before: by the probe in training, or by the backbone in pretraining.

Models state what their published weights were trained on, datasets where their images come from.
Nothing is claimed about users' own images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones import MODELS, WEIGHTS_SUFFIXES, automatic
from featpipe.datasets import DATASETS
from featpipe.errors import FeatpipeError
from featpipe.statistics.intervals import accuracy_interval
from featpipe.store import FeatureStore

if TYPE_CHECKING:
    from featpipe.evaluation.protocol import RowSet, Split


_MOST_LISTED = 10_000
DROP_LEAKS = "--leaks drop leaves them out of training."


def pixels_known(splits: Iterable[Split]) -> bool:
    """Return whether the stores of all rows hold digests of their pixels."""
    return all(part.store.has_looks for split in splits for part in (split.train, split.test))


def image_numbers(stores: Iterable[FeatureStore]) -> dict[FeatureStore, NDArray[np.int64]]:
    """Return a number for each row of the stores; equal pixels have equal numbers."""
    digests = {store: np.asarray(store.digests) for store in stores}
    numbers = np.unique(np.concatenate([*digests.values()]), return_inverse=True)[1]
    parts = np.split(numbers, np.cumsum([len(each) for each in digests.values()])[:-1])
    return dict(zip(digests, parts, strict=True))


def shared(
    rows: RowSet, others: RowSet, images: Mapping[FeatureStore, NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Return which rows show an image of the other rows; ``images`` numbers those of each store."""
    return np.isin(images[rows.store][rows.rows], images[others.store][others.rows])


def first_of_same_image(store: FeatureStore) -> NDArray[np.int64]:
    """Return for each row the first one with the same pixels; a skipped row is like no other."""
    numbers = image_numbers([store])[store]
    first = np.unique(numbers, return_index=True)[1][numbers].astype(np.int64)
    skipped = list(store.skipped)
    first[skipped] = skipped
    return first


def account_of_leaks(
    splits: Sequence[Split], predicted: Sequence[NDArray[np.int64]]
) -> dict[str, Any] | None:
    """Return how many test images are also training images, and the accuracy without them.

    ``predicted`` are the answers for the test rows of each split. The account has ``test_images``,
    ``leaked``, ``accuracy``, and if any image leaked ``relabelled`` (how many of them have a label
    that no copy in training has), ``accuracy_without`` (an interval; None if no image is left) and
    ``ids``; ``not_trained``, ids of the training store that neither train nor test, such as those
    that a list leaves out (unless they are more than 10,000); ``trained``, for a low-shot draw, ids
    of those that do train (likewise); ``repeated``, how many rows of the stores show an image of an
    earlier row, and ``conflicting``, how many of these have another label. None where pixels are
    not known.
    """
    if not pixels_known(splits):
        return None
    parts = [part for split in splits for part in (split.train, split.test)]
    images = image_numbers(part.store for part in parts)
    labelled = {store: n * len(store.classes) + store.labels for store, n in images.items()}
    leaked = np.concatenate([shared(s.test, s.train, images) for s in splits])
    ids = np.concatenate([split.test.ids for split in splits])
    rows = np.unique(ids, return_inverse=True)[1]
    correct = np.concatenate(predicted) == np.concatenate([s.test.labels for s in splits])
    repeated = conflicting = 0
    for store, numbers in images.items():
        used = np.unique(np.concatenate([part.rows for part in parts if part.store is store]))
        _, first, place = np.unique(numbers[used], return_index=True, return_inverse=True)
        labels = store.labels[used]
        repeated += len(used) - len(first)
        conflicting += int(np.count_nonzero(labels != labels[first[place]]))
    train = splits[0].train.store
    others = np.concatenate([part.rows for part in parts if part.store is train])
    idle = np.setdiff1d(train.usable, others)
    taught = np.unique(np.concatenate([split.train.rows for split in splits]))
    account: dict[str, Any] = {
        "repeated": repeated,
        "conflicting": conflicting,
        "test_images": len(np.unique(rows)),
        "leaked": len(np.unique(rows[leaked])),
        **accuracies(correct, rows, leaked),
        "not_trained": [train.ids[row] for row in idle] if len(idle) <= _MOST_LISTED else [],
    }
    if splits[0].train_per_class is not None and len(taught) <= _MOST_LISTED:
        account["trained"] = [train.ids[row] for row in taught]
    if leaked.any():
        alike = np.concatenate([shared(s.test, s.train, labelled) for s in splits])
        account["relabelled"] = len(np.unique(rows[leaked & ~alike]))
        account["ids"] = np.unique(ids[leaked]).tolist()
    return account


def accuracies(
    correct: NDArray[np.bool_], rows: NDArray[Any], leaked: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return ``accuracy`` and, if predictions are for images that leaked, ``accuracy_without``.

    ``rows`` says which test image each prediction is for. An image that leaked for one of several
    models counts for none.
    """
    found: dict[str, Any] = {"accuracy": accuracy_interval(correct, rows).as_dict()}
    if leaked.any():
        clean = ~np.isin(rows, rows[leaked])
        without = accuracy_interval(correct[clean], rows[clean]).as_dict() if clean.any() else None
        found["accuracy_without"] = without
    return found


def note_of_repeats(account: Mapping[str, Any] | None) -> str:
    """Return how many images occur more than once within a split, as a note; empty for none."""
    if account is None or not (n := account["repeated"]):
        return ""
    what = "One image is an exact copy" if n == 1 else f"{n} images are exact copies"
    clash = ""
    if conflicting := account["conflicting"]:
        clash = f", {conflicting} of them with another label" if n > 1 else ", with another label"
    lists = "it" if n == 1 else "them"
    return f"{what} of another in the same split{clash}: featpipe audit lists {lists}."


def note_of_leaks(account: Mapping[str, Any] | None) -> str:
    """Return what leaked images mean for the accuracy, as a note; empty if there are none."""
    if account is None or not account["leaked"]:
        return ""
    if (without := account["accuracy_without"]) is None:
        after = "no test image is left without them, so nothing was measured on new images"
    else:
        value, low, high = (100 * without[name] for name in ("value", "low", "high"))
        after = f"accuracy {value:.2f} % [{low:.2f}, {high:.2f}] without them"
    with_them = f"{100 * account['accuracy']['value']:.2f} % with them"
    return f"{count_of_leaks(account)}: {after}, {with_them}. {DROP_LEAKS}"


def count_of_leaks(account: Mapping[str, Any]) -> str:
    """Return how many test images leaked, in words without a full stop."""
    leaked, tested = account["leaked"], account["test_images"]
    are = "is an exact copy of a training image"
    if leaked > 1:
        are = "are exact copies of training images"
    relabelled = account.get("relabelled", 0)
    clash = f", {relabelled} of them under another label" * bool(relabelled)
    return f"{leaked} of {tested} test images ({100 * leaked / tested:.1f} %) {are}{clash}"


def contamination(backbone: Mapping[str, Any], tested: Mapping[str, Any]) -> str:
    """Return a note if a backbone may have seen test images with their labels, else nothing.

    ``backbone`` is that of a manifest or, for a fine-tuned network, what it started from;
    ``tested`` is the dataset of the test rows in a manifest.

    Examples
    --------
    >>> contamination(
    ...     {"model": "resnet50", "weights": {"name": "IMAGENET1K_V2"}},
    ...     {"name": "torchvision:Imagenette", "split": "val"},
    ... )
    'The backbone may have seen test images with their labels: it was trained on ImageNet-1k \
(IMAGENET1K_V2), and Imagenette is a part of ImageNet.'
    """
    model, about = backbone["model"], backbone.get("weights", {})
    weights, trained_on = about.get("name", "none"), about.get("trained_on", "")  # of a family
    name, _, argument = tested["name"].partition(":")
    if weights == "none" or name not in DATASETS:
        return ""
    try:
        if model in MODELS and Path(weights).suffix not in WEIGHTS_SUFFIXES:
            trained_on = automatic(model).trained_on
        origins = DATASETS.get(name).origins(argument, tested["split"])
    except FeatpipeError:  # the package that brings one of them is broken
        return ""
    if trained_on in origins:
        return (
            "The backbone may have seen test images with their labels: it was trained on "
            f"{trained_on} ({weights}), and {origins[trained_on]}."
        )
    if trained_on or not origins:
        return ""
    return f"What the weights {weights} were trained on is unknown. " + " ".join(
        f"If on {images}, the backbone may have seen test images with their labels: {clause}."
        for images, clause in origins.items()
    )
