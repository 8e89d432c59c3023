"""Options of every step that trains and tests: which rows take part, and what leaks mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.fingerprint import of_file
from featpipe.steps import Step, option
from featpipe.workspace import explain_os_errors, user_path


class RowOptions(Step):
    """What is done about rows that should not be used as they are."""

    leaks: str = option(
        "warn",
        help="Images that are both in the training and in the test rows: warn, fail, or drop them "
        "from the training rows.",
        choices=("warn", "fail", "drop"),
    )
    drop: Path | None = option(
        None,
        help="CSV of images to leave out: those with the suggestion 'drop' (audit.csv), or all of "
        "a list without suggestions.",
    )
    groups: Path | None = option(
        None,
        help="CSV with the cluster (audit.csv) or the group of images: no split, fold or "
        "validation divides one.",
    )

    def row_lists(self) -> dict[str, Any]:
        """Return the options as they enter the identity: lists by their content."""
        lists = {"drop": self.drop, "groups": self.groups}
        read = {name: _digest(path) for name, path in lists.items() if path is not None}
        return {"leaks": "drop" if self.leaks == "drop" else "warn", **read}


def _digest(path: Path) -> str:
    with explain_os_errors(path):
        return of_file(user_path(path))
