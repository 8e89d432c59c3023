"""The two kinds of sources: rows of one array, and image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe.datasets.base import ImageSource, check_identity
from featpipe.datasets.definition import DatasetOptions
from featpipe.datasets.images import read_image
from featpipe.fingerprint import of_mapping


@dataclass(frozen=True)
class Identity:
    """What identifies the images of one split, whatever they are stored in.

    Parameters
    ----------
    name, split : str
    classes : tuple of str
    ids : sequence of str
    labels : array-like of int of shape (n,)
    folds : tuple of ndarray of int64
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: ArrayLike
    folds: tuple[NDArray[np.int64], ...] = ()

    def apply_to(self, source: ImageSource, content: object, where: object) -> None:
        """Fill in a source; its fingerprint covers the identity and ``content``.

        Raises
        ------
        DataError
            If classes, ids, labels and folds do not fit together.
        """
        source.name, source.split, source.classes = self.name, self.split, self.classes
        source.ids, source.folds = self.ids, self.folds
        source.labels = np.ascontiguousarray(self.labels, dtype=np.int64)
        check_identity(source, where)
        source.fingerprint = of_mapping(
            {
                "split": self.split,
                "classes": self.classes,
                "ids": list(self.ids),
                "labels": source.labels.tolist(),
                "folds": [fold.tolist() for fold in self.folds],
                "content": content,
            }
        )


class ArraySource(ImageSource):
    """Images that are the rows of one array, in memory or memory-mapped.

    Parameters
    ----------
    identity : Identity
    pixels : ndarray of shape (n, height, width, 3) or (n, height, width), uint8
        One for each id; any strides; grey images have no channel axis.
    content : object
        JSON-like value that changes whenever the pixels do.
    where : object
        File or folder the array came from, for messages.
    """

    def __init__(
        self, identity: Identity, pixels: NDArray[np.uint8], content: object, where: object
    ) -> None:
        identity.apply_to(self, content, where)
        self._pixels = pixels

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image as RGB; grey is repeated in the three channels."""
        image = self._pixels[row]
        if image.ndim == 2:
            return np.repeat(image[..., None], 3, axis=2)
        return np.array(image, order="C")


class FileSource(ImageSource):
    """Images that are files, decoded when they are read.

    Parameters
    ----------
    identity : Identity
        Its ids are the paths of the files, relative to ``root`` (or absolute).
    root : Path
    options : DatasetOptions
        Its remembered hashes make the fingerprint: the content of the files, not their place.
    where : object
        Folder or list the files came from, for messages.
    """

    def __init__(
        self, identity: Identity, root: Path, options: DatasetOptions, where: object
    ) -> None:
        self.root = root
        paths = [os.path.join(root, name) for name in identity.ids]
        identity.apply_to(self, options.digests(paths), where)

    def path(self, row: int) -> Path:
        """Return the file of an image."""
        return self.root / self.ids[row]

    def read(self, row: int) -> NDArray[np.uint8]:
        """Decode one image file to upright RGB."""
        return read_image(self.path(row))


def row_ids(split: str, n: int) -> tuple[str, ...]:
    """Ids of images that have no name of their own: split and row number.

    Examples
    --------
    >>> row_ids("test", 2)
    ('test/00000', 'test/00001')
    """
    return tuple(f"{split}/{row:05d}" for row in range(n))


def label_names(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Turn one class name per image into labels; an empty name means unlabelled.

    Returns
    -------
    labels : ndarray of shape (n,), int64

    Examples
    --------
    >>> label_names(["dog", "", "cat"], ["cat", "dog"]).tolist()
    [1, -1, 0]
    """
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[name] if name else -1 for name in names], dtype=np.int64)
