"""The comparison of methods, and what is measured of each: sentence, tables, matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from featpipe.report.data import Group, Method, ReportData
from featpipe.report.figures import (
    accuracy_chart,
    cost_chart,
    method_curves,
    search_charts,
    training_charts,
)
from featpipe.report.sections import (
    SECTIONS,
    Content,
    Section,
    count,
    p_value,
    percent,
    points,
    render,
)
from featpipe.statistics.comparison import LIKE_BEST

MAX_CELLS_WIDE = 26  # a confusion matrix with more classes is drawn, not written as a table
_HEAT_LEVELS = 10
_NAMED = 3  # more names than these would hide the verdict


class Comparison(Section):
    """The first screen: which of the methods that were tested on the same rows is best."""

    def __init__(self, number: int, group: Group) -> None:
        self.name = f"tests-{number}"
        self.title = group.label or "Comparison"
        self.group = group

    def content(self, data: ReportData) -> Content:
        """Return the conclusion, the table, accuracy and cost, and all paired tests."""
        group, published = self.group, data.published(self.group)
        html = render(
            "comparison.html.j2",
            group=group,
            conclusion=conclude(group),
            published=published,
            charts=[accuracy_chart(group, published), cost_chart(group)],
            pairs=[turned(pair) if pair["difference"] < 0 else pair for pair in group.pairs],
            titles={method.row["name"]: method.title for method in group.methods},
        )
        return Content(html)


@SECTIONS.register
class Methods(Section):
    """What is measured of each method."""

    name = "methods"
    title = "Methods"

    def content(self, data: ReportData) -> Content:
        """Return a panel for each method, with its matrix, classes, curves and searches."""
        entries: list[tuple[str, str]] = []
        panels = {}
        for group in data.groups:
            entries += [(group.label, "")] if group.label else []
            entries += [(method.title, method.anchor) for method in group.methods]
            for method in group.methods:
                charts = [*method_curves(method), *search_charts(method), *training_charts(method)]
                panels[method] = {"confusion": confusion(method), "charts": charts}
        html = render("methods.html.j2", groups=data.groups, panels=panels)
        return Content(html, tables=frames(data), entries=entries)


# -- comparison ----------------------------------------------------------------------------------


def conclude(group: Group) -> str:
    """Say which method is best on these test rows, by how much, and with what certainty.

    A method is said to be better only where the exact paired test, corrected by Holm for all
    pairs of the page, distinguishes the two.
    """
    best, others = group.methods[0], group.methods[1:]
    rows = f"the {count(best.row['n_test'])} test images of {group.dataset}"
    accuracy = (
        f"{percent(best.row['accuracy'])}\u00a0% (95\u00a0% interval "
        f"{percent(best.row['low'])} to {percent(best.row['high'])})"
    )
    if not others:
        return (
            f"{best.title} classifies {accuracy} of {rows} correctly; "
            "no other method was tested on them, so nothing is said about better or worse."
        )
    like = [method for method in others if method.row["verdict"] == LIKE_BEST]
    worse = [method for method in others if method not in like]
    start = f"{best.title} has the highest accuracy on {rows}, {accuracy}"
    if like:
        text = (
            f"{start}, but {_names(like)} {'is' if len(like) == 1 else 'are'} not distinguishable "
            "from it (exact paired tests, Holm-adjusted p ≥ 0.05)"
        )
        return f"{text}; it is distinguishable from {_names(worse)}." if worse else f"{text}."
    tests = {method.title: pair_of(group, best, method) for method in worse}
    nearest = min(tests, key=lambda title: tests[title]["difference"])
    pair, p = tests[nearest], p_value(max(test["p_adjusted"] for test in tests.values()))
    only = len(worse) == 1
    each = "" if only else f"each of the other {len(worse)} methods, of which the nearest, "
    return (
        f"{start}, and is distinguishable from {each}{nearest}, {'which ' * only}is "
        f"{percent(pair['difference'])} points behind "
        f"(95\u00a0% interval {points(pair['ci_low'])} to {points(pair['ci_high'])}; "
        f"exact paired test{'s' * (not only)}, Holm-adjusted "
        f"p {p if p.startswith('<') else f'≤ {p}'})."
    )


def _names(methods: list[Method]) -> str:
    titles = [method.title for method in methods]
    if len(titles) > _NAMED:
        return f"{len(titles)} other methods"
    return " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))


def pair_of(group: Group, a: Method, b: Method) -> dict[str, Any]:
    """Return the paired test of two methods, turned so that a comes first."""
    names = [a.row["name"], b.row["name"]]
    pair = next(pair for pair in group.pairs if {pair["a"], pair["b"]} == set(names))
    return pair if pair["a"] == names[0] else turned(pair)


def turned(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a paired test with its two methods exchanged."""
    flipped = {"a": "b", "b": "a", "a_better": "b_better", "b_better": "a_better"}
    negated = {"difference": "difference", "ci_low": "ci_high", "ci_high": "ci_low"}
    return {
        **pair,
        **{name: pair[other] for name, other in flipped.items()},
        **{name: -pair[other] for name, other in negated.items()},
    }


# -- one method ----------------------------------------------------------------------------------


def confusion(method: Method) -> dict[str, Any]:
    """Return a confusion matrix for the page: ``classes``, ``columns`` and ``rows`` of cells.

    A cell is count, share, heat level 0 to 10. Where the matrix is too wide, ``chart`` holds its
    filled cells instead.
    """
    matrix = np.array(method.metrics["confusion"])
    named: dict[str, Any] = {"classes": method.classes, "columns": method.columns}
    if len(method.columns) > MAX_CELLS_WIDE:
        i, j = np.nonzero(matrix)
        cells = np.column_stack([i, j, matrix[i, j]]).tolist()
        return {**named, "rows": [], "chart": {"kind": "matrix", **named, "cells": cells}}
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # Few errors are what one looks for: the square root lifts them off the paper.
    heat = np.ceil(np.sqrt(share) * _HEAT_LEVELS)
    return {**named, "rows": np.stack([matrix, share, heat], axis=2), "chart": None}


# -- tables of the page --------------------------------------------------------------------------


def frames(data: ReportData) -> dict[str, pd.DataFrame]:
    """Return what is measured of all methods as tables, numbers unrounded."""
    return {
        "comparison": data.comparison.table(),
        "pairs": pd.DataFrame(data.comparison.pairs),
        "per-class": data.frame(lambda method: method.metrics["per_class"]),
        "confusion": data.frame(
            lambda method: [
                {"true": true, "answer": answer, "images": count}
                for true, counts in zip(method.classes, method.metrics["confusion"], strict=True)
                for answer, count in zip(method.columns, counts, strict=True)
                if count
            ]
        ),
        "models": data.frame(
            lambda method: [
                {
                    "model": record["name"],
                    **{key: record.get(key) for key in ("n_train", "n_test", "train_per_class")},
                    **{f"chosen_{key}": value for key, value in record.get("chosen", {}).items()},
                    "converged": record.get("converged"),
                    **{
                        key: value
                        for key, value in record["metrics"].items()
                        if value is None or isinstance(value, int | float)
                    },
                }
                for record in method.result.splits
            ]
        ),
        "search": data.frame(
            lambda method: [
                {"model": split["name"], **entry}
                for split in method.result.splits
                for entry in split.get("search") or []
            ]
        ),
        "history": data.frame(lambda method: method.result.extra.get("history") or []),
    }
