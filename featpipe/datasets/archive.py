"""Unpack archives without trusting them.

No member chooses where it is written. From a tar file only named, plain members are copied, each
to a path that the caller chose, which is stricter than the extraction filters of ``tarfile`` (and
needs no Python 3.11.4). A zip file is refused as a whole if any entry is absolute, climbs out of
the folder, is a link or promises too many bytes, before anything is written.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from featpipe.errors import DataError
from featpipe.progress import SILENT, Progress, Task
from featpipe.workspace import atomic_write

MAX_BYTES = 4 << 30
"""Most that is unpacked from one archive; the largest known here, STL-10, holds 3.1e9 bytes."""


def extract_members(
    archive: Path,
    members: Mapping[str, Path],
    progress: Progress = SILENT,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Copy named members of a gzipped tar file, reading it once from front to back.

    Parameters
    ----------
    archive : Path
    members : mapping of str to Path
        Name in the archive → file to write. Each file appears complete or not at all.
    progress : Progress
        Told the bytes of the archive that were read.
    max_bytes : int
        Most that all members together may hold.

    Raises
    ------
    DataError
        If the archive is damaged, a member is missing, is no plain file or is too large.
    """
    missing = dict(members)
    label = f"unpacking {archive.name}"
    with (
        _explained(archive),
        archive.open("rb") as raw,
        progress.task(label, total=archive.stat().st_size) as task,
        tarfile.open(fileobj=_Counted(raw, task), mode="r|gz") as tar,  # type: ignore[call-overload]
    ):
        for member in tar:
            target = missing.pop(str(PurePosixPath(member.name)), None)
            if target is None:
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise _refused(archive, member.name, "it is not a plain file")
            max_bytes = _reserve(archive, member.name, member.size, max_bytes, target.parent)
            with atomic_write(target) as temporary, temporary.open("wb") as stream:
                shutil.copyfileobj(content, stream, 1 << 20)
            if not missing:
                return
    raise DataError(
        "The archive does not hold what it should.",
        where=archive,
        expected=", ".join(members),
        got=f"no {', '.join(missing)}",
    )


def extract_folder(
    archive: Path,
    folder: str,
    target: Path,
    *,
    leave_out: str | None = None,
    progress: Progress = SILENT,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Unpack one top-level folder of a zip file; the target appears complete or not at all.

    Parameters
    ----------
    archive : Path
    folder : str
        Name of the folder in the archive.
    target : Path
        The folder to make; must not exist.
    leave_out : str, optional
        Subfolder that is not wanted.
    progress : Progress
        Told the number of files.
    max_bytes : int
        Most that the archive may unpack to.

    Raises
    ------
    DataError
        If the archive is damaged, unsafe, or has no such folder; if the target exists.
    """
    if target.exists():
        raise DataError(
            "A folder is in the way of the one to unpack.",
            where=target,
            next_step="move it away and run again",
        )
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
    with _explained(archive), zipfile.ZipFile(archive) as package:
        chosen = dict(_entries_of(archive, package, folder, leave_out))
        n_bytes = sum(entry.file_size for entry in chosen.values())
        _reserve(archive, folder, n_bytes, max_bytes, target.parent)
        with progress.task(f"unpacking {archive.name}", total=len(chosen)) as task:
            for path, entry in chosen.items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                with package.open(entry) as content, (partial / path).open("wb") as stream:
                    shutil.copyfileobj(content, stream)
                task.advance()
        partial.rename(target)


class _Counted:
    """A file that tells a progress task what was read from it."""

    def __init__(self, stream: IO[bytes], task: Task) -> None:
        self._stream = stream
        self._task = task

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._task.advance(len(block))
        return block


def _entries_of(
    archive: Path, package: zipfile.ZipFile, folder: str, leave_out: str | None
) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Check every entry of a zip file; yield the wanted files with their path in the folder."""
    found = False
    for entry in package.infolist():
        path = PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.name:
            raise _refused(archive, entry.filename, "it would be written outside of the folder")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(archive, entry.filename, "it is a link")
        if path.parts[:1] != (folder,):
            continue
        found = True
        inner = PurePosixPath(*path.parts[1:])
        if not entry.is_dir() and inner.parts[:1] != (leave_out,):
            yield inner, entry
    if not found:
        raise DataError(
            "The archive does not hold what it should.", where=archive, expected=f"{folder}/…"
        )


def _reserve(archive: Path, name: str, n_bytes: int, allowed: int, folder: Path) -> int:
    """Return how many bytes are still allowed after this many."""
    if n_bytes > allowed:
        raise _refused(archive, name, f"it holds {n_bytes} bytes, at most {allowed} are allowed")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise DataError(
            "There is not enough space to unpack the archive.",
            where=folder,
            expected=f"{n_bytes / 1e6:,.0f} MB free for {name}",
            got=f"{free / 1e6:,.0f} MB free",
            next_step="free some space and run again: the archive is kept",
        )
    return allowed - n_bytes


def _refused(archive: Path, name: str, reason: str) -> DataError:
    return DataError(f"The archive is unsafe: {name!r} is refused, {reason}.", where=archive)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError and its child NotImplementedError: encrypted or strangely packed zip entries.
        raise DataError(
            "The archive is damaged.",
            where=archive,
            got=f"{type(error).__name__}: {error}",
            next_step=f"remove {archive} and run again",
        ) from error
    except OSError as error:
        raise DataError("The archive cannot be unpacked.", where=archive, got=error) from error
