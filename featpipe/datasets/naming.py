"""Names and order of classes and splits of datasets that do not prescribe them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from featpipe.datasets.source import UNLABELLED
from featpipe.errors import DataError

_MOST_CLASSES = 100_000  # the largest dataset in use, ImageNet-21k, has 21 841


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``cat.9.jpg`` before ``cat.10.jpg``, on every machine alike."""
    # Text and digits alternate, text first.
    parts: list[str | int] = list(re.split(r"([0-9]+)", text.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, text


def ordered_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Return split names: train, test, val, and the others in natural order."""
    usual = ["train", "test", "val"]
    rest = sorted(set(names), key=natural_key)
    return tuple(sorted(rest, key=(usual + rest).index))


def classes_by_name(
    names: Sequence[str | None], every: Iterable[str | None]
) -> tuple[tuple[str, ...], list[int]]:
    """Return all classes in natural order, and labels; ``None`` means unlabelled.

    ``names`` are the classes of the images of one split, ``every`` holds those of all splits.
    """
    classes = tuple(sorted({name for name in every if name is not None}, key=natural_key))
    number: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    return classes, [number.get(name, UNLABELLED) for name in names]


def classes_by_number(labels: NDArray[Any], where: object) -> tuple[str, ...]:
    """Return the names of classes that have only numbers.

    DataError, which says ``where`` the labels came from, if one is too large to be the number of a
    class: a time or an identifier, for example.
    """
    last = int(labels.max()) if labels.size else UNLABELLED
    if last >= _MOST_CLASSES:
        what = "The labels are not small numbers, and the classes have no names."
        hint = "number the classes from 0, and give their names in an array 'classes'"
        expected = f"labels from 0 to {_MOST_CLASSES - 1}"
        raise DataError(what, where=where, expected=expected, got=last, next_step=hint)
    return tuple(str(label) for label in range(last + 1))
