"""Published files: found or fetched, checked, and unpacked without trusting the archive.

Only the standard library: ``urllib`` follows redirects and the proxy variables of the
environment, and a resumable download is one header (``Range``) guarded by another (``If-Range``,
RFC 9110 section 13.1.5: the server sends the rest only if the file is still the same one).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from featpipe.datasets.dataset import Dataset, DatasetOptions, refuse_missing
from featpipe.errors import DataError, DownloadError, UsageError
from featpipe.fingerprint import of_file
from featpipe.progress import SILENT, Progress
from featpipe.workspace import lock

MAX_BYTES = 4 << 30  # unpacked from one archive; the largest known here, STL-10, holds 3.1e9 bytes
_BLOCK_BYTES = 1 << 18
_RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
ATTEMPTS = 5  # consecutive failures without a single byte before giving up
FIRST_WAIT_S = 1.0  # after the first failure; doubled with each further one
TIMEOUT_S = 30.0  # silence of the server that counts as a failure
_BY_HAND = "fetch the file by another way and name its folder with --data DIR"


@dataclass(frozen=True)
class RemoteArchive:
    """A published archive: address, MD5 sum, its only folder, size in MB."""

    url: str
    md5: str
    folder: str
    megabytes: int

    @property
    def how_to_get(self) -> str:
        """What to do if the archive is needed and must not be fetched."""
        by_hand = f"unpack {self.url} yourself and name its folder with --data DIR"
        return f"allow the download ({self.megabytes} MB), or {by_hand}"

    def find(self, dataset: Dataset, needed: Sequence[str], others: Callable[[str], bool]) -> Path:
        """Return the folder with the needed files; fetch the archive if that is allowed.

        A folder that holds only some of them is returned, too, so that the following check can name
        the missing ones, unless it is our own download, which is completed. A download keeps the
        needed files and those for which ``others`` is true.
        """
        options = dataset.options
        folders, own = options.folders(self.folder), options.raw / self.folder
        found = locate(folders, needed)
        if found and (found != own or not options.download or _holds(own, needed) == len(needed)):
            return found
        if not options.download:
            raise dataset.not_found(folders, ", ".join(needed), next_step=self.how_to_get)
        options.progress.note(f"{dataset.name} is not here: fetching {self.url}")
        archive = options.raw / self.url.rpartition("/")[2]
        fetch(self.url, archive, digest=f"md5:{self.md5}", progress=options.progress)
        unpack(archive, own, needed, others, options.progress)
        archive.unlink()
        return own


def locate(folders: Iterable[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder that holds all of these files, else the first that holds any."""
    held = {folder: _holds(folder, files) for folder in folders}
    # max returns the first of equal ones, and the best folder is the first.
    best = max(held, key=lambda folder: (held[folder] == len(files), held[folder] > 0))
    return best if held[best] else None


def _holds(folder: Path, files: Sequence[str]) -> int:
    return sum((folder / name).is_file() for name in files)


@contextmanager
def checked(
    folder: Path, expected: Mapping[str, str | None], options: DatasetOptions
) -> Iterator[dict[str, str]]:
    """Compare files with the MD5 sums their publisher lists; refuse changes in the block."""
    missing = [name for name in expected if not (folder / name).is_file()]
    refuse_missing(missing, "A file of the dataset is missing.", folder, ", ".join(expected))
    with options.unchanged([folder / name for name in expected]):
        published = {name: digest for name, digest in expected.items() if digest}
        sums = options.digests([folder / name for name in published], "md5")
        for (name, digest), got in zip(published.items(), sums, strict=True):
            if got != digest:
                file, what = folder / name, f"The file {name} is damaged or another version."
                wanted, found = f"md5 {digest}", f"md5 {got}, {file.stat().st_size} bytes"
                hint = f"remove {file} and fetch it again"
                raise DataError(what, where=file, expected=wanted, got=found, next_step=hint)
        yield published


