"""The layout of a store: names, schema, and what a store holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError

SCHEMA_VERSION = 1
LOGITS = "logits"


@dataclass(frozen=True)
class StoreContent:
    """What a store will hold: everything but the features, known before the first batch.

    Parameters
    ----------
    ids : sequence of str
    labels : ndarray of shape (n,), int64
        ``-1`` means unlabelled.
    classes : tuple of str
    shapes : mapping of str to tuple of int
        Shape of one row of each array, ``{"avgpool": (2048,), "logits": (1000,)}``.
    dtype : str
        ``"float32"`` or ``"float16"``; logits are always float32.
    manifest : mapping
        Everything that changes the numbers; the store's fingerprint is made from it.
    fingerprint : str
        Fingerprint of the manifest.
    folds : tuple of ndarray of int64
        Training folds that the dataset prescribes.
    source_classes : tuple of (ids, names) or None
        What the columns of the logits mean.
    """

    ids: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    manifest: Mapping[str, Any]
    fingerprint: str
    folds: tuple[NDArray[np.int64], ...] = ()
    source_classes: tuple[Sequence[str], Sequence[str]] | None = None

    def dtype_of(self, name: str) -> str:
        """Return the dtype of an array: only features may be stored in half precision."""
        return "float32" if name == LOGITS else self.dtype

    @property
    def n_bytes(self) -> int:
        """Size of all feature arrays on the disk."""
        return sum(
            len(self.labels) * math.prod(shape) * np.dtype(self.dtype_of(name)).itemsize
            for name, shape in self.shapes.items()
        )


def partial_path(path: Path) -> Path:
    """Return where a store lies while it is being written."""
    return path.with_name(path.name + ".partial")


def journal_path(path: Path) -> Path:
    """Return where the journal of an unfinished store lies."""
    return path.with_name(path.name + ".journal")


def undo_path(path: Path) -> Path:
    """Return where an interrupted sealing finds what it has to put back."""
    return path.with_name(path.name + ".undo")


def dataset_name(name: str) -> str:
    """Return the HDF5 name of an array."""
    return LOGITS if name == LOGITS else f"features/{name}"


def damaged(path: Path, detail: str) -> StoreError:
    """Make the error of a store that cannot be trusted."""
    return StoreError(
        f"The feature store is damaged: {detail}.",
        where=path,
        next_step=f"delete it and extract again: rm {str(path)!r}",
    )


def write_content(file: h5py.File, content: StoreContent) -> None:
    """Write everything that is known before the first batch, and allocate the arrays."""
    file.attrs["schema"] = SCHEMA_VERSION
    file.attrs["fingerprint"] = content.fingerprint
    file["manifest"] = json.dumps(dict(content.manifest), sort_keys=True)
    file["ids"] = _strings(content.ids)
    file["labels"] = np.asarray(content.labels, dtype=np.int64)
    file["classes"] = _strings(content.classes)
    for number, rows in enumerate(content.folds):
        file[f"folds/{number}"] = np.asarray(rows, dtype=np.int64)
    if content.source_classes is not None:
        for name, values in zip(("ids", "names"), content.source_classes, strict=True):
            file[f"source_classes/{name}"] = _strings(values)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # rows then never change the structure
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    for name, shape in content.shapes.items():
        file.create_dataset(
            dataset_name(name),
            shape=(len(content.labels), *shape),
            dtype=content.dtype_of(name),
            track_times=False,
            dcpl=plan,
        )


def write_record(file: h5py.File, skipped: Mapping[int, str], run: Mapping[str, Any]) -> None:
    """Write what is known after the last batch."""
    rows = sorted(skipped)
    file["skipped/rows"] = np.array(rows, dtype=np.int64)
    file["skipped/reasons"] = _strings([skipped[row] for row in rows])
    file["run"] = json.dumps(dict(run), sort_keys=True)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    return np.array(list(values), dtype=object).astype(h5py.string_dtype())
