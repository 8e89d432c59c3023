"""What a registered dataset is: where it is looked for, its splits, and how one is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featpipe.datasets.base import ImageSource
from featpipe.errors import DataError, UnknownNameError
from featpipe.fingerprint import FileHashes
from featpipe.progress import SILENT, Progress
from featpipe.registry import did_you_mean
from featpipe.workspace import user_path


@dataclass(frozen=True)
class DatasetOptions:
    """How a dataset is to be found and opened.

    Parameters
    ----------
    data : Path, optional
        Where to look first: the dataset's own folder or the folder above it.
    raw : Path
        Where to look second, and where downloads go.
    hashes : FileHashes
        Remembered content hashes, so that unchanged files are not read again.
    classes : str, optional
        Only these classes: ``"first:50"`` or names separated by commas.
    seed : int
        Seed of the splits that a dataset does not prescribe itself.
    download : bool
        Whether a dataset that is nowhere may be fetched from its publisher.
    progress : Progress
        Told about downloads, unpacking and hashing.
    """

    data: Path | None = None
    raw: Path = Path("data/raw")
    hashes: FileHashes = field(default_factory=FileHashes)
    classes: str | None = None
    seed: int = 0
    download: bool = False
    progress: Progress = SILENT

    def folders(self, *names: str) -> list[Path]:
        """Folders where a dataset with these folder names may lie, best first.

        Raises
        ------
        DataError
            If the folder to look in first does not exist: then the user meant another one.
        """
        self._check_data()
        first = [] if self.data is None else [self.data, *(self.data / name for name in names)]
        return [*first, *(self.raw / name for name in names)]

    def resolve(self, path: str) -> Path:
        """Return the path that the user named: below the data folder if it is there."""
        self._check_data()
        named = user_path(path)
        if self.data is not None and (self.data / named).exists():
            return self.data / named
        return named

    def _check_data(self) -> None:
        if self.data is not None and not self.data.exists():
            raise DataError(
                "The data folder does not exist.",
                where=self.data,
                next_step="correct --data, or leave it out to use the workspace's own folder",
            )

    def digests(self, paths: Sequence[str | Path], algorithm: str = "sha256") -> list[str]:
        """Return the content hashes of files; progress is shown only if any has to be read.

        Raises
        ------
        DataError
            If a file is missing or cannot be read.
        """
        with ExitStack() as stack:
            task: Any = None

            def on_hashed() -> None:
                nonlocal task
                if task is None:
                    task = stack.enter_context(
                        self.progress.task("checking files", total=len(paths))
                    )
                task.advance()

            try:
                return self.hashes.many(paths, algorithm, on_hashed)
            except OSError as error:
                raise DataError(
                    "A file of the dataset cannot be read.",
                    where=error.filename,
                    got=error.strerror,
                ) from error


class Dataset(ABC):
    """A dataset by name. Opening one of its splits gives an :class:`ImageSource`.

    Attributes
    ----------
    takes_path : str or None
        What stands after the colon of ``"folder:PATH"``; ``None`` where nothing may.
    more_splits : tuple of str
        Splits that exist but are not meant for training and evaluation.
    selects_classes : bool
        Whether :meth:`open` heeds ``options.classes`` itself; for all others it is done after.
    """

    takes_path: str | None = None
    more_splits: tuple[str, ...] = ()
    selects_classes: bool = False

    @abstractmethod
    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """Return the splits for training and evaluation, the training split first."""

    @abstractmethod
    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """Open one split, known to be one of the dataset's."""


def unknown_split(name: str, split: str, known: Sequence[str]) -> UnknownNameError:
    """Build the error for a split that the dataset does not have."""
    return UnknownNameError(
        f"The dataset {name!r} has no split {split!r}.",
        expected=", ".join(known),
        next_step=did_you_mean(split, known).strip() or None,
    )
