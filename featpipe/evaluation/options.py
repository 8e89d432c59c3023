"""Options of every step that trains or tests: which rows take part, and what leaks mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.errors import DataError, nearest_path
from featpipe.fingerprint import of_file
from featpipe.steps import Step, option
from featpipe.workspace import explain_os_errors, user_path

_ROWS = "Images"


class RowOptions(Step):
    """Lists of rows that should not be used as they are."""

    drop: Path | None = option(
        None,
        group=_ROWS,
        help="CSV of images to leave out: those with the suggestion 'drop' (featpipe audit), or "
        "all of a list without suggestions.",
    )
    groups: Path | None = option(
        None,
        group=_ROWS,
        help="CSV with the cluster (of featpipe audit) or the group of images: no fold, holdout or "
        "validation divides one.",
    )

    def row_lists(self) -> dict[str, Any]:
        """Return the options for the identity, lists by their content."""
        read = {}
        for name, named in (("drop", self.drop), ("groups", self.groups)):
            if named is None:
                continue
            if not (path := user_path(named)).is_file():
                advice = nearest_path(path) or "featpipe audit makes one"
                raise DataError("There is no such list of images.", where=path, next_step=advice)
            with explain_os_errors(path):
                read[name] = of_file(path)
        return read


class TrainingRowOptions(RowOptions):
    """What is done about test images in the training rows, too."""

    leaks: str = option(
        "warn",
        group=_ROWS,
        help="Images that are both in the training and in the test rows: warn, fail, or drop them "
        "from the training rows.",
        choices=("warn", "fail", "drop"),
    )

    def row_lists(self) -> dict[str, Any]:
        """Add whether leaks are dropped, the only choice that changes a number."""
        return {**super().row_lists(), "leaks": "drop" if self.leaks == "drop" else "warn"}
