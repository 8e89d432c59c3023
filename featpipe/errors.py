"""What can go wrong, explained to a person.

Every error says what happened and, where it helps, the place, what was expected, what came
instead and what to do next. The command line prints exactly that text and exits with
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
    ├── LabelMapError
    ├── FitError
    ├── ResultError
    └── MissingExtraError
"""

from __future__ import annotations


class FeatpipeError(Exception):
    """Base of all errors that are explained to the user.

    Parameters
    ----------
    what : str
        One sentence: what went wrong.
    where : object, optional
        File, line, option or row concerned.
    expected, got : object, optional
        What would have been right, and what came.
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
        return "\n".join([self.what, *(f"  {key}: {value}" for key, value in self.details.items())])


class UsageError(FeatpipeError):
    """The request cannot be right, whatever is on the disk."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry holds; the message gives the nearest one."""


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


class LabelMapError(FeatpipeError):
    """A label map that is not complete and unambiguous."""


class FitError(FeatpipeError):
    """Rows that a classifier cannot honestly be trained or tested on."""


class ResultError(FeatpipeError):
    """A result file that is missing or damaged."""


class MissingExtraError(FeatpipeError):
    """An optional dependency is not installed.

    Parameters
    ----------
    package : str
        Name of the missing package.
    extra : str
        Name of featpipe's extra that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed.",
            next_step=f'pip install "featpipe[{extra}]"',
        )
        self.args = (package, extra)  # what unpickling, on the way back from a worker, calls
