"""Writing a store so that a kill at any moment loses seconds, never the run."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError
from featpipe.store.disk import explained, only_writer, reserve
from featpipe.store.journal import Journal, save_undo, undo_sealing
from featpipe.store.layout import (
    StoreContent,
    dataset_name,
    journal_path,
    partial_path,
    undo_path,
    write_content,
    write_record,
)
from featpipe.store.reader import FeatureStore
from featpipe.store.seal import Place, Seal, block_size

_JOURNAL_SECONDS = 2.0  # at most this much work is lost to a kill
_SLACK_BYTES = 1 << 20  # room for journal and undo file, and for what HDF5 adds to ids and records
_ID_BYTES = 200  # more than an id, its label and HDF5's bookkeeping take: 60 where ids are short
_CHECKED_VALUES = 1 << 22  # values looked at in one go when the store is sealed


class StoreWriter:
    """Writes one store, row after row, and seals it when every row is there.

    Opening a path whose unfinished store has the same fingerprint continues it; an unfinished
    store of another fingerprint cannot be at the same path unless it is damaged, and is begun
    anew.

    Parameters
    ----------
    path : Path
        Where the sealed store will stand.
    content : StoreContent

    Raises
    ------
    StoreError
        If another process is writing this store, or the disk has too little space for it.
    """

    def __init__(self, path: Path, content: StoreContent) -> None:
        self.path = path
        self.content = content
        with explained(path), contextlib.ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(path))
            journal = Journal.read(path)
            file = None if journal is None else self._resume(journal)
            if file is None or journal is None:
                journal = Journal(content.fingerprint)
                try:
                    file = self._create(journal)
                except BaseException:
                    partial_path(path).unlink()  # a store that cannot be begun leaves nothing
                    raise
            self._file, self.journal = file, journal
            self._lock = stack.pop_all()
        self.rows = journal.rows
        self._promised_at = time.monotonic()
        self._opened_at = time.monotonic() - journal.seconds

    def _resume(self, journal: Journal) -> h5py.File | None:
        """Open the unfinished store, or return ``None`` where there is nothing to continue."""
        of_this_store = journal.fingerprint == self.content.fingerprint
        if not of_this_store or not 0 < journal.rows <= len(self.content.labels):
            return None  # before the first promise nothing about the file is sure
        try:
            undo_sealing(self.path)
            file = h5py.File(partial_path(self.path), "r+", locking=False)
            if file.attrs["fingerprint"] == self.content.fingerprint and all(
                file[dataset_name(name)].shape == (len(self.content.labels), *shape)
                for name, shape in self.content.shapes.items()
            ):
                return file
        except (OSError, ValueError, KeyError, RuntimeError):
            return None  # damaged by something else than a kill: only a new start is sure
        file.close()
        return None

    def _create(self, journal: Journal) -> h5py.File:
        content = self.content
        free = shutil.disk_usage(self.path.parent).free
        needed = content.n_bytes + _ID_BYTES * len(content.labels) + _SLACK_BYTES
        if free < needed:
            raise StoreError(
                "Too little disk space for this feature store.",
                where=self.path.parent,
                expected=f"{needed / 1e6:.1f} MB free",
                got=f"{free / 1e6:.1f} MB free",
                next_step="free some space, add --dtype float16, or name another --workspace",
            )
        undo_path(self.path).unlink(missing_ok=True)
        reserve(partial_path(self.path), needed - _SLACK_BYTES)
        block = block_size(len(content.shapes))
        file = h5py.File(partial_path(self.path), "w", userblock_size=block, locking=False)
        try:
            write_content(file, content)
            file.flush()
            reserve(partial_path(self.path))  # once more: opening for writing gave all back
            journal.write(self.path)
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                file.close()
            raise
        return file

    def append(
        self, arrays: Mapping[str, NDArray[Any]], skipped: Mapping[int, str] | None = None
    ) -> None:
        """Write the next rows.

        Parameters
        ----------
        arrays : mapping of str to ndarray of shape (b, ...)
            One array per name in ``content.shapes``, all of one length.
        skipped : mapping of int to str, optional
            Rows among these that have no image, with the reason; they are stored as zeros.

        Raises
        ------
        StoreError
            If a shape is wrong, a value is not finite, or the disk is full.
        """
        skipped = dict(skipped or {})
        count = len(next(iter(arrays.values())))
        for name, shape in self.content.shapes.items():
            if arrays[name].shape != (count, *shape):
                raise StoreError(
                    f"The backbone gave another shape for {name!r} than it announced.",
                    expected=(count, *shape),
                    got=arrays[name].shape,
                )
            self._check_finite(name, arrays[name], skipped)
        empty = [row - self.rows for row in skipped]
        with explained(self.path):
            for name in self.content.shapes:
                values = arrays[name].astype(self.content.dtype_of(name))  # a copy, to be changed
                values[empty] = 0
                self._file[dataset_name(name)][self.rows : self.rows + count] = values
        self.journal.skipped.update(skipped)
        self.rows += count
        if time.monotonic() - self._promised_at > _JOURNAL_SECONDS:
            self.promise()

    def _check_finite(self, name: str, values: NDArray[Any], skipped: Mapping[int, str]) -> None:
        with np.errstate(over="ignore"):  # said below, with the image's name
            stored = values.astype(self.content.dtype_of(name), copy=False)
        finite = _finite_rows(stored)
        finite[[row - self.rows for row in skipped]] = True
        if not finite.all():
            row = self.rows + int(np.argmin(finite))
            overflow = np.isfinite(values).all()
            raise StoreError(
                f"The features {name!r} of image {self.content.ids[row]!r} are not finite.",
                where=f"row {row}",
                next_step="use --dtype float32: the values overflow float16"
                if overflow
                else "check the weights file: the network itself gave NaN or infinity",
            )

    @property
    def seconds(self) -> float:
        """Seconds spent on this store, interrupted runs included."""
        return time.monotonic() - self._opened_at

    def promise(self) -> None:
        """Flush and synchronise what was appended, then let the journal promise it."""
        with explained(self.path):
            self._file.flush()
            os.fsync(self._file.id.get_vfd_handle())
            self.journal.rows = self.rows
            self.journal.seconds = self.seconds
            self.journal.write(self.path)
        self._promised_at = time.monotonic()

    def seal(self, run: Mapping[str, Any]) -> FeatureStore:
        """Check that every row is there and finite, then give the store its name.

        Parameters
        ----------
        run : mapping
            When, where and how fast it was made; not part of the fingerprint.
        """
        if self.rows != len(self.content.labels):
            raise StoreError(
                "The store cannot be sealed: rows are missing.",
                where=self.path,
                expected=f"{len(self.content.labels)} rows",
                got=f"{self.rows} rows",
            )
        self.promise()
        with explained(self.path):
            self._check_stored()
            save_undo(self.path, self._places().values())
            texts = [json.dumps(dict(run)), *self.journal.skipped.values()]
            reserve(partial_path(self.path), 4 * sum(map(len, texts)) + _SLACK_BYTES // 16)
            write_record(self._file, self.journal.skipped, run)
            self._file.flush()
            places, block = self._places(), self._file.userblock_size
            self._file.close()
            Seal.of(partial_path(self.path), places, block).write(partial_path(self.path))
            partial_path(self.path).replace(self.path)
            undo_path(self.path).unlink()
            journal_path(self.path).unlink()
            for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
                left.unlink()  # of a journal that a kill kept from getting its name
        self.close()
        return FeatureStore(self.path)

    def _places(self) -> dict[str, Place]:
        names = [dataset_name(name) for name in self.content.shapes]
        return {name: Place.of(self._file[name]) for name in names}

    def _check_stored(self) -> None:
        """Prove on the file itself that every row is finite, resumed ones included."""
        for name, shape in self.content.shapes.items():
            dataset = self._file[dataset_name(name)]
            step = max(1, _CHECKED_VALUES // math.prod(shape))
            for start in range(0, len(dataset), step):
                finite = _finite_rows(dataset[start : start + step])
                if not finite.all():
                    row = start + int(np.argmin(finite))
                    raise StoreError(
                        f"The store cannot be sealed: row {row} of {name!r} is not finite.",
                        where=partial_path(self.path),
                        next_step=f"delete this file and extract again: "
                        f"rm {str(partial_path(self.path))!r}",
                    )

    def close(self) -> None:
        """Promise what was appended and release the file; an unsealed store stays unfinished."""
        if self._file:
            # Where the disk is full neither can work; the error that led here was already said.
            with contextlib.suppress(StoreError):
                self.promise()
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
        self._lock.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
