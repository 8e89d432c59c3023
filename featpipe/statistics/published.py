"""Numbers published by others, shown as marked reference rows.

They are data: one JSON file per dataset in the folder ``published``. None is measured by featpipe,
and no test compares methods with them, because the predictions behind them are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from featpipe.errors import UnknownNameError

_PUBLISHED = resources.files("featpipe.statistics") / "published"


@dataclass(frozen=True)
class PublishedRow:
    """One published number and what is known about it; the fields are those of the JSON files.

    ``printed`` holds per-class ``values`` as the source prints them: its ``label`` for them, their
    ``metric`` (found by computing them from the confusion matrix), ``decimals`` after the point,
    and ``rounding``, ``"truncated"`` or ``"rounded"``.
    """

    dataset: str
    method: str
    title: str
    accuracy: float | None  # None if the source gives no number: the note says what it does say
    source: str
    protocol: str
    settings: Mapping[str, Any]
    reported: Mapping[str, Any] = field(default_factory=dict)
    n_test: int | None = None  # None if unknown: then there is no interval
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] | None = None  # true classes × predicted ones
    other: bool = False  # whether the last column is "other"
    printed: Mapping[str, Any] | None = None
    note: str = ""

    @property
    def n_correct(self) -> int | None:
        """Number of correctly predicted test images, if the confusion matrix is known."""
        matrix = self.confusion
        return None if matrix is None else sum(row[i] for i, row in enumerate(matrix))


def published_datasets() -> list[str]:
    """Return the names of the datasets with published numbers."""
    return sorted(f.name[:-5] for f in _PUBLISHED.iterdir() if f.name.endswith(".json"))


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the published numbers of a dataset, an empty list if there are none."""
    if dataset not in published_datasets():
        return []
    shared = json.loads((_PUBLISHED / f"{dataset}.json").read_text(encoding="utf-8"))
    methods = shared.pop("methods")
    return [PublishedRow(method=name, **{**shared, **entry}) for name, entry in methods.items()]


def find_published(name: str) -> list[PublishedRow]:
    """Return the published numbers named ``DATASET`` or ``DATASET/METHOD``, at least one."""
    dataset, _, method = name.partition("/")
    rows = published_rows(dataset)
    found = [row for row in rows if method in ("", row.method)]
    if not found:
        known = [f"{dataset}/{row.method}" for row in rows] or published_datasets()
        raise UnknownNameError(f"There are no published numbers called {name!r}.", name, known)
    return found
