"""``images:KEY``: a list of paths, PIL images or arrays in Python as a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.datasets import DATASETS, naming
from featpipe.datasets.dataset import Dataset, DatasetOptions
from featpipe.datasets.images import FileSource, to_rgb
from featpipe.datasets.source import UNLABELLED, Identity, ImageSource, as_rgb
from featpipe.errors import DataError, UsageError
from featpipe.fingerprint import of_bytes, of_mapping

_EXPECTED = "paths; or PIL images and arrays, uint8 of shape (height, width, 3) or (height, width)"
_WHERE = "the images given"
# Functions that open each list, by key, until the process ends; they refer to it without a copy.
_GIVEN: dict[str, Callable[[DatasetOptions], ImageSource]] = {}


@DATASETS.register
class Images(Dataset):
    """images:KEY, a list of images in Python: extract([…], labels=[…])."""

    name = "images"
    argument_name = "KEY"

    def open(self, split: str) -> ImageSource:
        """Return the images of the list."""
        if self.argument not in _GIVEN:
            what = f"{self.spec} is a list that another Python process was given."
            raise DataError(what, next_step="give it to extract() here, too")
        return _GIVEN[self.argument](self.options)


class _InMemory(ImageSource):
    """PIL images and arrays, converted when they are read."""

    def __init__(
        self, identity: Identity, images: Sequence[Any], digests: list[str], sizes: set[Any]
    ) -> None:
        super().__init__(identity, digests, _WHERE)
        self._images, self._digests, self._sizes = images, digests, sizes

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels of all images; None if they differ."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image; DataError if it is no longer the one that was given."""
        pixels = pixels_of(self._images[row], row)
        if _digest(pixels) != self._digests[row]:
            what = "An image was changed after it was given."
            raise DataError(what, where=self.ids[row], next_step="extract again")
        return pixels


def register_images(images: Iterable[Any], labels: Iterable[Any] | None = None) -> str:
    """Register a list of images as a dataset of this process; return the dataset's name.

    ``images`` and ``labels`` are those of :func:`featpipe.extract`. Paths are ids; the ids of PIL
    images and arrays are their positions in the list and digests of their pixels.
    """
    try:
        listed = list(images)
    except TypeError:
        hint = f"extract('folder:{images}') embeds a folder" if _is_path(images) else None
        what = "The images are not a list."
        raise UsageError(what, expected=_EXPECTED, got=type(images), next_step=hint) from None
    paths = [os.fspath(image) for image in listed if _is_path(image)]
    if not listed or (paths and len(paths) < len(listed)):
        got = f"{len(paths)} paths among {len(listed)} images" if listed else "an empty list"
        what = "These images are not a dataset."
        raise UsageError(what, expected=f"a list of {_EXPECTED}", got=got)
    digests, sizes = [], set()
    for row, image in enumerate([] if paths else listed):
        pixels = pixels_of(image, row)
        digests.append(_digest(pixels))
        sizes.add(pixels.shape[:2])
    ids = paths or [f"{row:05d}-{digest[:8]}" for row, digest in enumerate(digests)]
    given = [None] * len(listed) if labels is None else list(labels)
    known = [label for label in given if label is not None]
    if all(isinstance(label, str) for label in known):
        classes, numbers = naming.classes_by_name(given, given)
    elif wrong := [label for label in known if not isinstance(label, int | np.integer)]:
        expected = "names of classes, or their numbers; None for unlabelled images"
        raise UsageError("The labels are not classes.", expected=expected, got=repr(wrong[0]))
    else:
        numbers = [UNLABELLED if label is None else int(label) for label in given]
        classes = naming.classes_by_number(np.array(numbers), "the labels given")
    key = of_mapping({"ids": ids, "classes": classes, "labels": numbers})[:8]
    identity = Identity(f"{Images.name}:{key}", "all", classes, ids, numbers)
    if paths:
        _GIVEN[key] = lambda options: FileSource(identity, Path(), options, _WHERE)
    else:
        _GIVEN[key] = lambda options: _InMemory(identity, listed, digests, sizes)
    return identity.name


def _is_path(image: object) -> bool:
    return isinstance(image, str | os.PathLike)


def pixels_of(image: Any, row: int) -> NDArray[np.uint8]:
    """Return an image as upright RGB."""
    if isinstance(image, Image.Image):
        return to_rgb(image, f"image {row} of the list")
    array: NDArray[Any] = image if isinstance(image, np.ndarray) else np.empty(0)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shaped or not array.size:
        parts = [type(image).__name__, getattr(image, "dtype", None), getattr(image, "shape", None)]
        got = ", ".join(str(part) for part in parts if part is not None)
        raise UsageError(f"Item {row} of the list is not an image.", expected=_EXPECTED, got=got)
    return as_rgb(array)


def _digest(pixels: NDArray[np.uint8]) -> str:
    return of_bytes(str(pixels.shape).encode(), pixels.tobytes())
