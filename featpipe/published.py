"""Numbers that others have published, to stand beside ours as marked reference rows.

The facts are data: one JSON file per dataset in the folder ``published``. Nothing here is measured
by featpipe, and no test compares methods with it: the predictions behind the numbers are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar


@dataclass(frozen=True)
class Printed:
    """Per-class values as a source prints them.

    Attributes
    ----------
    label : str
        What the source calls them.
    metric : str
        What they are (``"precision"``), found by computing them from the confusion matrix.
    decimals : int
        Digits after the point.
    rounding : str
        ``"truncated"`` or ``"rounded"``.
    values : tuple of float
        One per class.
    """

    label: str
    metric: str
    decimals: int
    rounding: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class PublishedRow:
    """One published number with what is known about it.

    Attributes
    ----------
    dataset, method, title : str
        Dataset as in ``--dataset``, a stable key, and a name for a table.
    accuracy : float or None
        None where the source gives no number; ``note`` then says what it does say.
    source, protocol : str
        Where the number comes from and how it was obtained, as far as that is recorded.
    n_test : int or None
        Number of test images where it is known; only then can an interval be given.
    settings, reported : mapping
        Hyper-parameters, and other numbers that the source gives (loss, seconds …).
    classes : tuple of str
        Class names of the confusion matrix.
    confusion : tuple of tuple of int, or None
        Rows are true classes, columns predicted classes; the last column is "other" if ``other``.
    other : bool
    printed : Printed or None
        Per-class values as printed.
    note : str
    published : bool
        Always True: what marks the row in a table.
    """

    dataset: str
    method: str
    title: str
    accuracy: float | None
    source: str
    protocol: str
    n_test: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reported: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    other: bool = False
    printed: Printed | None = None
    note: str = ""
    published: ClassVar[bool] = True

    @property
    def n_correct(self) -> int | None:
        """Number of test images predicted right, where the confusion matrix tells it."""
        if self.confusion is None:
            return None
        return sum(row[i] for i, row in enumerate(self.confusion))


def published_datasets() -> list[str]:
    """Return the names of the datasets for which published numbers are known."""
    files = resources.files("featpipe").joinpath("published").iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the published numbers of a dataset; an empty list where none are known.

    Examples
    --------
    >>> [(row.accuracy, row.n_test) for row in published_rows("stl10")]
    [(0.8365, 8000), (0.2075, 8000), (0.9155, 8000)]
    """
    if dataset not in published_datasets():
        return []
    path = resources.files("featpipe").joinpath("published", f"{dataset}.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    return [_row(facts, name, entry) for name, entry in facts["methods"].items()]


def _row(facts: dict[str, Any], name: str, entry: dict[str, Any]) -> PublishedRow:
    confusion, printed = entry.get("confusion"), entry.get("printed")
    return PublishedRow(
        dataset=facts["dataset"],
        method=name,
        title=entry["title"],
        accuracy=entry["accuracy"],
        source=facts["source"],
        protocol=entry.get("protocol", facts["protocol"]),
        n_test=facts.get("n_test"),
        settings=entry["settings"],
        reported=entry.get("reported", {}),
        classes=tuple(facts.get("classes", ())),
        confusion=None if confusion is None else tuple(tuple(row) for row in confusion),
        other=entry.get("other", False),
        printed=None
        if printed is None
        else Printed(**{**printed, "values": tuple(printed["values"])}),
        note=entry.get("note", ""),
    )
