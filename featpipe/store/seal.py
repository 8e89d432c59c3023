"""The seal: a block in front of the HDF5 data that vouches for every byte behind it.

HDF5 leaves a *user block* at the start of a file to the application. While a store is being
written the block is empty; sealing fills it, last of all, with a few lines of text: where the
arrays lie, a digest of each, and one digest of everything else. A reader checks that last one
before the HDF5 library sees the file: the library does not survive every damaged file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError
from featpipe.store.layout import SCHEMA_VERSION, damaged

_TITLE = b"featpipe feature store"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_READ_BYTES = 1 << 22
_SMALLEST_BLOCK = 4096
_LONGEST_LINE = 1 << 24
_ENTRY_BYTES = 512  # more than one array takes in the block, its name of 255 bytes included


def block_size(n_arrays: int) -> int:
    """Return the size of the block, a power of two as HDF5 wants it."""
    needed = 1024 + _ENTRY_BYTES * n_arrays
    return max(_SMALLEST_BLOCK, 1 << (needed - 1).bit_length())


@dataclass(frozen=True)
class Place:
    """Where a contiguous array lies in the file, and the digest of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    digest: str = ""

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> Place:
        """Return where a dataset lies; one without rows lies nowhere."""
        return cls(tuple(dataset.shape), str(dataset.dtype), dataset.id.get_offset() or 0)

    @property
    def n_bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stop(self) -> int:
        """Where the array ends in the file."""
        return self.offset + self.n_bytes

    def map(self, path: Path) -> NDArray[Any]:
        """Return the array, memory-mapped and read-only."""
        if not self.n_bytes:
            return np.empty(self.shape, self.dtype)
        return np.memmap(path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


@dataclass(frozen=True)
class Seal:
    """What the block says.

    Attributes
    ----------
    arrays : mapping of str to Place
        By HDF5 name.
    structure : str
        BLAKE2b of every byte that belongs neither to the block nor to an array.
    n_bytes : int
        Size of the file.
    block : int
        Size of the block itself.
    """

    arrays: Mapping[str, Place]
    structure: str
    n_bytes: int
    block: int
    schema: int = SCHEMA_VERSION

    @classmethod
    def of(cls, path: Path, places: Mapping[str, Place], block: int) -> Seal:
        """Digest a file that is complete but for its block."""
        n_bytes = path.stat().st_size
        arrays = {
            name: Place(
                place.shape,
                place.dtype,
                place.offset,
                _digest(path, [(place.offset, place.stop)]),
            )
            for name, place in places.items()
        }
        structure = _digest(path, gaps(places.values(), block, n_bytes))
        return cls(arrays, structure, n_bytes, block)

    def write(self, path: Path) -> None:
        """Fill the block of a file and wait until it is on the disk."""
        body = json.dumps(asdict(self), sort_keys=True).encode()
        text = b"\n".join([_TITLE, body, _hash(body).encode(), b""])
        if len(text) > self.block:
            raise ValueError(f"{len(text)} bytes do not fit into a block of {self.block}")
        with path.open("rb+") as file:
            file.write(text.ljust(self.block, b"\0"))
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path: Path) -> Seal:
        """Read the block and check it, the file's size and everything but the arrays.

        Raises
        ------
        StoreError
            If the file is no sealed store of this schema, or damaged.
        """
        seal = cls._of_block(path)
        if path.stat().st_size != seal.n_bytes:
            raise damaged(path, f"it has {path.stat().st_size} bytes instead of {seal.n_bytes}")
        if _padding(path, seal.block).strip(b"\0"):
            raise damaged(path, "its first block changed")
        between = gaps(seal.arrays.values(), seal.block, seal.n_bytes)
        if _digest(path, between) != seal.structure:
            raise damaged(path, "its labels, ids or structure changed")
        return seal

    @classmethod
    def _of_block(cls, path: Path) -> Seal:
        said = json.loads(_read_body(path))
        if said.get("schema") != SCHEMA_VERSION:
            raise StoreError(
                "The feature store has another schema.",
                where=path,
                expected=f"schema {SCHEMA_VERSION}",
                got=f"schema {said.get('schema')}",
                next_step="extract again with this version of featpipe",
            )
        arrays = {
            name: Place(**{**place, "shape": tuple(place["shape"])})
            for name, place in said["arrays"].items()
        }
        return cls(**{**said, "arrays": arrays})

    def changed(self, path: Path) -> list[str]:
        """Return the names of the arrays whose bytes are not the sealed ones."""
        return [
            name
            for name, place in self.arrays.items()
            if _digest(path, [(place.offset, place.stop)]) != place.digest
        ]


def gaps(places: Iterable[Place], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes between ``start`` and ``stop`` that belong to no array."""
    for place in sorted(places, key=lambda place: place.offset):
        if place.n_bytes:
            yield start, place.offset
            start = place.stop
    yield start, stop


def _read_body(path: Path) -> bytes:
    """Return the line that says everything, refusing by name what is no sealed store at all."""
    with path.open("rb") as file:
        title = file.readline(len(_TITLE) + 1)
        body = file.readline(_LONGEST_LINE).removesuffix(b"\n")
        digest = file.readline(_LONGEST_LINE).strip()
    if title == _TITLE + b"\n":
        if digest != _hash(body).encode():
            raise damaged(path, "its first block changed")
        return body
    if title.startswith(_HDF5[:6]) or (title and not title.strip(b"\0")):
        raise StoreError(
            "The file is not a sealed feature store.",
            where=path,
            got="HDF5 data without featpipe's seal",
            next_step="run the extract command again",
        )
    # No word of deleting it: this may be any file of the user's, named by mistake.
    raise StoreError(
        "The file is not a feature store.",
        where=path,
        got=None if title else "an empty file",
        next_step="featpipe store list",
    )


def _padding(path: Path, block: int) -> bytes:
    with path.open("rb") as file:
        said = sum(len(file.readline(_LONGEST_LINE)) for _ in range(3))
        return file.read(block - said)


def _hash(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _digest(path: Path, ranges: Iterable[tuple[int, int]]) -> str:
    """Return the BLAKE2b (hex) of some ranges of a file, read piece by piece."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        for start, stop in ranges:
            file.seek(start)
            left = stop - start
            while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()
