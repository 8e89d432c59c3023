"""From a published archive to checked files: look, fetch, unpack, verify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featpipe.datasets.archive import extract_folder, extract_members
from featpipe.datasets.definition import DatasetOptions
from featpipe.datasets.download import fetch
from featpipe.errors import DataError


@dataclass(frozen=True)
class Publication:
    """An archive as its publisher offers it.

    Parameters
    ----------
    dataset : str
        Name of the dataset, for messages.
    url : str
    md5 : str
        MD5 sum of the archive.
    folder : str
        The one folder that the archive holds.
    megabytes : int
        Size of the archive, for messages.
    """

    dataset: str
    url: str
    md5: str
    folder: str
    megabytes: int

    def find(self, files: Sequence[str], options: DatasetOptions, also: Iterable[str] = ()) -> Path:
        """Return the folder with these files; fetch the archive if that is allowed and needed.

        A download keeps the files in ``also`` too, and nothing else of the archive.

        A folder that holds only some of the files is returned too, so that the check that
        follows can name the missing ones; unless it is our own download, which is completed.

        Raises
        ------
        DataError
            If the files are nowhere and may not be downloaded.
        """
        folders = options.folders(self.folder)
        found = locate(folders, files)
        own = options.raw / self.folder
        complete = found is not None and all((found / name).is_file() for name in files)
        if found is not None and (complete or found != own or not options.download):
            return found
        if not options.download:
            raise self.missing(folders, files)
        self.fetch_members([*files, *also], options)
        return own

    def missing(self, folders: Iterable[Path], files: Iterable[str]) -> DataError:
        """Build the error for a dataset that is in none of the folders where it may lie."""
        return missing_dataset(
            self.dataset,
            folders,
            ", ".join(files),
            f"allow the download ({self.megabytes} MB), or unpack {self.url} yourself and "
            "name its folder with --data DIR",
        )

    def fetch_members(self, files: Iterable[str], options: DatasetOptions) -> None:
        """Download the archive (tar.gz), keep these files and remove the archive."""
        own = options.raw / self.folder
        wanted = {f"{self.folder}/{name}": own / name for name in files}
        missing = {name: path for name, path in wanted.items() if not path.is_file()}
        archive = self._fetch(options)
        extract_members(archive, missing, options.progress)
        archive.unlink()

    def fetch_folder(self, options: DatasetOptions, leave_out: str | None = None) -> Path:
        """Download the archive (zip), keep its folder and remove the archive."""
        own = options.raw / self.folder
        archive = self._fetch(options)
        extract_folder(archive, self.folder, own, leave_out=leave_out, progress=options.progress)
        archive.unlink()
        return own

    def _fetch(self, options: DatasetOptions) -> Path:
        options.progress.note(f"{self.dataset} is not here: fetching {self.url}")
        archive = options.raw / self.url.rpartition("/")[2]
        return fetch(self.url, archive, digest=f"md5:{self.md5}", progress=options.progress)


def locate(folders: Iterable[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder that holds all of these files, else the first that holds any."""
    held = {folder: sum((folder / name).is_file() for name in files) for folder in folders}
    # max returns the first of equals, and folders come best first.
    best = max(held, key=lambda folder: (held[folder] == len(files), held[folder] > 0))
    return best if held[best] else None


def missing_dataset(
    dataset: str, folders: Iterable[Path], expected: str, next_step: str
) -> DataError:
    """Build the error for a dataset that is not where it may lie."""
    return DataError(
        f"The dataset {dataset!r} is not here.",
        where="looked in " + ", ".join(str(folder) for folder in folders),
        expected=expected,
        next_step=next_step,
    )


def check_digests(
    folder: Path, expected: Mapping[str, str], options: DatasetOptions
) -> dict[str, str]:
    """Check files against the MD5 sums their publisher lists; return the sums.

    A file is read once: its sum is remembered until its size or modification time changes.

    Raises
    ------
    DataError
        Naming the first file that is missing or differs.
    """
    paths = [folder / name for name in expected]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(
            "A file of the dataset is missing.",
            where=folder,
            expected=", ".join(expected),
            got=f"no {', '.join(missing)}",
        )
    got = dict(zip(expected, options.digests(paths, "md5"), strict=True))
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
