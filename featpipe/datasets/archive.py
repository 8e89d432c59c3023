"""Published archives: found unpacked, or fetched, unpacked without trust and checked.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from featpipe.datasets.dataset import Dataset, DatasetOptions
from featpipe.datasets.download import fetch
from featpipe.errors import DataError
from featpipe.progress import SILENT, Progress, Task
from featpipe.workspace import atomic_write

MAX_BYTES = 4 << 30
"""Most that is unpacked from one archive; the largest known here, STL-10, holds 3.1e9 bytes."""


@dataclass(frozen=True)
class RemoteArchive:
    """An archive as its publisher offers it.

    Parameters
    ----------
    url : str
    md5 : str
        MD5 sum of the archive.
    folder : str
        The one folder that the archive holds.
    megabytes : int
        Size of the archive, for messages.
    """

    url: str
    md5: str
    folder: str
    megabytes: int

    def find(self, dataset: Dataset, files: Sequence[str], also: Iterable[str] = ()) -> Path:
        """Return the folder with these files; fetch the archive if that is allowed and needed.

        A download (tar.gz) keeps the files in ``also`` too, and nothing else of the archive.

        A folder that holds only some of the files is returned too, so that the check that
        follows can name the missing ones; unless it is our own download, which is completed.

        Raises
        ------
        DataError
            If the files are nowhere and may not be downloaded.
        """
        options = dataset.options
        own = options.raw / self.folder
        found = locate(options.folders(self.folder), files)
        if found is not None:
            complete = all((found / name).is_file() for name in files)
            if complete or found != own or not options.download:
                return found
        if not options.download:
            raise self.missing(dataset, files)
        archive = self._fetch(dataset)
        missing = [name for name in (*files, *also) if not (own / name).is_file()]
        wanted = {f"{self.folder}/{name}": own / name for name in missing}
        extract_members(archive, wanted, options.progress)
        archive.unlink()
        return own

    def fetch_folder(self, dataset: Dataset, leave_out: str) -> Path:
        """Download the archive (zip), keep its folder and remove the archive."""
        own, archive = dataset.options.raw / self.folder, self._fetch(dataset)
        progress = dataset.options.progress
        extract_folder(archive, self.folder, own, leave_out=leave_out, progress=progress)
        archive.unlink()
        return own

    def missing(self, dataset: Dataset, files: Iterable[str]) -> DataError:
        """Build the error for a dataset that is in none of the folders where it may be."""
        return dataset.not_found(
            dataset.options.folders(self.folder),
            ", ".join(files),
            next_step=f"allow the download ({self.megabytes} MB), or unpack {self.url} yourself "
            "and name its folder with --data DIR",
        )

    def _fetch(self, dataset: Dataset) -> Path:
        progress = dataset.options.progress
        progress.note(f"{dataset.name} is not here: fetching {self.url}")
        archive = dataset.options.raw / self.url.rpartition("/")[2]
        return fetch(self.url, archive, digest=f"md5:{self.md5}", progress=progress)


def locate(folders: Iterable[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder that holds all of these files, else the first that holds any."""
    held = {folder: sum((folder / name).is_file() for name in files) for folder in folders}
    # max returns the first of equals, and folders come best first.
    best = max(held, key=lambda folder: (held[folder] == len(files), held[folder] > 0))
    return best if held[best] else None


def check_digests(
    folder: Path, expected: Mapping[str, str], options: DatasetOptions
) -> dict[str, str]:
    """Check files against the MD5 sums their publisher lists; return the sums.

    Raises
    ------
    DataError
        Naming the first file that is missing or differs.
    """
    if missing := [name for name in expected if not (folder / name).is_file()]:
        raise DataError(
            "A file of the dataset is missing.",
            where=folder,
            expected=", ".join(expected),
            got=f"no {', '.join(missing)}",
        )
    sums = options.digests([folder / name for name in expected], "md5")
    got = dict(zip(expected, sums, strict=True))
    for name, digest in expected.items():
        if got[name] != digest:
            raise DataError(
                f"The file {name} is damaged or another version.",
                where=folder / name,
                expected=f"md5 {digest}",
                got=f"md5 {got[name]}, {(folder / name).stat().st_size} bytes",
                next_step=f"remove {folder / name} and fetch it again",
            )
    return got


def check_size(path: Path, bytes_per_image: int) -> None:
    """Raise DataError unless a file holds a whole number of images, and at least one."""
    size = path.stat().st_size
    if size == 0 or size % bytes_per_image:
        raise DataError(
            "The file does not hold a whole number of images.",
            where=path,
            expected=f"a multiple of {bytes_per_image} bytes",
            got=f"{size} bytes",
        )


def extract_members(
    archive: Path,
    members: Mapping[str, Path],
    progress: Progress = SILENT,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Copy members of a gzipped tar file: name in it → file, which appears complete or not at all.

    Raises
    ------
    DataError
        If the archive is damaged, a member is missing, is no plain file or is too large.
    """
    missing = dict(members)
    label = f"unpacking {archive.name}"
    with (
        _translate_errors(archive),
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
    raise _incomplete(archive, ", ".join(members), f"no {', '.join(missing)}")


def extract_folder(
    archive: Path,
    folder: str,
    target: Path,
    *,
    leave_out: str | None = None,
    progress: Progress = SILENT,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Unpack a top-level folder of a zip file without one of its subfolders.

    The target must not exist, and appears complete or not at all.

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
    with _translate_errors(archive), zipfile.ZipFile(archive) as package:
        found, chosen = False, {}
        for entry in package.infolist():
            name, path = entry.filename, PurePosixPath(entry.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.name:
                raise _refused(archive, name, "it would be written outside of the folder")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise _refused(archive, name, "it is a link")
            first, *inner = path.parts or ("",)
            found = found or first == folder
            if first == folder and not entry.is_dir() and inner[:1] != [leave_out]:
                chosen[partial.joinpath(*inner)] = entry
        if not found:
            raise _incomplete(archive, f"{folder}/…")
        n_bytes = sum(entry.file_size for entry in chosen.values())
        _reserve(archive, folder, n_bytes, max_bytes, target.parent)
        with progress.task(f"unpacking {archive.name}", total=len(chosen)) as task:
            for file, entry in chosen.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                with package.open(entry) as content, file.open("wb") as stream:
                    shutil.copyfileobj(content, stream)
                task.advance()
        partial.rename(target)


@dataclass
class _Counted:
    """A file that tells a progress task what was read from it."""

    stream: IO[bytes]
    task: Task

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        self.task.advance(len(block))
        return block


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


def _incomplete(archive: Path, expected: str, got: str | None = None) -> DataError:
    what = "The archive does not hold what it should."
    return DataError(what, where=archive, expected=expected, got=got)


@contextmanager
def _translate_errors(archive: Path) -> Iterator[None]:
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
