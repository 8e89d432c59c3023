"""The one interface of all datasets: raw pixels and identity, no transform, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import DataError

UNLABELLED = -1


class ImageSource(ABC):
    """Images of one split of a dataset, with what identifies them.

    Attributes
    ----------
    name : str
        The dataset as the user names it (``"stl10"``, ``"folder:photos"``).
    split : str
        Name of the split (``"train"``, ``"test"``, ``"all"`` …).
    classes : tuple of str
        Class names; a label is an index into them.
    ids : sequence of str
        One unique, stable id per image (a relative path or a row number).
    labels : ndarray of shape (n,), int64
        Class of each image; ``-1`` means unlabelled.
    folds : tuple of ndarray of int64
        Training folds that the dataset itself prescribes, as rows; empty where there are none.
    fingerprint : str
        Hex digest of everything that makes these images and labels what they are.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    folds: tuple[NDArray[np.int64], ...] = ()
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image as upright RGB; safe to call from several threads at once.

        Returns
        -------
        image : ndarray of shape (height, width, 3), uint8
            A fresh array that the caller may change.

        Raises
        ------
        ImageError
            If the image cannot be decoded; the message names its file.
        """


def check_identity(source: ImageSource, where: object) -> None:
    """Prove that classes, ids, labels and folds of a source fit together.

    Every source passes through here before anybody sees it, so that no later step has to ask
    whether a label is an index into the classes.

    Parameters
    ----------
    source : ImageSource
    where : object
        File or folder that the source was read from, for the message.

    Raises
    ------
    DataError
        Naming what does not fit, with what was expected and what came.
    """
    if source.classes or np.any(source.labels != UNLABELLED):
        check_names(source.classes, where)
    check_labels(source.labels, len(source.classes), where)
    if len(source.ids) != len(source.labels):
        raise DataError(
            "Not every image has one label.",
            where=where,
            expected=f"{len(source.ids)} labels, one per image",
            got=f"{len(source.labels)} labels",
        )
    if twice := repeated(source.ids):
        raise DataError("Two images have the same id.", where=where, got=", ".join(twice[:5]))
    for number, fold in enumerate(source.folds):
        if len(np.unique(fold)) != len(fold) or np.any((fold < 0) | (fold >= len(source))):
            raise DataError(
                f"Fold {number} does not name rows of this dataset, each once.",
                where=where,
                expected=f"distinct rows from 0 to {len(source) - 1}",
            )


def check_names(classes: Sequence[str], where: object) -> None:
    """Raise DataError unless the class names are there, not blank and all different."""
    if not classes:
        raise DataError("The dataset has no class names.", where=where, expected="at least one")
    if any(not name.strip() for name in classes):
        raise DataError("A class has a blank name.", where=where, got=list(classes)[:10])
    if twice := repeated(classes):
        raise DataError(
            "Class names are not unique.",
            where=where,
            expected="each name once",
            got=f"repeated: {', '.join(twice[:5])}",
        )


def check_labels(labels: NDArray[np.int64], n_classes: int, where: object) -> None:
    """Raise DataError unless each label is an index into the classes, or -1."""
    wrong = np.flatnonzero((labels < UNLABELLED) | (labels >= n_classes))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"{wrong.size} label(s) name no class.",
            where=where,
            expected=f"0 to {n_classes - 1}, or {UNLABELLED} for unlabelled",
            got=f"{int(labels[row])} in row {row}",
        )


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, in the order of their first occurrence.

    Examples
    --------
    >>> repeated(["cat", "dog", "cat"])
    ['cat']
    """
    return [name for name, count in Counter(names).items() if count > 1]
