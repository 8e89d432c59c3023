"""Writing a store so that a kill at any moment loses seconds of work, never the whole run.

An unfinished store is one append-only file of blocks. A block is the SHA-256 of a line of JSON,
that line, which contains the SHA-256 of the rows, and the rows. The first block has no rows and
describes what the store will contain. Blocks are read back only if their checksums match, so a
half-written one is ignored.

The rows of a store in shards are in sealed stores of their own. The store itself holds ids, labels
and all other records, and the location and digest of every array in every shard, so that no shard
is opened to read it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError, StoreInUseError
from featpipe.fingerprint import of_bytes
from featpipe.store import layout
from featpipe.store.reader import FeatureStore
from featpipe.store.record import SCHEMA, conform
from featpipe.workspace import lock

_SEALING = ".sealing"  # suffix of the HDF5 file while it is written
_SYNC_SECONDS = 2.0  # a power failure loses at most this much work
_LONGEST_LINE = 1 << 24
_SHARDS_BYTES = 1 << 24  # of the record, set aside for the description of shards
_BLOCK: dict[str, Any] = {"first": int, "rows": int, "n_bytes": int, "sha256": str}
_BLOCK |= {"skipped": dict, "seconds": float}

Arrays = Mapping[str, NDArray[Any]]


class StoreWriter:
    """Writes one store, batch by batch, and seals it when it is complete.

    Opening a path that has an unfinished store of the same content continues after its last
    undamaged block. StoreError if another process is writing this store, or the disk has too
    little space for it. With ``sharded`` the rows are in sealed stores that others write; this
    writer only locks the store and seals it. Shards that are kept ``elsewhere`` need no space here.
    """

    def __init__(
        self,
        path: Path,
        content: layout.StoreContent,
        *,
        sharded: bool = False,
        elsewhere: bool = False,
    ) -> None:
        self.path = path  # where the sealed store will be
        self.content = content
        self._sharded, self._elsewhere = sharded, elsewhere
        self.rows = 0  # written so far, including interrupted runs
        self.skipped: dict[int, str] = {}  # rows among them that have no image, with the reason
        self.note = ""  # which part of an unfinished store could not be used, and why
        self._partial = layout.partial_path(path)
        self._sealing = path.with_name(path.name + _SEALING)
        self._is_sealed = False  # the unfinished file only has to be renamed
        self._synced_at = self._opened_at = time.monotonic()
        with translate_os_errors(path), contextlib.ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = stack.enter_context(self._partial.open("ab", buffering=0))
            lock(self._stream)
            opened = os.fstat(self._stream.fileno())
            if not self._partial.exists() or not os.path.samestat(self._partial.stat(), opened):
                raise BlockingIOError(f"{self._partial} was sealed this moment")
            if path.exists():  # sealed before this writer made a new unfinished file
                self._partial.unlink()
                raise BlockingIOError(f"{path} was sealed this moment")
            self._sealing.unlink(missing_ok=True)
            try:
                self._resume()
                if not self._is_sealed:
                    self._check_space()
            except BaseException:
                if not self.rows:
                    self._partial.unlink()  # a store that cannot be started leaves no file
                raise
            stack.pop_all()

    def _resume(self) -> None:
        """Continue what an interrupted run left, or write the first block."""
        with contextlib.suppress(StoreError):  # StoreError: it is not sealed
            store = FeatureStore(self._partial)
            store.verify()
            if store.fingerprint == self.content.fingerprint:
                self.rows, self.skipped, self._is_sealed = len(store), store.skipped, True
                return
        content, kept, size = self.content, 0, self._partial.stat().st_size
        described = [content.fingerprint, len(content.labels), str(content.row_dtype.descr)]
        for facts, _, end in self._blocks():
            if not kept and facts.get("content") != described:
                break
            self.rows += facts["rows"]
            self.skipped |= {int(row): reason for row, reason in facts["skipped"].items()}
            self._opened_at = self._synced_at - facts["seconds"]
            kept = end
        if kept < size:
            self.note = (
                f"{size - kept} of {size} bytes of {self._partial} are incomplete, damaged or of "
                f"another store; continuing at row {self.rows}"
            )
            self._stream.truncate(kept)
        if not kept:
            self._write_block(0, {}, b"", content=described, manifest=dict(content.manifest))
            _sync_folder(self.path.parent)

    def _check_space(self) -> None:
        """Raise StoreError unless the disk has room for the rows and the sealed file."""
        size = self._partial.stat().st_size
        blocks = (len(self.content.labels) - self.rows) * self.content.row_dtype.itemsize
        sealed = self.content.sealed_bytes
        if self._sharded:
            done = layout.shard_folder(self.path).glob("*.h5")
            blocks, sealed = 0, max(sealed - sum(file.stat().st_size for file in done), 0)
            sealed *= not self._elsewhere
        n_bytes = len(json.dumps(self.content.record()))
        if n_bytes + self._sharded * _SHARDS_BYTES > layout.MAX_RECORD_BYTES:
            what = "These are too many images for one feature store."
            got = f"{n_bytes / 1e6:.0f} MB"
            expected = f"ids and other records of at most {layout.MAX_RECORD_BYTES / 1e6:.0f} MB"
            hint = "embed them in parts: --classes, --limit, or several datasets"
            raise StoreError(what, where=self.path, expected=expected, got=got, next_step=hint)
        folder = self.path.parent
        if (free := shutil.disk_usage(folder).free) < blocks + sealed:
            what, got = "Too little disk space for this feature store.", f"{free / 1e6:.1f} MB free"
            expected = (
                f"{(blocks + sealed) / 1e6:.1f} MB free: {blocks / 1e6:.1f} MB for rows while they "
                f"are collected and {sealed / 1e6:.1f} MB for the finished file"
            )
            hint = "free some space, add --dtype float16, or name another --workspace"
            raise StoreError(what, where=folder, expected=expected, got=got, next_step=hint)
        if self._sharded:  # shards may be on another file system, and others write them
            return
        try:  # so that a quota or a limit on file sizes is noticed now, not after hours
            layout.reserve(self._partial, size + blocks)
            layout.reserve(self._sealing, sealed)
        finally:
            self._stream.truncate(size)
            self._sealing.unlink(missing_ok=True)

    def append(
        self, arrays: Arrays, skipped: Mapping[int, str] | None = None, looks: Arrays | None = None
    ) -> None:
        """Write the next rows: an array for each name in ``content.shapes``, all of one length.

        ``skipped`` are rows among these that have no image, with the reason; they are stored as
        zeros. ``looks`` has an array for each name in ``layout.LOOKS``, where ``content.looks``.
        StoreError if a shape is wrong, a value is not finite, or the disk is full.
        """
        skipped = dict(skipped or {})
        block = np.zeros(len(next(iter(arrays.values()))), self.content.row_dtype)
        for name, shape in self.content.shapes.items():
            if (got := arrays[name].shape) != (expected := (len(block), *shape)):
                what = f"The backbone returned features {name!r} of an unexpected shape."
                raise StoreError(what, expected=expected, got=got)
            stored = block[f"features/{name}"]
            with np.errstate(over="ignore"):  # reported below, with the image's id
                stored[...] = arrays[name]
            stored[[row - self.rows for row in skipped]] = 0
            finite = np.isfinite(stored).all(axis=tuple(range(1, stored.ndim)))
            if not finite.all():
                place = int(np.argmin(finite))
                row = self.rows + place
                what = f"The features {name!r} of image {self.content.ids[row]!r} are not finite."
                next_step = "check the weights file: the network itself gave NaN or infinity"
                if np.isfinite(arrays[name][place]).all():
                    next_step = "use --dtype float32: the values overflow float16"
                raise StoreError(what, where=f"row {row}", next_step=next_step)
        for name, values in (looks or {}).items():
            block[name] = values
        with translate_os_errors(self.path):
            self._write_block(len(block), skipped, block.tobytes())
        self.skipped |= skipped
        self.rows += len(block)
        if time.monotonic() - self._synced_at > _SYNC_SECONDS:
            self.sync()

    def _blocks(self) -> Iterator[tuple[dict[str, Any], bytes, int]]:
        """Yield the blocks of the unfinished file, up to the first one that does not fit."""
        row_bytes, n = self.content.row_dtype.itemsize, len(self.content.labels)
        for facts, rows, end in read_blocks(self._partial):
            last = facts["first"] + facts["rows"]
            skipped = facts["skipped"].keys() <= set(map(str, range(facts["first"], last)))
            if len(rows) != facts["rows"] * row_bytes or last > n or not skipped:
                return
            yield facts, rows, end

    def _write_block(self, n: int, skipped: Mapping[int, str], rows: bytes, **more: Any) -> None:
        """Append a block to the unfinished file; after an error, the file is as before."""
        more |= {"first": self.rows, "rows": n, "n_bytes": len(rows), "seconds": self.seconds}
        more |= {"sha256": of_bytes(rows), "skipped": skipped}
        line = json.dumps(more).encode() + b"\n"
        left = memoryview(of_bytes(line).encode() + b" " + line + rows)
        end = os.fstat(self._stream.fileno()).st_size
        try:
            while left:  # on an almost full disk, a part is written before the error
                left = left[self._stream.write(left) :]
        except BaseException:
            self._stream.truncate(end)
            raise

    @property
    def seconds(self) -> float:
        """Seconds spent on this store, including interrupted runs."""
        return time.monotonic() - self._opened_at

    def sync(self) -> None:
        """Flush everything that was appended to the disk."""
        with translate_os_errors(self.path):
            os.fsync(self._stream.fileno())
        self._synced_at = time.monotonic()

    def seal(self, run: Mapping[str, Any], shards: layout.Shards | None = None) -> FeatureStore:
        """Write the HDF5 file from the blocks, or the description of shards, and rename it.

        ``run``: when, where and how fast the store was made; not part of the fingerprint.
        StoreError if rows are missing or were damaged on disk, or the disk is full.
        """
        content, n = self.content, len(self.content.labels)
        with translate_os_errors(self.path), contextlib.ExitStack() as stack:
            if not self._is_sealed:
                stack.callback(self._sealing.unlink, missing_ok=True)
                skipped = shards.skipped if shards else self.skipped
                blocks = (np.frombuffer(part, content.row_dtype) for _, part, _ in self._blocks())
                rows = layout.write_store(self._sealing, content, skipped, run, blocks, shards)
                if rows != n:
                    what = "The store cannot be sealed: rows are missing or damaged."
                    hint, got = "run the same command again: it continues there", f"{rows} rows"
                    at, expected = self._partial, f"{n} rows"
                    raise StoreError(what, where=at, expected=expected, got=got, next_step=hint)
                sealed = stack.enter_context(self._sealing.open("rb+"))
                lock(sealed)  # another writer that finds it under the unfinished name has to wait
                os.fsync(sealed.fileno())
                written = FeatureStore(self._sealing)
                if not shards:  # which were verified when they were sealed
                    written.verify()
                # Replaces the rows first, so that no kill leaves both rows and sealed store.
                self._sealing.replace(self._partial)
                _sync_folder(self.path.parent)
            self._partial.replace(self.path)
            _sync_folder(self.path.parent)
        self.close()
        return FeatureStore(self.path)

    def close(self) -> None:
        """Flush what was appended to the disk; an unsealed store stays unfinished."""
        if not self._stream.closed:
            # On a full disk this fails; that error was already raised.
            with contextlib.suppress(StoreError):
                self.sync()
            self._stream.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_blocks(partial: Path) -> Iterator[tuple[dict[str, Any], bytes, int]]:
    """Yield facts, rows and end offset of each block of an unfinished store.

    Stops before the first block that is damaged, incomplete or out of order; no part of a block is
    used before its checksums are verified.
    """
    n_rows = 0
    with partial.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while line := file.readline(_LONGEST_LINE):
            digest, _, body = line.partition(b" ")
            if of_bytes(body).encode() != digest:
                return
            try:
                facts = json.loads(body)
                conform("block", facts, _BLOCK)
                conform("skipped", list(facts["skipped"].values()), [str])
            except ValueError:
                return
            if not 0 <= facts["n_bytes"] <= size - file.tell() or facts["first"] != n_rows:
                return
            rows = file.read(facts["n_bytes"])
            if of_bytes(rows) != facts["sha256"]:
                return
            n_rows += facts["rows"]
            yield facts, rows, file.tell()


def describe_shards(
    content: layout.StoreContent, shards: Mapping[Path, str], at: str = ""
) -> layout.Shards:
    """Return what a store records about its shards.

    ``shards`` maps the file of each shard, in row order, to the fingerprint of its images.
    StoreError if a shard is missing or damaged, or does not contain the expected rows.
    """
    found = layout.Shards([], {}, [], at)
    first, row_dtype = 0, content.row_dtype
    for file, images in shards.items():
        shard = FeatureStore(file, at=at)
        last, where = first + len(shard), {}
        fits = shard.manifest["dataset"]["fingerprint"] == images
        fits &= shard.ids == list(content.ids[first:last])
        fits &= np.array_equal(shard.labels, content.labels[first:last])
        fits &= shard.manifest["backbone"] == content.manifest["backbone"]
        for name in row_dtype.names or ():
            (extent,) = shard.extents(name)
            fits &= np.dtype((extent.dtype, extent.shape[1:])) == row_dtype[name]
            where[name] = extent.offset, extent.sha256
        if not fits:
            what = "A shard does not contain the expected rows."
            location = f"{at}/{file.name}" if at else str(file)
            hint = f"delete {location!r}, and extract again: only it is made again"
            raise StoreError(what, where=location, next_step=hint)
        found.described.append({"file": file.name, "rows": len(shard), "arrays": where})
        found.skipped.update({first + row: reason for row, reason in shard.skipped.items()})
        found.runs.append(shard.run)
        first = last
    return found


def unfinished_manifest(partial: Path) -> dict[str, Any] | None:
    """Return the manifest that an unfinished store will have, if it can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
        manifest: dict[str, Any] = next(read_blocks(partial))[0]["manifest"]
        conform("manifest", manifest, SCHEMA["manifest"])
        return manifest
    return None


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer left beside a sealed store, unless another one is at work."""
    partial, sealing = layout.partial_path(path), path.with_name(path.name + _SEALING)
    with contextlib.suppress(OSError):  # in a read-only folder nothing is removed
        if partial.exists():
            with partial.open("rb") as file:
                lock(file)
                partial.unlink()
        sealing.unlink(missing_ok=True)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error into a StoreError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        if isinstance(error, BlockingIOError):
            what = "Another process is writing this store."
            hint = "wait for it, or stop it and run the same command again"
            raise StoreInUseError(what, where=path, next_step=hint) from error
        code = getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(f"The store cannot be written: {error}", where=path) from error
        what = f"The disk is full, or no more may be written to it: {os.strerror(code)}."
        hint = "free some space and run the same command again: it continues after the last whole"
        hint += " block of rows, if there is one"
        raise StoreError(what, where=path.parent, next_step=hint) from error


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