def unpack(
    archive: Path,
    target: Path,
    needed: Collection[str],
    others: Callable[[str], bool] = lambda name: False,
    progress: Progress = SILENT,
) -> None:
    """Unpack the archive's folder of the target's name: files needed, and others if wanted.

    Files, and a new target as a whole, appear complete or not at all; existing ones stay. The
    archive is refused if the path of a member is absolute or leaves the folder, or if a wanted
    member is neither file nor folder.
    """
    unfinished = target.with_name(f".{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left
    missing = [name for name in needed if not (target / name).is_file()]

    def wanted(name: str) -> bool:
        return name in missing or (others(name) and not (target / name).exists())

    try:
        unfinished.mkdir(parents=True)
        _copy_members(archive, target.name, unfinished, wanted, progress)
        absent = [name for name in missing if not (unfinished / name).is_file()]
        what = "Files are missing from the archive."
        refuse_missing(absent, what, archive, ", ".join(needed))
        if hasattr(os, "sync"):
            os.sync()  # the bytes are on the disk before the names change
        if target.exists():
            for made in sorted(unfinished.iterdir()):
                made.replace(target / made.name)
        else:
            unfinished.rename(target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError and its subclass NotImplementedError: encrypted zip entries, odd compression.
        got, hint = f"{type(error).__name__}: {error}", f"remove {archive} and run again"
        what = "The archive is damaged."
        raise DataError(what, where=archive, got=got, next_step=hint) from error
    except OSError as error:
        raise DataError("The archive cannot be unpacked.", where=archive, got=error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy_members(
    archive: Path, folder: str, target: Path, wanted: Callable[[str], bool], progress: Progress
) -> None:
    label, n_read, max_bytes = f"unpacking {archive.name}", 0, MAX_BYTES
    with archive.open("rb") as raw, progress.task(label, archive.stat().st_size) as task:
        for name, size, kind, content in _members(raw):
            path, reason = PurePosixPath(name), ""
            inner = "/".join(path.parts[1:])
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.name:
                reason = "it would be written outside of the folder"
            elif path.parts[:1] != (folder,) or not wanted(inner) or kind == stat.S_IFDIR:
                continue
            elif kind != stat.S_IFREG:
                reason = "it is not a plain file, perhaps a link"
            elif size > max_bytes:
                reason = f"it holds {size} bytes, at most {max_bytes} are allowed"
            if reason:
                what = f"The archive is unsafe: {name!r} is refused, {reason}."
                raise DataError(what, where=archive)
            max_bytes -= size
            _check_space(target, size)
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            with content() as stream, (target / inner).open("wb") as file:
                while block := stream.read(_BLOCK_BYTES):
                    file.write(block)
                    task.advance(raw.tell() - n_read)
                    n_read = raw.tell()


def _members(archive: IO[bytes]) -> Iterator[tuple[str, int, int, Callable[[], Any]]]:
    """Yield name, size, kind (of :mod:`stat`) and content of the members of a tar.gz or zip."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            for entry in package.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16) or stat.S_IFREG
                kind = stat.S_IFDIR if entry.is_dir() else kind
                yield entry.filename, entry.file_size, kind, partial(package.open, entry)
    else:
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r|gz") as tar:
            for member in tar:
                kind = stat.S_IFDIR if member.isdir() else stat.S_IFREG * member.isreg()
                yield member.name, member.size, kind, partial(tar.extractfile, member)


def _check_space(folder: Path, n_bytes: int) -> None:
    """Raise DownloadError unless that many bytes fit on the disk."""
    if n_bytes > (free := shutil.disk_usage(folder).free):
        needed, there = (f"{number / 1e6:,.0f} MB free" for number in (n_bytes, free))
        what = "There is not enough space for the dataset."
        hint = "free some space and run again, or choose another --workspace"
        raise DownloadError(what, where=folder, expected=needed, got=there, next_step=hint)


def fetch(
    url: str, target: Path, *, digest: str | None = None, progress: Progress = SILENT
) -> Path:
    """Download a file, or continue where an earlier call was interrupted.

    Until it is complete and its digest is right, the file is called ``<target>.part``; after an
    interruption, the next call continues it. A target that exists already is checked and kept.
    ``digest`` is ``"md5:<hex>"`` or ``"sha256:<hex>"``, or the beginning of one. DownloadError, if
    the server cannot be reached or refuses, the file cannot be stored, or the digest is wrong.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError("Only http and https addresses are downloaded.", got=url)
    path = target.with_name(f"{target.name}.part")
    note = target.with_name(f"{target.name}.part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("ab", buffering=0)
    except OSError as error:
        what = "The download cannot be stored there."
        raise DownloadError(what, where=path, got=error.strerror, next_step=_BY_HAND) from None
    with opened as part:
        try:
            lock(part)
        except BlockingIOError:
            what = "Another process is downloading this file."
            next_step = "wait until it is done and run again"
            raise DownloadError(what, where=path, next_step=next_step) from None
        try:
            if target.exists():
                _check_digest(target, digest, url, next_step=f"remove {target} and run again")
                return target
            _Part(url, part, note, progress).complete()
            try:
                _check_digest(path, digest, url, next_step="run again: it starts from the top")
            except DownloadError:
                part.truncate(0)  # nothing of it can be used
                raise
            os.fsync(part.fileno())
            path.replace(target)
            note.unlink(missing_ok=True)
        finally:
            if path.exists() and path.stat().st_size == 0:
                path.unlink()
                note.unlink(missing_ok=True)
    return target


class _Part:
    """An unfinished file that is downloaded; the ``note`` beside it records its source."""

    def __init__(self, url: str, file: Any, note: Path, progress: Progress) -> None:
        self.url, self.file, self.note, self.progress = url, file, note, progress

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def complete(self) -> None:
        """Append until nothing is missing."""
        failures, arrived = 0, False
        while True:
            before = self.size
            reason = self.request()
            if reason is None:
                return
            # A connection that is lost again and again still delivers the file in the end.
            moved = self.size > before
            failures, arrived = (1 if moved else failures + 1), arrived or moved
            offline = isinstance(reason, socket.gaierror) and not arrived
            if offline or failures >= ATTEMPTS:
                kept = f": {self.size} bytes are kept in {self.file.name}" if self.size else ""
                hint = f"check the network and run again{kept}; or {_BY_HAND}"
                got = f"{reason} ({failures} attempt(s) without a byte)"
                raise DownloadError("The download failed.", where=self.url, got=got, next_step=hint)
            time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))

    def request(self) -> object:
        """Append what is missing; return a failure that a retry may fix, ``None`` if complete."""
        have, known = self.size, {}
        with suppress(OSError, ValueError):
            known = json.loads(self.note.read_text(encoding="utf-8"))
        usable = isinstance(known, dict) and known.get("url") == self.url and known.get("validator")
        headers = {"User-Agent": "featpipe", "Accept-Encoding": "identity"}
        if have and usable:
            if known.get("total") == have:
                return None
            headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
        request = Request(self.url, headers=headers)  # noqa: S310 - fetch has checked the scheme
        try:
            # urlopen would remember the proxies of its first call for the life of the process.
            with build_opener().open(request, timeout=TIMEOUT_S) as response:
                return self.append(response)
        except HTTPError as error:
            error.close()
            reason = f"HTTP status {error.code} {error.reason}"
            if error.code == 416:  # the part is longer than the file: start again
                self.file.truncate(0)
            elif error.code not in _RETRIED_STATUSES:
                what = "The server refuses the file."
                raise DownloadError(what, where=self.url, got=reason, next_step=_BY_HAND) from None
            return reason
        except (OSError, HTTPException) as error:
            return getattr(error, "reason", None) or f"{type(error).__name__}: {error}"

    def append(self, response: HTTPResponse) -> str | None:
        """Append the bytes of a response; return what is wrong with it."""
        start = self.size if response.status == 206 else 0
        sent = response.headers.get("Content-Range", "")
        if response.status == 206 and not sent.startswith(f"bytes {start}-"):
            self.file.truncate(0)
            return f"the server sent another range ({sent}) than asked for ({start}-)"
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        self.file.truncate(start)
        if start == 0:
            etag = response.headers.get("ETag") or "W/"  # a weak one does not identify the bytes
            validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
            facts = {"url": self.url, "validator": validator, "total": total}
            self.note.write_text(json.dumps(facts), encoding="utf-8")
        _check_space(self.note.parent, (total or start) - start)
        label = f"downloading {Path(self.file.name).stem}"
        with self.progress.task(label, total=total or 0, done=start) as task:
            while block := response.read(_BLOCK_BYTES):
                view = memoryview(block)
                while view:  # an unbuffered file may take less than it is given
                    view = view[self.file.write(view) :]
                task.advance(len(block))
        if total is not None and self.size != total:
            return f"the connection closed after {self.size} of {total} bytes"
        return None


def _check_digest(path: Path, digest: str | None, url: str, next_step: str) -> None:
    if digest is None:
        return
    algorithm, _, expected = digest.partition(":")
    got = of_file(path, algorithm)
    if not got.startswith(expected):
        what = f"The file from {url} is not the one that was expected."
        found = f"{algorithm}:{got}, {path.stat().st_size} bytes"
        raise DownloadError(what, where=path, expected=digest, got=found, next_step=next_step)
