"""What can go wrong, said to a person.

Every error names what happened and, where it helps, the place, what was expected, what came
instead and what to do next. The command line prints exactly that text and exits with
``exit_code``; a traceback means a defect of featpipe itself.

    FeatpipeError                 exit code 1
    ├── UsageError                exit code 2: the request itself cannot be right
    │   ├── UnknownNameError      a name no registry holds (says the nearest one)
    │   └── RecipeError           a recipe that cannot be read or planned
    ├── DataError                 a dataset that is missing, damaged or of another layout
    │   ├── DownloadError         the network or the server did not deliver
    │   └── ImageError            one image that cannot be decoded
    ├── WeightsError              weights missing, damaged or of another architecture
    ├── StoreError                a feature store that is missing, unfinished or damaged
    ├── LabelMapError             a label map that is not complete and unambiguous
    ├── FitError                  rows a classifier cannot honestly be trained or tested on
    ├── ResultError               a result file that is missing or damaged
    └── MissingExtraError         an optional dependency is not installed
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
        self.what = what
        self.details = {
            label: str(value)
            for label, value in (
                ("where", where),
                ("expected", expected),
                ("got", got),
                ("next", next_step),
            )
            if value is not None
        }
        super().__init__(what)

    def __str__(self) -> str:
        return "\n".join(
            [self.what, *(f"  {label}: {value}" for label, value in self.details.items())]
        )

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword-only details must survive the way back from a worker process.
        return _rebuild, (type(self), self.what, self.details)


def _rebuild(kind: type[FeatpipeError], what: str, details: dict[str, str]) -> FeatpipeError:
    error = kind.__new__(kind)
    FeatpipeError.__init__(error, what)
    error.details = details
    return error


class UsageError(FeatpipeError):
    """The request cannot be right, whatever lies on the disk."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry holds."""


class RecipeError(UsageError):
    """A recipe that cannot be read or planned."""


class DataError(FeatpipeError):
    """A dataset that is missing, damaged or laid out otherwise than expected."""


class DownloadError(DataError):
    """A file could not be fetched."""


class ImageError(DataError):
    """One image that cannot be decoded."""


class WeightsError(FeatpipeError):
    """Weights that are missing, damaged or belong to another architecture."""


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
