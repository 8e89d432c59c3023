"""Fetch one large file: resumed after an interruption, checked before anybody may use it.

Only the standard library: ``urllib`` follows redirects and the proxy variables of the
environment, and a resumable download is one header (``Range``) guarded by another (``If-Range``,
RFC 9110 section 13.1.5: the server sends the rest only if the file is still the same one).
"""

from __future__ import annotations

import errno
import shutil
import socket
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from featpipe.datasets.partfile import PartFile
from featpipe.errors import DownloadError, UsageError
from featpipe.fingerprint import of_file
from featpipe.progress import SILENT, Progress, Task

_BLOCK_BYTES = 1 << 18
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How often and how long a download is tried.

    Parameters
    ----------
    attempts : int
        Failures in a row, none of them bringing a single byte, after which it is given up.
    first_wait_s : float
        Pause after the first failure in seconds; it doubles with each further one.
    timeout_s : float
        Silence of the server in seconds that counts as a failure.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


def fetch(
    url: str,
    target: Path,
    *,
    digest: str | None = None,
    progress: Progress = SILENT,
    patience: Patience = Patience(),
) -> Path:
    """Download a file, or continue where an earlier call was interrupted.

    Until it is complete and its digest is right the file is called ``<target>.part``; that file
    stays when the download is interrupted and is continued by the next call.

    Parameters
    ----------
    url : str
        ``http`` or ``https`` address.
    target : Path
        File to write; one that exists already is checked and kept.
    digest : str, optional
        ``"md5:<hex>"`` or ``"sha256:<hex>"`` of the whole file.
    progress : Progress
        Told the bytes.
    patience : Patience

    Returns
    -------
    target : Path

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
        _with_retries(part, progress, patience)
        try:
            _check_digest(part.path, digest, url, next_step="run again: it starts from the top")
        except DownloadError:
            part.discard()  # no further byte can make a wrong beginning right
            raise
        part.finish(target)
    return target


class _TransferError(Exception):
    """The transfer broke off in a way that another try may mend."""


class _NoSuchHostError(_TransferError):
    """The server's name cannot be resolved: as a rule this machine is offline."""


def _with_retries(part: PartFile, progress: Progress, patience: Patience) -> None:
    failures, arrived = 0, False
    while True:
        before = part.size()
        try:
            _transfer(part, progress, patience.timeout_s)
            return
        except _TransferError as error:
            # A slow line that breaks off again and again still arrives in the end.
            moved = part.size() > before
            failures, arrived = (1 if moved else failures + 1), arrived or moved
            offline = isinstance(error, _NoSuchHostError) and not arrived
            if offline or failures >= patience.attempts:
                kept = f": {part.size()} bytes are kept in {part.path}" if part.size() else ""
                raise DownloadError(
                    "The download did not succeed.",
                    where=part.url,
                    got=f"{error} ({failures} attempt(s) without a byte)",
                    next_step=f"check the network and run again{kept}; "
                    "or fetch the file by another way and name its folder with --data DIR",
                ) from error
            time.sleep(patience.first_wait_s * 2 ** (failures - 1))


def _transfer(part: PartFile, progress: Progress, timeout_s: float) -> None:
    """Ask for what is still missing and append it."""
    known, have = part.known(), part.size()
    if known and known.get("total") == have:
        return
    headers = {"User-Agent": "featpipe", "Accept-Encoding": "identity"}
    if known:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
    with _open(Request(part.url, headers=headers), part, timeout_s) as response:  # noqa: S310
        start = _start_of(response, have, part)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if start == 0:
            part.begin(response, total)
        _check_space(part.path, (total or start) - start)
        label = f"downloading {part.path.name.removesuffix('.part')}"
        with progress.task(label, total=total or 0, done=start) as task:
            _append(response, part, start, task)
    if total is not None and part.size() != total:
        raise _TransferError(f"the connection closed after {part.size()} of {total} bytes")


def _open(request: Request, part: PartFile, timeout_s: float) -> HTTPResponse:
    try:
        # urlopen would remember the proxies of its first call for the life of the process.
        response: HTTPResponse = build_opener().open(request, timeout=timeout_s)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file: begin again
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


def _start_of(response: HTTPResponse, have: int, part: PartFile) -> int:
    """Return the position in the file where the bytes of this response belong."""
    if response.status != 206:
        return 0
    sent = response.headers.get("Content-Range", "")
    if not sent.startswith(f"bytes {have}-"):
        part.discard()
        raise _TransferError(f"the server sent another range ({sent}) than asked for ({have}-)")
    return have


def _append(response: HTTPResponse, part: PartFile, start: int, task: Task) -> None:
    with part.path.open("rb+" if part.path.exists() else "wb") as stream:
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
            except OSError as error:
                raise _write_failed(part.path, error) from error
            task.advance(len(block))


def _write_failed(path: Path, error: OSError) -> DownloadError:
    full = error.errno == errno.ENOSPC
    return DownloadError(
        "There is no space left for the download." if full else "The file cannot be written.",
        where=path,
        got=None if full else str(error),
        next_step="free some space and run again: what has arrived is kept" if full else None,
    )


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DownloadError(
            "There is not enough space for the download.",
            where=path.parent,
            expected=f"{needed / 1e6:,.0f} MB free",
            got=f"{free / 1e6:,.0f} MB free",
            next_step="free some space, or choose another --workspace",
        )


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
