"""The unfinished file on the disk: one writer, room for it, errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from featpipe.errors import StoreError
from featpipe.store.layout import partial_path

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two writers of one store apart
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error into one that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either, with the number in the text
        text = str(error)
        told = re.search(r"errno = (\d+)", text)
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                "The disk is full; what was written so far is kept.",
                where=path.parent,
                next_step="free some space and run the same command again: it continues",
            ) from error
        if isinstance(error, BlockingIOError):
            raise StoreError(
                "Another process is writing this store.",
                where=path,
                next_step="wait for it, or stop it and run the same command again",
            ) from error
        raise StoreError(f"The store cannot be written: {text}", where=path) from error


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold a lock on the unfinished store.

    HDF5 has locks of its own, but empties a file that it is to create before it looks at them.
    """
    with partial_path(path).open("ab") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.exists(stream.name) or not os.path.samestat(
            os.stat(stream.name), os.fstat(stream.fileno())
        ):
            raise BlockingIOError(f"{stream.name} was sealed this moment")
        yield


def reserve(path: Path, more: int = 0) -> None:
    """Take all bytes of a file, and some more, from the disk before HDF5 needs them.

    A full disk shows before the first batch, and here rather than in HDF5: a process in which
    HDF5 could not write what it has to crashes when it ends.
    """
    size = path.stat().st_size + more
    if size and hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)
