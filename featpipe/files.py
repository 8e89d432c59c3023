"""Reading files at paths from outside: only regular files, and never more than is expected.

A FIFO waits for a writer that may never come, a device may have no end, and opening one may have
side effects; therefore paths from users, folders and tables are opened here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from typing import Any

_MOST_JSON_BYTES = 1 << 30  # a result of ten models and a thousand classes has some 0.1 GB

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading bytes; links are followed.

    For anything else, the ``strerror`` of the OSError names its kind.
    """
    _check_regular(path, os.stat(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        _check_regular(path, os.fstat(handle))  # it may have been replaced meanwhile
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """Return the content of a regular file; a larger one is an OSError before it is read."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most_bytes:
            why = f"it has {size} bytes, at most {most_bytes} are read"
            raise OSError(errno.EFBIG, why, os.fspath(path))
        return stream.read(size)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value in a JSON file that is a regular file; other text is a ValueError."""
    return json.loads(read_regular(path, _MOST_JSON_BYTES).decode("utf-8"))


def _check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", os.fspath(path))
