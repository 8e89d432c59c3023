"""Errors, written for the person who reads them.

Every error says what happened and, where it helps, the place, the expected and the actual value
and what to do next. The command line prints exactly that text and exits with
``exit_code``; a traceback means a defect of featpipe itself.

::

    FeatpipeError
    ├── UsageError              exit code 2; all others 1
    │   ├── UnknownNameError
    │   └── RecipeError
    ├── DataError
    │   ├── DownloadError
    │   └── ImageError
    ├── WeightsError
    ├── StoreError
    │   └── StoreInUseError
    ├── ClusterError
    ├── LabelMapError
    ├── FitError
    ├── ResultError
    └── MissingExtraError
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return ``"did you mean 'x'?"`` for the nearest known name, if one is near."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else None


def nearest_path(path: Path, *, folder: bool = False) -> str | None:
    """Return ``"did you mean 'x'?"`` for the existing path (``folder``: folder) nearest to one."""
    near = _nearest(path, folder)
    return f"did you mean {str(near)!r}?" if near else None


def _nearest(path: Path, folder: bool) -> Path | None:
    """Return a path with each name that does not exist replaced by the nearest one beside it."""
    parent = path.parent if path.parent.exists() else _nearest(path.parent, folder=True)
    if parent is None:
        return None
    names = []
    with suppress(OSError):
        names = [entry.name for entry in os.scandir(parent) if not folder or entry.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return parent / near[0] if near else None


class FeatpipeError(Exception):
    """Base of all errors that users are meant to read.

    Parameters
    ----------
    what : str
        One sentence: what went wrong.
    where : object, optional
        File, line, option or row concerned.
    expected, got : object, optional
        The right and the actual value.
    next_step : str, optional
        What to do now, as a command where possible.

    Examples
    --------
    >>> print(FeatpipeError("The store is unfinished.", next_step="featpipe extract …"))
    The store is unfinished.
      next: featpipe extract …
    """

    exit_code = 1
    option = ""  # name of the step's option whose value is wrong, where one is

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        details = {"where": where, "expected": expected, "got": got, "next": next_step}
        self.details = {key: str(value) for key, value in details.items() if value is not None}

    def __str__(self) -> str:
        lines = [self.what, *(f"  {key}: {value}" for key, value in self.details.items())]
        # A name out of a damaged file may hold half a character, which no stream can take.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class UsageError(FeatpipeError):
    """The request itself is wrong, independent of the files on disk."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the known ones.

    Unless given, ``expected`` lists the known names and ``next_step`` suggests the nearest one.
    """

    def __init__(
        self, what: str, name: str = "", known: Iterable[str] = (), **details: Any
    ) -> None:
        names = list(known)
        hints = {"expected": ", ".join(names) or None, "next_step": did_you_mean(name, names)}
        super().__init__(what, **(hints | details))


class RecipeError(UsageError):
    """A recipe that cannot be read or planned."""


class DataError(FeatpipeError):
    """A dataset that is missing, damaged or of an unexpected layout."""


class DownloadError(DataError):
    """A file could not be fetched: the network or the server failed."""


class ImageError(DataError):
    """One image that cannot be decoded."""


class WeightsError(FeatpipeError):
    """Weights that are missing, damaged or of another architecture."""


class StoreError(FeatpipeError):
    """A feature store that is missing, unfinished, damaged or of another schema."""


class StoreInUseError(StoreError):
    """A feature store that another process is writing."""


class ClusterError(FeatpipeError):
    """A cluster that cannot be reached, or does not have what the work needs."""


class LabelMapError(FeatpipeError):
    """A label map that is not complete and unambiguous."""


class FitError(FeatpipeError):
    """Rows that a classifier cannot validly be trained or tested on."""


class ResultError(FeatpipeError):
    """A result file that is missing or damaged."""


class MissingExtraError(FeatpipeError):
    """An optional ``package`` is not installed, which the ``extra`` of featpipe installs."""

    def __init__(self, package: str, extra: str) -> None:
        what = f"This needs the package {package!r}, which is not installed."
        super().__init__(what, next_step=f'pip install "featpipe[{extra}]"')
        self.args = (package, extra)  # for unpickling what a worker process raised
