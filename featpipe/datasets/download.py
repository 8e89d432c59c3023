"""Fetch one large file: resumed after an interruption, checked before anybody may use it.

Only the standard library: ``urllib`` follows redirects and the proxy variables of the
environment, and a resumable download is one header (``Range``) guarded by another (``If-Range``,
RFC 9110 section 13.1.5: the server sends the rest only if the file is still the same one).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from featpipe.errors import DownloadError, UsageError
from featpipe.fingerprint import of_file
from featpipe.progress import SILENT, Progress, Task

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at a time are caught by the digest
    fcntl = None  # type: ignore[assignment]

_BLOCK_BYTES = 1 << 18
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a download is tried."""

    attempts: int = 5  # failures in a row, none bringing a single byte, after which it is given up
    first_wait_s: float = 1.0  # after the first failure; doubled with each further one
    timeout_s: float = 30.0  # silence of the server that counts as a failure


def fetch(
    url: str,
    target: Path,
    *,
    digest: str | None = None,
    progress: Progress = SILENT,
    retries: RetryPolicy = RetryPolicy(),
) -> Path:
    """Download a file, or continue where an earlier call was interrupted.

    Until it is complete and its digest is right the file is called ``<target>.part``; that file
    stays when the download is interrupted and is continued by the next call.

    Parameters
    ----------
    url : str
        ``http`` or ``https`` address.
    target : Path
        File to write; one that exists already is checked and kept. Returned.
    digest : str, optional
        ``"md5:<hex>"`` or ``"sha256:<hex>"`` of the whole file.
    progress : Progress
    retries : RetryPolicy

    Raises
    ------
    DownloadError
        If the server cannot be reached or refuses, space is short, or the digest is wrong.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError("Only http and https addresses are downloaded.", got=url)
    if target.exists():
        _check_digest(target, digest, url, next_step=f"remove {target} and run again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = PartFile(target, url)
    with part.locked():
        _with_retries(part, progress, retries)
        try:
            _check_digest(part.path, digest, url, next_step="run again: it starts from the top")
        except DownloadError:
            part.discard()  # no further byte can make a wrong beginning right
            raise
        part.finish(target)
    return target


class PartFile:
    """The unfinished file, and beside it a note of which version of the file it is a part of."""

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
        """Return what was noted when this part was started; empty if it cannot be continued."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        usable = isinstance(note, dict) and note.get("url") == self.url and note.get("validator")
        return note if usable and self.size() else {}

    def start(self, response: HTTPResponse, total: int | None) -> None:
        """Note which version of the file the bytes to come belong to."""
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else None
        validator = strong or response.headers.get("Last-Modified")
        note = {"url": self.url, "validator": validator, "total": total}
        self._note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        """Forget what is here, to start again."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the file its name, once its bytes are on the disk."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


class _TransferError(Exception):
    """The transfer broke off in a way that another try may mend."""


class _NoSuchHostError(_TransferError):
    """The server's name cannot be resolved: as a rule this machine is offline."""


def _with_retries(part: PartFile, progress: Progress, retries: RetryPolicy) -> None:
    failures, arrived = 0, False
    while True:
        before = part.size()
        try:
            _transfer(part, progress, retries.timeout_s)
            return
        except _TransferError as error:
            # A slow line that breaks off again and again still arrives in the end.
            moved = part.size() > before
            failures, arrived = (1 if moved else failures + 1), arrived or moved
            offline = isinstance(error, _NoSuchHostError) and not arrived
            if offline or failures >= retries.attempts:
                kept = f": {part.size()} bytes are kept in {part.path}" if part.size() else ""
                raise DownloadError(
                    "The download did not succeed.",
                    where=part.url,
                    got=f"{error} ({failures} attempt(s) without a byte)",
                    next_step=f"check the network and run again{kept}; "
                    "or fetch the file by another way and name its folder with --data DIR",
                ) from error
            time.sleep(retries.first_wait_s * 2 ** (failures - 1))


def _transfer(part: PartFile, progress: Progress, timeout_s: float) -> None:
    """Ask for what is still missing and append it."""
    known, have = part.known(), part.size()
    if known and known.get("total") == have:
        return
    headers = {"User-Agent": "featpipe", "Accept-Encoding": "identity"}
    if known:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
    with _open(Request(part.url, headers=headers), part, timeout_s) as response:  # noqa: S310
        start = have if response.status == 206 else 0
        sent = response.headers.get("Content-Range", "")
        if response.status == 206 and not sent.startswith(f"bytes {have}-"):
            part.discard()
            raise _TransferError(f"the server sent another range ({sent}) than asked for ({have}-)")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if start == 0:
            part.start(response, total)
        needed, free = (total or start) - start, shutil.disk_usage(part.path.parent).free
        if free < needed:
            raise DownloadError(
                "There is not enough space for the download.",
                where=part.path.parent,
                expected=f"{needed / 1e6:,.0f} MB free",
                got=f"{free / 1e6:,.0f} MB free",
                next_step="free some space, or choose another --workspace",
            )
        label = f"downloading {part.path.name.removesuffix('.part')}"
        with progress.task(label, total=total or 0, done=start) as task:
            _append(response, part.path, start, task)
    if total is not None and part.size() != total:
        raise _TransferError(f"the connection closed after {part.size()} of {total} bytes")


def _open(request: Request, part: PartFile, timeout_s: float) -> HTTPResponse:
    """Send a request; a failure is either worth another try or final."""
    try:
        # urlopen would remember the proxies of its first call for the life of the process.
        response: HTTPResponse = build_opener().open(request, timeout=timeout_s)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file: start again
            part.discard()
            raise _TransferError("the server has fewer bytes than were here") from None
        if error.code in _WORTH_ANOTHER_TRY:
            raise _TransferError(f"HTTP status {error.code} {error.reason}") from None
        raise DownloadError(
            "The server refuses the file.",
            where=part.url,
            got=f"HTTP status {error.code} {error.reason}",
            next_step="fetch it by another way and name its folder with --data DIR",
        ) from None
    except URLError as error:
        no_host = isinstance(error.reason, socket.gaierror)
        raise (_NoSuchHostError if no_host else _TransferError)(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _TransferError(f"{type(error).__name__}: {error}") from error


def _append(response: HTTPResponse, path: Path, start: int, task: Task) -> None:
    """Write the bytes of a response at their place in the file."""
    with path.open("rb+" if path.exists() else "wb") as stream:
        stream.truncate(start)
        stream.seek(start)
        while True:
            try:
                block = response.read(_BLOCK_BYTES)
            except (OSError, HTTPException) as error:
                raise _TransferError(f"{type(error).__name__}: {error}") from error
            if not block:
                return
            try:
                stream.write(block)
            except OSError as error:  # as a rule the disk is full
                what, next_step = "The file cannot be written.", "free some space and run again"
                raise DownloadError(what, where=path, got=error, next_step=next_step) from error
            task.advance(len(block))


def _check_digest(path: Path, digest: str | None, url: str, next_step: str) -> None:
    if digest is None:
        return
    algorithm, _, expected = digest.partition(":")
    got = of_file(path, algorithm)
    if got != expected:
        raise DownloadError(
            f"The file from {url} is not the one that was expected.",
            where=path,
            expected=digest,
            got=f"{algorithm}:{got}, {path.stat().st_size} bytes",
            next_step=next_step,
        )
