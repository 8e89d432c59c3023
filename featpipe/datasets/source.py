"""One split of a dataset: raw pixels with what identifies them; no transform, no torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe.errors import DataError
from featpipe.fingerprint import of_bytes, of_mapping

UNLABELLED = -1
_MOST_CLASSES = 100_000  # the largest dataset in use, ImageNet-21k, has 21 841
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of characters (surrogates)


@dataclass(frozen=True)
class Identity:
    """What identifies the images of one split, whatever they are stored in."""

    name: str  # the dataset as the user names it: "stl10", "folder:photos"
    split: str
    classes: tuple[str, ...]  # a label is an index into them
    ids: Sequence[str]  # unique and stable: a relative path or a row number
    labels: ArrayLike
    folds: tuple[NDArray[np.int64], ...] = ()  # training folds that the dataset prescribes, as rows


class ImageSource(ABC):
    """Images of one split of a dataset, with what identifies them.

    ``content`` is a JSON-like value that changes whenever the pixels do, ``where`` the file or
    folder that the images came from, for messages.

    Attributes
    ----------
    name, split, classes, ids, folds
        Those of the :class:`Identity`.
    labels : ndarray of shape (n,), int64
        Class of each image; ``-1`` means unlabelled.
    groups : sequence of str
        What each image belongs to (a patient, a video) that must not be on both sides of a split;
        empty where there are no groups.
    grouped_by : str
        Where the groups come from, in words; empty where there are none.
    unreadable : mapping of int to str
        Rows known beforehand to have no image that can be read, with the reason.
    fingerprint : str
        Hex digest of everything that makes these images and labels what they are.

    Raises
    ------
    DataError
        If classes, ids, labels and folds do not fit together, or a name is no text.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    folds: tuple[NDArray[np.int64], ...] = ()
    groups: Sequence[str] = ()
    grouped_by: str = ""
    unreadable: Mapping[int, str] = MappingProxyType({})
    fingerprint: str

    def __init__(self, identity: Identity, content: object, where: object) -> None:
        self.name, self.split, self.classes = identity.name, identity.split, identity.classes
        self.ids, self.folds = identity.ids, identity.folds
        labels = np.asarray(identity.labels)
        refused = partial(DataError, where=where)
        n, names = len(labels), self.classes
        if not names and np.any(labels != UNLABELLED):
            raise refused("The dataset has no class names.", expected="at least one")
        if any(not name.strip() for name in names):
            raise refused("A class has a blank name.", got=list(names)[:10])
        for what, texts in (("A class name", names), ("An id", self.ids)):
            if broken := [ascii(text) for text in texts if _NO_TEXT.search(text)]:
                got = ", ".join(broken[:5])
                raise refused(f"{what} is no text.", expected="UTF-8 without NUL", got=got)
        if twice := _repeated(names):
            raise refused("Class names are not unique.", got=f"repeated: {twice}")
        # Before int64 makes another number of what it cannot hold.
        wrong = np.flatnonzero((labels < UNLABELLED) | (labels >= len(names)))
        if wrong.size:
            got = f"{labels[wrong[0]]} in row {wrong[0]}"
            expected = f"0 to {len(names) - 1}, or {UNLABELLED} for unlabelled"
            raise refused(f"{wrong.size} label(s) name no class.", got=got, expected=expected)
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        if len(self.ids) != n:
            expected = f"{len(self.ids)} labels, one per image"
            raise refused("Not every image has one label.", got=f"{n} labels", expected=expected)
        if twice := _repeated(self.ids):
            raise refused("Two images have the same id.", got=twice)
        for number, fold in enumerate(self.folds):
            if len(np.unique(fold)) != len(fold) or np.any((fold < 0) | (fold >= n)):
                what = f"Fold {number} does not name rows of this dataset, each once."
                raise refused(what, expected=f"distinct rows from 0 to {n - 1}")
        parts = {"split": self.split, "classes": self.classes, "ids": list(self.ids)}
        parts |= {"labels": self.labels.tolist(), "folds": [fold.tolist() for fold in self.folds]}
        self.fingerprint = of_mapping({**parts, "content": content})

    def __len__(self) -> int:
        return len(self.labels)

    def group(self, names: Sequence[str], by: str) -> None:
        """Give every image its group; the fingerprint becomes another one."""
        self.groups, self.grouped_by = tuple(names), by
        self.fingerprint = of_mapping({"of": self.fingerprint, "groups": self.groups})

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels of all images; None if they differ or are not known."""
        return None

    @abstractmethod
    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image as upright RGB; safe to call from several threads at once.

        The array, (height, width, 3), uint8, may be changed by the caller. ImageError, which names
        the file, if the image cannot be decoded.
        """

    def read_scaled(self, row: int, side: int | None) -> NDArray[np.uint8]:
        """Return one image, perhaps smaller where that is read faster.

        Its shorter side keeps ``side`` pixels at least; ``None``: the image as it is, as from a
        source that knows no faster way.
        """
        return self.read(row)


