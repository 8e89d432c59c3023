"""The layout of a sealed store: its content, the names of its arrays, and how it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.fingerprint import of_mapping
from featpipe.steps.grammar import LOGITS

SCHEMA_VERSION = 2
SHARDED_VERSION = 3  # schema of a store whose rows are in shards
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_RECORD_BYTES = 1 << 29  # of JSON text, about ten million ids; more is not read into memory
# Appearance of the images (:func:`featpipe.extraction.engine.look_at`): type and shape of one row.
# Stores of earlier versions may have none.
LOOKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "looks/digest": ("uint8", (16,)),
    "looks/size": ("int32", (2,)),
    "looks/thumbnail": ("uint8", (32, 32)),
}
JOURNAL = ".journal"  # suffix of the second file of an unfinished store of featpipe 0.1


@dataclass(frozen=True)
class StoreContent:
    """Everything that a store will contain except the features; known before the first batch."""

    ids: Sequence[str]
    labels: NDArray[np.int64]  # (n,); -1 means unlabelled
    classes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]  # of one row: {"avgpool": (2048,), "logits": (1000,)}
    dtype: str  # of the features: float32, float16 or uint8; logits are always float32
    manifest: Mapping[str, Any]  # everything that changes the numbers
    folds: tuple[NDArray[np.int64], ...] = ()  # training folds that the dataset prescribes
    groups: Sequence[str] = ()  # one per row, or none
    # Ids and names of the classes that the columns of the logits stand for.
    source_classes: tuple[Sequence[str], Sequence[str]] | None = None
    looks: bool = False  # whether the arrays of LOOKS are stored

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the manifest; it names the store."""
        return of_mapping(self.manifest)

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """One row of all arrays as a structured type; logits are always float32."""
        features: list[Any] = [
            (f"features/{name}", "float32" if name == LOGITS else self.dtype, shape)
            for name, shape in self.shapes.items()
        ]
        looks = LOOKS.items() if self.looks else ()
        return np.dtype([*features, *((name, *spec) for name, spec in looks)])

    @property
    def sealed_bytes(self) -> int:
        """Upper bound of the size of the sealed file without its run record."""
        arrays = len(self.labels) * (self.row_dtype.itemsize + self.labels.itemsize)
        return arrays + len(json.dumps(self.record())) + (1 << 20)  # 60 layers add 60 kB

    def record(self) -> dict[str, Any]:
        """Return everything but the arrays, as it is stored in JSON."""
        return {
            "fingerprint": self.fingerprint,
            "manifest": dict(self.manifest),
            "ids": list(self.ids),
            "classes": list(self.classes),
            "folds": [np.asarray(rows).tolist() for rows in self.folds],
            **({"groups": list(self.groups)} if self.groups else {}),
            "source_classes": self.source_classes and [*map(list, self.source_classes)],
        }


@dataclass(frozen=True)
class Shards:
    """What a store records about its shards."""

    described: list[dict[str, Any]]  # of each: its file, number of rows, and offsets of arrays
    skipped: dict[int, str]  # rows of the store that have no image, with the reason
    runs: list[dict[str, Any]]  # run record of each
    at: str = ""  # URL of their folder; "": beside the store


def partial_path(path: Path) -> Path:
    """Return the name of a store while it is being written."""
    return path.with_name(path.name + ".partial")


def shard_folder(path: Path) -> Path:
    """Return the folder of the shards of a store, which may be unfinished."""
    return path.with_name(f"{path.name.partition('.h5')[0]}.shards")


def shard_path(path: Path, rows: range) -> Path:
    """Return the file of the shard that holds some rows of the store at ``path``."""
    return shard_folder(path) / f"{rows.start:010d}-{rows.stop:010d}.h5"


def reserve(path: Path, n_bytes: int) -> None:
    """Allocate the bytes of a file before they are written.

    A full disk is then noticed here rather than in HDF5: a process in which HDF5 fails to write
    its buffers crashes when it exits.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("ab"), path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)


def write_store(
    path: Path,
    content: StoreContent,
    skipped: Mapping[int, str],
    run: Mapping[str, Any],
    blocks: Iterable[NDArray[np.void]] = (),
    shards: Shards | None = None,
) -> int:
    """Write a store from blocks of ``content.row_dtype``; return the number of its rows.

    With ``shards``, which hold the rows, there are no blocks.
    """
    reasons = dict(sorted(skipped.items()))
    skips = {"rows": list(reasons), "reasons": list(reasons.values())}
    record = {**content.record(), "skipped": skips, "run": dict(run)}
    labels = np.asarray(content.labels, dtype=np.int64)
    row_dtype, n_bytes, n_rows = content.row_dtype, content.sealed_bytes, 0
    names = row_dtype.names or ()
    if shards:
        record |= {"shards": shards.described, "shards_at": shards.at}
        record["shapes"] = {name: list(row_dtype[name].shape) for name in names}
        n_rows = sum(shard["rows"] for shard in shards.described)
        n_bytes -= len(labels) * row_dtype.itemsize
        names = ()
    n_bytes += len(json.dumps(record))
    reserve(path, n_bytes)
    # In the format of HDF5 1.8 every structure has a checksum. The default format, that of HDF5
    # 1.0, has none, and the library crashes on some damaged files.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_file_locking(False, True)  # the writer holds its own lock
    plan = _creation_plan(h5py.h5p.FILE_CREATE)
    handle = h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, plan, access)
    with h5py.File(handle) as file:
        h5py.h5g.create(file.id, b"features", gcpl=_creation_plan(h5py.h5p.GROUP_CREATE))
        _create_dataset(file, "labels", labels.shape, labels.dtype)[...] = labels
        digests = {"labels": hashlib.sha256(labels.tobytes())}
        if content.looks:
            h5py.h5g.create(file.id, b"looks", gcpl=_creation_plan(h5py.h5p.GROUP_CREATE))
        arrays = {}
        for name in names:
            row = row_dtype[name]
            arrays[name] = _create_dataset(file, name, (len(labels), *row.shape), row.base)
            digests[name] = hashlib.sha256()
        reserve(path, n_bytes)  # again: creating the file released the space
        for block in blocks:
            for name, array in arrays.items():
                values = np.ascontiguousarray(block[name])
                array[n_rows : n_rows + len(block)] = values
                digests[name].update(values.data)
            n_rows += len(block)
        record["digests"] = {name: digest.hexdigest() for name, digest in digests.items()}
        text = json.dumps(record, sort_keys=True).encode()
        # Of fixed length: HDF5 keeps no checksum of variable-length strings.
        _create_dataset(file, "record", (), h5py.string_dtype("utf-8", len(text)))[()] = text
        file.attrs["schema"] = np.int64(SHARDED_VERSION if shards else SCHEMA_VERSION)
        file.attrs["seal"] = np.bytes_(hashlib.sha256(text).hexdigest())
    with path.open("rb+") as raw:  # HDF5 leaves reserved space that it did not need
        raw.truncate(hdf5_size(raw.read(48)))
    return n_rows


def hdf5_size(head: bytes) -> int:
    """Return the size of an HDF5 1.8 file according to its first 48 bytes."""
    return int.from_bytes(head[28:36], "little")


def _create_dataset(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> h5py.Dataset:
    """Create a contiguous dataset, its bytes allocated at once so that its offset is fixed."""
    plan = _creation_plan(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return file.create_dataset(name, shape, dtype, track_times=False, dcpl=plan)


def _creation_plan(kind: Any) -> Any:
    plan = h5py.h5p.create(kind)
    plan.set_obj_track_times(False)  # with times, equal stores would differ
    return plan
