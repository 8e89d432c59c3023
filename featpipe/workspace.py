"""Where things are stored: one folder with data, features, results and reports."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from featpipe.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two writers of one file apart
    fcntl = None  # type: ignore[assignment]

_FORMULA = r"[=+\-@\t\r]"  # what spreadsheets take for the beginning of a formula
IMAGE_LAYER = "image"  # layer of a store that holds prepared images, for training a whole network


@dataclass(frozen=True)
class Workspace:
    """The folder that holds everything a project produces."""

    root: Path

    @classmethod
    def find(cls, root: str | os.PathLike[str] | None = None) -> Workspace:
        """Return the workspace at ``root``, or ``$FEATPIPE_WORKSPACE``, or the current folder."""
        return cls(user_path(root or os.environ.get("FEATPIPE_WORKSPACE") or "."))

    @property
    def data(self) -> Path:
        """What is kept between runs; below it what trackers keep."""
        return self.root / "data"

    @property
    def raw(self) -> Path:
        """Datasets as they were downloaded."""
        return self.data / "raw"

    @property
    def features(self) -> Path:
        """Feature stores (HDF5)."""
        return self.data / "features"

    @property
    def activations(self) -> Path:
        """Activations at a frozen boundary (HDF5): what heads are trained on, not features."""
        return self.data / "activations"

    @property
    def results(self) -> Path:
        """Results (JSON) with their predictions (npz)."""
        return self.data / "results"

    @property
    def models(self) -> Path:
        """Trained classifiers (skops) and heads (safetensors)."""
        return self.data / "models"

    @property
    def reports(self) -> Path:
        """Reports (HTML and CSV)."""
        return self.root / "reports"

    @property
    def hashes(self) -> Path:
        """Remembered content hashes of input files."""
        return self.data / "hashes.sqlite"


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as the user wrote it, ``~`` and ``~name`` expanded.

    Raises
    ------
    UsageError
        If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"There is no home folder for {str(path)!r}.",
            next_step="write the path in full, or ./~… for a name that begins with ~",
        ) from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends well.

    The data is on the disk (fsync) before the name changes, so a kill at any moment leaves
    either the old file or the new one, never a torn one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(exist_ok=False)  # permissions follow the umask: results are to be shared
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO[Any]) -> None:
    """Let no other process lock an open file until it is closed.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def neutralise_cell(text: str) -> str:
    """Return a text as a cell of a table that no spreadsheet takes for a formula.

    Examples
    --------
    >>> neutralise_cell("=1+1"), neutralise_cell("cat"), restore_cell(neutralise_cell("'=1"))
    ("'=1+1", 'cat', "'=1")
    """
    return f"'{text}" if re.match(f"'*{_FORMULA}", text) else text


def restore_cell(text: str) -> str:
    """Return the text of a cell that :func:`neutralise_cell` gave."""
    return text[1:] if re.match(f"'+{_FORMULA}", text) else text
