"""The unfinished part of a download, as it lies on the disk between two attempts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from featpipe.errors import DownloadError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at a time are caught by the digest
    fcntl = None  # type: ignore[assignment]


class PartFile:
    """The unfinished file, and beside it a note of which version of the file it is a part of.

    Parameters
    ----------
    target : Path
        Name of the file when it is finished; the part is called ``<target>.part``.
    url : str
    """

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self._note = target.with_name(target.name + ".part.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from writing into the same part."""
        with self.path.open("ab") as stream:
            try:
                if fcntl is not None:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(
                    "Another process is downloading this file.",
                    where=self.path,
                    next_step="wait until it is done and run again",
                ) from None
            try:
                yield
            finally:
                if self.size() == 0:
                    self.discard()

    def size(self) -> int:
        """Return the bytes that are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    def known(self) -> dict[str, Any]:
        """Return what was noted when this part was begun; empty if it cannot be continued."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        usable = isinstance(note, dict) and note.get("url") == self.url and note.get("validator")
        return note if usable and self.size() else {}

    def begin(self, response: HTTPResponse, total: int | None) -> None:
        """Note which version of the file the bytes to come belong to."""
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else None
        validator = strong or response.headers.get("Last-Modified")
        note = {"url": self.url, "validator": validator, "total": total}
        self._note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        """Forget what is here, to begin anew."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the file its name, once its bytes are on the disk."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)
