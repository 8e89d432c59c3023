"""Names of methods that tell each from the others beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featpipe.evaluation.result import Result

_TELL_NOTHING = {"title", "train", "test", "force", "save_model", "dataset", "model", "data"}


def unique_titles(results: Sequence[Result], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return titles made different by what differs: features, protocol, a setting, else the name.

    Parameters
    ----------
    results : sequence of Result
    rows : sequence of dict
        Their rows of the comparison, in the same order.
    """
    titles = [str(row["method"]) for row in rows]
    tellers: list[Callable[[list[int]], list[str]]] = [
        lambda members: [str(rows[i]["features"] or "") for i in members],
        lambda members: [str(rows[i]["protocol"] or "") for i in members],
        lambda members: _settings([results[i].settings for i in members]),
        lambda members: [str(rows[i]["name"]) for i in members],
    ]
    for teller in tellers:
        for title in sorted({t for t in titles if titles.count(t) > 1}):
            members = [i for i, other in enumerate(titles) if other == title]
            told = teller(members)
            if len(set(told)) > 1:
                for i, more in zip(members, told, strict=True):
                    titles[i] = f"{title}, {more}" if more else title
    return titles


def _settings(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the first setting in which the members differ, with its value."""
    for key in settings[0]:
        values = [each.get(key) for each in settings]
        if key not in _TELL_NOTHING and len({str(value) for value in values}) > 1:
            return ["" if value is None else f"{key} {value}" for value in values]
    return [""] * len(settings)