class ArraySource(ImageSource):
    """Images that are the rows of one array, in memory or memory-mapped.

    Parameters
    ----------
    identity : Identity
    pixels : ndarray of shape (n, height, width, 3) or (n, height, width), uint8
        One for each id; any strides; grey images have no channel axis.
    content, where : object, optional
        As in :class:`ImageSource`; default: the hash of the pixels, the dataset's name.
    rows : ndarray of int64, optional
        Rows of the array that are the images, so that a mapped one is not copied; default: all.
    """

    def __init__(
        self,
        identity: Identity,
        pixels: NDArray[np.uint8],
        content: object = None,
        where: object = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        content = of_bytes(pixels.tobytes()) if content is None else content
        super().__init__(identity, content, where or identity.name)
        self._pixels, self._rows = pixels, rows

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of every image."""
        height, width = self._pixels.shape[1:3]
        return height, width

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image as RGB; grey is repeated in the three channels."""
        image = self._pixels[row if self._rows is None else self._rows[row]]
        if image.ndim == 2:
            return np.repeat(image[..., None], 3, axis=2)
        return np.array(image, order="C")


def row_ids(split: str, n: int) -> tuple[str, ...]:
    """Ids of images that have no name of their own: split and row number (``"test/00001"``)."""
    return tuple(f"{split}/{row:05d}" for row in range(n))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorting key that puts ``cat.9.jpg`` before ``cat.10.jpg``, on every machine alike.

    Examples
    --------
    >>> sorted(["img10", "Img9", "img1"], key=natural_key)
    ['img1', 'Img9', 'img10']
    """
    # Text and digits alternate, text first.
    parts: list[str | int] = list(re.split(r"([0-9]+)", text.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, text


def ordered_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Return split names, the usual ones first.

    Examples
    --------
    >>> ordered_splits(["val", "extra", "train", "val", "test"])
    ('train', 'test', 'val', 'extra')
    """
    usual = ["train", "test", "val"]
    rest = sorted(set(names), key=natural_key)
    return tuple(sorted(rest, key=(usual + rest).index))


def classes_by_name(
    names: Sequence[str | None], every: Iterable[str | None]
) -> tuple[tuple[str, ...], list[int]]:
    """Return all classes in natural order, and labels; ``None`` stands for no class.

    ``names`` are those of the images of one split, ``every`` holds those of all splits.
    """
    classes = tuple(sorted({name for name in every if name is not None}, key=natural_key))
    number = {None: UNLABELLED, **{name: label for label, name in enumerate(classes)}}
    return classes, [number[name] for name in names]


def classes_by_number(labels: NDArray[Any], where: object) -> tuple[str, ...]:
    """Return the names of classes that are known by their numbers only.

    ``where`` is the file that the labels came from, for messages.

    Raises
    ------
    DataError
        If a label is too large for the number of a class: a time or an identifier, for example.
    """
    last = int(labels.max(initial=0))
    if last >= _MOST_CLASSES:
        raise DataError(
            "The labels are not small numbers, and the classes have no names.",
            where=where,
            expected=f"labels from 0 to {_MOST_CLASSES - 1}",
            got=last,
            next_step="number the classes from 0, and give their names in an array 'classes'",
        )
    return tuple(str(label) for label in range(last + 1))


def _repeated(names: Sequence[str]) -> str:
    """Return the first names that occur more than once."""
    return ", ".join([name for name, count in Counter(names).items() if count > 1][:5])
