"""One split of a dataset: raw pixels and what identifies them; no transform, no torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe.errors import DataError
from featpipe.fingerprint import of_bytes, of_mapping

UNLABELLED = -1
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates


@dataclass(frozen=True)
class Identity:
    """What identifies the images of one split, independent of their storage."""

    name: str  # the dataset as the user names it: "stl10", "folder:photos"
    split: str
    classes: tuple[str, ...]  # a label is an index into them
    ids: Sequence[str]  # unique and stable: a relative path or a row number
    labels: ArrayLike
    folds: tuple[NDArray[np.int64], ...] = ()  # training folds that the dataset prescribes, as rows


class ImageSource(ABC):
    """Images of one split of a dataset, and what identifies them.

    ``content`` is a JSON-like value that changes whenever the pixels do, ``where`` the file or
    folder of the images, for messages. DataError, if classes, ids, labels and folds are
    inconsistent, or a name is not text.
    """

    # As in the Identity.
    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    folds: tuple[NDArray[np.int64], ...] = ()
    labels: NDArray[np.int64]  # (n,): class of each image; -1 means unlabelled
    # The group of each image (a patient, a video), which must not be on both sides of a split.
    groups: Sequence[str] = ()
    grouped_by: str = ""  # the origin of the groups, in words
    unreadable: Mapping[int, str] = MappingProxyType({})  # rows that cannot be read, and why
    fingerprint: str  # hex digest of content, ids, labels, classes, folds and groups

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
            if broken := [ascii(text) for text in texts if NOT_TEXT.search(text)]:
                got = ", ".join(broken[:5])
                raise refused(f"{what} is not text.", expected="UTF-8 without NUL", got=got)
        if twice := _repeated(names):
            raise refused("Class names are not unique.", got=f"repeated: {twice}")
        # Checked before the conversion to int64, in which larger numbers would wrap around.
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
            if not are_rows(fold, n):
                what = f"Fold {number} does not name rows of this dataset, each once."
                raise refused(what, expected=f"distinct rows from 0 to {n - 1}")
        parts = {"split": self.split, "classes": self.classes, "ids": list(self.ids)}
        parts |= {"labels": self.labels.tolist(), "folds": [fold.tolist() for fold in self.folds]}
        self.fingerprint = of_mapping({**parts, "content": content})

    def __len__(self) -> int:
        return len(self.labels)

    def group(self, names: Sequence[str], by: str) -> None:
        """Give every image its group, which changes the fingerprint."""
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
        """Return one image; if that is faster, a smaller one with sides of at least ``side``."""
        return self.read(row)


class ArraySource(ImageSource):
    """Images that are rows of one array, in memory or memory-mapped.

    ``pixels`` are of shape (n, height, width, 3), or (n, height, width) for grey images, uint8, of
    any strides. ``content`` and ``where`` are as in :class:`ImageSource`; default: the hash of the
    pixels, the dataset's name. ``rows`` selects images without copying the array; default: all.
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
        return as_rgb(self._pixels[row if self._rows is None else self._rows[row]])


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of RGB pixels, or of grey ones in three channels."""
    grey = image.ndim == 2
    return np.repeat(image[..., None], 3, axis=2) if grey else np.array(image, order="C")


def are_rows(rows: NDArray[np.int64], n: int) -> bool:
    """Return whether these are distinct rows from 0 to n - 1."""
    return bool(len(np.unique(rows)) == len(rows) and np.all((rows >= 0) & (rows < n)))


def row_ids(split: str, n: int) -> tuple[str, ...]:
    """Return ids of images without names: split and row number (``"test/00001"``)."""
    return tuple(f"{split}/{row:05d}" for row in range(n))


def _repeated(names: Sequence[str]) -> str:
    """Return the first names that occur more than once."""
    return ", ".join([name for name, count in Counter(names).items() if count > 1][:5])
