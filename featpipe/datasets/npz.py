"""``npz:PATH``: images and labels in one NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets.base import ImageSource
from featpipe.datasets.csv_list import ordered_splits
from featpipe.datasets.definition import Dataset, DatasetOptions
from featpipe.datasets.sources import ArraySource, Identity
from featpipe.errors import DataError

# A header may promise more than there is memory, an entry may be encrypted (RuntimeError).
_DAMAGED = (
    ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_SHAPES = "(n, height, width), (n, height, width, 1) or (n, height, width, 3)"


class Npz(Dataset):
    """Arrays ``images`` (uint8), ``labels``, and perhaps ``classes``, ``ids`` and ``split``.

    Without ``classes`` the classes are called ``"0"``, ``"1"`` …; without ``ids`` an image is
    called by its row in the file; without ``split`` there is one split, ``all``.
    """

    takes_path = "PATH"

    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """Values of the array ``split``, or ``all`` where there is none."""
        file = options.resolve(path)
        arrays = _load(file, ["split"])
        return ordered_splits(_texts(arrays["split"])) if "split" in arrays else ("all",)

    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """Read the images of one split into memory."""
        file = options.resolve(path)
        arrays = _load(file, ["images", "labels", "classes", "ids", "split"])
        images = _checked_images(arrays.get("images"), file)
        labels = _checked_labels(arrays.get("labels"), file)
        n = len(images)
        for name in ("labels", "ids", "split"):
            if name in arrays and arrays[name].shape != (n,):
                raise DataError(
                    f"The array {name!r} does not have one value for each image.",
                    where=file,
                    expected=f"shape ({n},)",
                    got=f"shape {arrays[name].shape}",
                )
        if "classes" in arrays:
            classes = tuple(_texts(arrays["classes"]))
        else:
            classes = tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
        ids = _texts(arrays["ids"]) if "ids" in arrays else [f"{row:05d}" for row in range(n)]
        rows = np.arange(n)
        if "split" in arrays:
            rows = np.flatnonzero(np.array(_texts(arrays["split"])) == split)
        identity = Identity(f"npz:{path}", split, classes, [ids[row] for row in rows], labels[rows])
        return ArraySource(identity, images[rows], options.digests([file]), file)


def _load(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read those of the named arrays that are there."""
    arrays: dict[str, NDArray[Any]] = {}
    name = ""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(
                "The file holds a single array.", where=file, expected="an .npz with named arrays"
            )
        with archive:
            for name in names:
                if name in archive.files:
                    arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError("The file does not exist.", where=file) from None
    except _DAMAGED as error:
        if name and "allow_pickle" in str(error):
            raise _pickled(file, name) from None
        raise DataError(
            "The file is not a NumPy archive, or it is damaged.", where=file, got=error
        ) from error
    return arrays


def _pickled(file: Path, name: str) -> DataError:
    return DataError(
        f"The array {name!r} holds Python objects, which could run code when they are read; "
        "refused.",
        where=file,
        next_step="write texts as fixed-width strings: np.array(names, dtype=str)",
    )


def _checked_images(images: NDArray[Any] | None, file: Path) -> NDArray[np.uint8]:
    """Return the images, grey ones without their channel axis."""
    if images is None:
        raise DataError("There is no array 'images'.", where=file, expected=f"shape {_SHAPES}")
    if images.dtype != np.uint8:
        raise DataError(
            "The images do not have 8 bits per channel.",
            where=file,
            expected="uint8, 0 to 255",
            got=f"{images.dtype}",
            next_step="for values from 0 to 1: np.rint(images * 255).astype(np.uint8)",
        )
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if not fits or 0 in images.shape:
        planes_first = images.ndim == 4 and images.shape[1] in (1, 3)
        raise DataError(
            "The array 'images' has another shape than images.",
            where=file,
            expected=_SHAPES,
            got=f"{images.shape}",
            next_step="images.transpose(0, 2, 3, 1)" if planes_first else None,
        )
    return images[..., 0] if images.shape[-1] == 1 and images.ndim == 4 else images


def _checked_labels(labels: NDArray[Any] | None, file: Path) -> NDArray[np.int64]:
    if labels is None:
        raise DataError(
            "There is no array 'labels'.",
            where=file,
            expected="integers of shape (n,); -1 for unlabelled images",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            "The labels are not integers.", where=file, expected="integers", got=f"{labels.dtype}"
        )
    return labels.astype(np.int64)


def _texts(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return [str(value) for value in values.ravel().tolist()]
