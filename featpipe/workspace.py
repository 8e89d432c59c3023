"""Where things are stored: one folder with data, features, results and reports."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from featpipe.errors import FeatpipeError, UsageError

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two writers of one file apart
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.tmp$")  # names of atomic_write's files
_MARK_BYTES = 1 << 22  # how much of a file is searched for the mark of its writer
_FORMULA = r"[=+\-@\t\r]"  # what spreadsheets take for the start of a formula
IMAGE_LAYER = "image"  # layer of a store that holds prepared images, for training a whole network


class Workspace:
    """The folder ``root`` that holds everything a project produces."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"  # what is kept between runs, also by trackers
        self.raw = self.data / "raw"  # datasets as they were downloaded
        self.features = self.data / "features"  # feature stores (HDF5)
        # Activations at a frozen boundary (HDF5): what heads are trained on, not features.
        self.activations = self.data / "activations"
        self.results = self.data / "results"  # results (JSON) with their predictions (npz)
        self.models = self.data / "models"  # classifiers (npz, skops) and heads (safetensors)
        self.audits = self.data / "audits"  # what is odd about datasets (JSON, CSV)
        self.reports = root / "reports"  # HTML and CSV
        self.hashes = self.data / "hashes.sqlite"  # remembered content hashes of input files

    @classmethod
    def find(cls, root: str | os.PathLike[str] | None = None) -> Workspace:
        """Return the workspace at ``root``, or ``$FEATPIPE_WORKSPACE``, or the current folder."""
        return cls(user_path(root or os.environ.get("FEATPIPE_WORKSPACE") or "."))


def store_files(folder: Path, pattern: str = "*.h5") -> list[Path]:
    """Return the files of feature stores below a folder, sorted; those of their shards are not."""
    return sorted(path for path in folder.rglob(pattern) if path.parent.suffix != ".shards")


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as the user wrote it, ``~`` and ``~name`` expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        hint = "write the path in full, or ./~… for a name that begins with ~"
        what = f"There is no home folder for {str(path)!r}."
        raise UsageError(what, next_step=hint) from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends without an error.

    The data is on disk (fsync) before the name changes, so a kill at any moment leaves either the
    old file or the new one, never a torn one. Leftovers of earlier kills in the folder are removed.
    ``FeatpipeError`` if the disk is full or the place cannot be written to.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary, claim = _claim(path)
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            claim.close()
            temporary.unlink(missing_ok=True)


def _claim(path: Path) -> tuple[Path, IO[bytes]]:
    """Make a temporary file and lock it: unlike this one, leftovers of a kill have no lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
        claim = temporary.open("xb")  # permissions follow the umask: results are to be shared
        if fcntl is None:  # Windows renames no open file
            claim.close()
        try:
            lock(claim)
        except BlockingIOError:  # another process is removing it as a leftover
            temporary.unlink(missing_ok=True)
        except OSError:  # some network file systems have no locks
            return temporary, claim
        if temporary.exists():
            return temporary, claim
        claim.close()


def leftovers(folder: Path) -> list[Path]:
    """Return temporary files in a folder: of writers that were killed, or that still write."""
    found = [path for path in sorted(folder.glob(".*.tmp")) if _TEMPORARY.search(path.name)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers in a folder."""
    for path in leftovers(folder) if fcntl is not None else ():
        with suppress(OSError), path.open("rb") as file:
            lock(file)
            path.unlink()


def is_locked(path: Path) -> bool:
    """Return whether a process is writing a file, or that cannot be known."""
    if not path.is_file():  # a pipe would wait for a writer
        return True
    try:
        with path.open("rb") as file:
            lock(file)
    except OSError:
        return True
    return fcntl is None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into such a block: it changes several files of a folder."""
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse_foreign(path: Path, mark: bytes, *, force: bool) -> None:
    """Refuse to replace a folder, or a file that featpipe did not write, unless ``force``.

    ``mark`` is what such a file of featpipe has near its beginning or its end.
    """
    if path.is_dir():
        raise UsageError("This is a folder, not a file.", where=path, next_step="name a file in it")
    if force or not os.path.lexists(path):
        return
    content = b""
    if path.is_file():
        with explain_os_errors(path), path.open("rb") as stream:
            content = stream.read(_MARK_BYTES)
            stream.seek(max(stream.tell(), stream.seek(0, os.SEEK_END) - _MARK_BYTES))
            content += stream.read()
    if mark not in content:
        what = "A file that featpipe did not write would be replaced."
        hint = "name another file, or add --force to replace it"
        raise UsageError(what, where=path, next_step=hint)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the file and what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # as torch raises it
        if not isinstance(reason, OSError):
            raise
        hint = "name a place that can be written to, such as another --workspace"
        if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "free some space (see featpipe clean), then run the same command again"
        raise FeatpipeError(f"{reason.strerror or reason}.", where=path, next_step=hint) from error


def lock(file: IO[Any]) -> None:
    """Lock an open file until it is closed; BlockingIOError if another process has locked it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def neutralise_cell(value: Any) -> Any:
    """Return a text as a cell that no spreadsheet takes for a formula, other values unchanged.

    Examples
    --------
    >>> neutralise_cell("=1+1"), neutralise_cell("cat"), restore_cell(neutralise_cell("'=1"))
    ("'=1+1", 'cat', "'=1")
    """
    formula = isinstance(value, str) and re.match(f"'*{_FORMULA}", value)
    return f"'{value}" if formula else value


def restore_cell(text: str) -> str:
    """Return the text of a cell that :func:`neutralise_cell` gave."""
    return text[1:] if re.match(f"'+{_FORMULA}", text) else text


def neutralised(table: Any) -> Any:
    """Return a pandas table with its texts and headers neutralised; numbers stay as they are."""
    safe = table.rename(columns=neutralise_cell)
    for name in safe.columns:
        if safe[name].dtype.kind not in "biufc":
            safe[name] = mapped(safe[name], neutralise_cell)
    return safe


def mapped(column: Any, change: Callable[[str], str]) -> Any:
    """Return a pandas column with its texts changed; equal texts are changed only once."""
    known = cache(change)
    return column.map(lambda value: known(value) if isinstance(value, str) else value)
