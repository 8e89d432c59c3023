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
    percent,
    points,
    render,
)
from featpipe.statistics.comparison import (
    LEADING,
    QUESTIONS,
    TIED,
    contamination_notes,
    equivalent_within,
    scope_notes,
)
from featpipe.statistics.verdicts import EQUIVALENT, UNDECIDED, WORSE

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
            conclusion=conclude(group, data.comparison.margin),
            published=published,
            charts=[accuracy_chart(group, published), cost_chart(group)],
            notes=[
                *scope_notes(group.pairs),
                *contamination_notes(method.result for method in group.methods),
            ],
            questions=QUESTIONS,
            margin=data.comparison.margin,
            titles={method.row["name"]: method.title for method in group.methods},
            looks=dict.fromkeys(LEADING, "best") | dict.fromkeys((EQUIVALENT, UNDECIDED), "like"),
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


def conclude(group: Group, margin: float) -> str:
    """Say which method is best on these test rows, by how much, and with what certainty.

    Only what a paired test decided is claimed, corrected by Holm for all pairs of the page: of the
    methods, where models were trained on several training sets, else of the trained models.
    """
    first, others = group.methods[0], group.methods[1:]
    rows = f"the {count(first.row['n_test'])} test images of {group.dataset}"
    accuracy = (
        f"{percent(first.row['accuracy'])}\u00a0% (95\u00a0% interval "
        f"{percent(first.row['low'])} to {percent(first.row['high'])})"
    )
    if not others:
        return (
            f"{first.title} classifies {accuracy} of {rows} correctly; "
            "no other method was tested on them, so nothing is said about better or worse."
        )
    tied = [method for method in group.methods if method.row["verdict"] == TIED]
    start = (
        f"{_names(tied)} tie for the highest accuracy on {rows}, {accuracy}."
        if tied
        else f"{first.title} has the highest accuracy on {rows}, {accuracy}."
    )
    sentences = [start]
    for question, subject in QUESTIONS.items():
        if claims := _claims(group, question, margin):
            sentences.append(f"Of {subject}: {'; '.join(claims)}.")
    return " ".join(sentences)


def _claims(group: Group, question: str, margin: float) -> list[str]:
    """Say how the first method compares with the others, as far as a question has answers."""
    first = group.methods[0]
    by_verdict: dict[str, list[Method]] = {}
    for method in group.methods[1:]:
        by_verdict.setdefault(method.row[f"verdict_{question}"], []).append(method)
    tests = {pair["b"]: pair[question] for pair in group.pairs if pair["a"] == first.row["name"]}
    claims = []
    if worse := by_verdict.get(WORSE):
        nearest = min((tests[one.row["name"]] for one in worse), key=lambda t: t["difference"])
        among = ", the nearest by" if len(worse) > 1 else " by"
        claims.append(
            f"{first.title} is better than {_names(worse)}{among} "
            f"{percent(nearest['difference'])} points "
            f"({100 * nearest['confidence']:.3g}\u00a0% interval "
            f"{points(nearest['low'])} to {points(nearest['high'])})"
        )
    if like := by_verdict.get(EQUIVALENT):
        claims.append(f"{_names(like)} {_is(like)} {equivalent_within(margin)}")
    if open_ := by_verdict.get(UNDECIDED):
        needed = [tests[one.row["name"]]["rows_needed"] for one in open_]
        if enough := max(filter(None, needed), default=None):
            some = "some of them" if None in needed else "that"
            would = f"about {count(enough)} test images would decide {some}"
        else:
            would = "more test images alone would not decide that"
        claims.append(f"{_names(open_)} {_is(open_)} undecided ({would})")
    return claims


def _is(methods: list[Method]) -> str:
    return "is" if len(methods) == 1 else "are"


def _names(methods: list[Method]) -> str:
    titles = [method.title for method in methods]
    if len(titles) > _NAMED:
        return f"{len(titles)} other methods"
    return " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))


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
        "pairs": data.comparison.pair_table(),
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
        "disputed": data.frame(
            lambda method: [
                {**row, "source_classes": ", ".join(row["source_classes"])}
                for row in method.result.extra.get("label_map", {}).get("disputed", [])
            ]
        ),
    }
