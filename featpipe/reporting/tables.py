"""The comparison of methods, and what is measured of each: sentence, tables, matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import FeatpipeError
from featpipe.reporting.answers import alarms, answers, conclusion, names_of, warnings
from featpipe.reporting.data import Group, Method, ReportData, by_fact, dataset_name
from featpipe.reporting.figures import (
    accuracy_chart,
    cost_chart,
    difference_chart,
    method_curves,
    search_charts,
    training_charts,
)
from featpipe.reporting.images import Images
from featpipe.reporting.sections import SECTIONS, Content, Section, count, duration, render
from featpipe.reporting.suspects import who_is_best
from featpipe.statistics.comparison import LEADING, QUESTIONS, scope_notes
from featpipe.statistics.verdicts import EQUIVALENT, UNDECIDED

MAX_CELLS_WIDE = 26  # a confusion matrix with more classes is drawn, not written as a table
_HEAT_LEVELS = 10
_SAMPLES = 12  # images on the card of a dataset
# What makes up the total, as a page calls it.
_TIMES = {"extract": "extraction", "search": "search", "fit": "fit", "predict": "prediction"}
_LEAST_TIME = 0.005  # share of the total, below which a part is not worth naming


class Comparison(Section):
    """The first screen: which of the methods that were tested on the same rows is best."""

    def __init__(self, number: int, group: Group) -> None:
        self.name = f"tests-{number}"
        self.title = group.label or "At a glance"
        self.group, self.first = group, number == 1

    def content(self, data: ReportData) -> Content:
        """Return the answers, the dataset, the table, accuracy and cost, and all paired tests."""
        group, images, published = self.group, data.images(self.group), data.published(self.group)
        margin, suspects = data.comparison.margin, data.suspects(group)
        asked = [q for q in QUESTIONS if any(pair[q] for pair in group.pairs)]
        tests = [test for pair in group.pairs for q in asked if (test := pair[q])]
        compared = [*difference_chart(group, margin), *cost_chart(group)]
        html = render(
            "comparison.html.j2",
            group=group,
            conclusion=conclusion(group, margin),
            answers=answers(group),
            alarms=alarms(group, suspects),
            warnings=[*warnings(group, images), *(data.comparison.apart if self.first else ())],
            suspected=suspects.accuracies,
            who_is_best=who_is_best,
            matrix=matrix(group),
            parts_of_time=parts_of_time,
            card=dataset_card(group, images, data),
            published=published,
            charts=[accuracy_chart(group, published), *compared],
            notes=scope_notes(group.pairs),
            questions=QUESTIONS,
            asked=asked,
            ways=list(dict.fromkeys(test["method"] for test in tests)),
            margin=margin,
            titles={method.row["name"]: method.title for method in group.methods},
            looks=dict.fromkeys(LEADING, "best") | dict.fromkeys((EQUIVALENT, UNDECIDED), "like"),
        )
        return Content(html)


def matrix(group: Group) -> dict[str, Any] | None:
    """Return the methods as backbone × probe, where there are several of both; else None.

    Where several methods share a cell, it shows the best of them.
    """
    best: dict[tuple[str, str], Method] = {}
    for method in group.methods:
        best.setdefault((method.row["features"] or "–", method.row["method"]), method)
    backbones, probes = (list(dict.fromkeys(names)) for names in zip(*best, strict=True))
    if len(backbones) < 2 or len(probes) < 2:
        return None
    rows = [[best.get((backbone, probe)) for probe in probes] for backbone in backbones]
    return {"probes": probes, "rows": list(zip(backbones, rows, strict=True))}


def dataset_card(group: Group, images: Images, data: ReportData) -> dict[str, Any]:
    """Return what the methods of a group were trained and tested on, with a sample image a class.

    ``left_out`` has what extraction could not read, as far as its stores are still there.
    """
    records = {r["fingerprint"]: (m, r) for m in group.methods for r in m.result.stores}
    left_out: dict[str, str] = {}
    for method, record in records.values():
        with suppress(FeatpipeError):  # a store that is gone cannot say what it left out
            store = data.store(method, record)
            for row, why in store.skipped.items():  # what the decoder said in brackets is left out
                left_out[store.ids[row]] = why[:1].lower() + why[1:].partition(" (")[0]
    known = [record["manifest"]["dataset"] for _, record in records.values()]
    asked = [r["run"].get("source", {}).get("limit") for _, r in records.values()]
    several = len({dataset["name"] for dataset in known}) > 1
    splits = {}
    for one in known:
        named = [dataset_name(one["name"])] * several + [one["split"]] * (one["split"] != "all")
        splits[" ".join(named)] = one["images"]
    tested = np.bincount(group.true, minlength=len(group.classes))
    true = pd.Series(group.true).sort_values(kind="stable")
    each = max(1, _SAMPLES // true.nunique())  # of a class
    rows = true.groupby(true).head(each).index[:_SAMPLES]
    samples = [(group.classes[group.true[r]], images.thumbnail(str(group.ids[r]))) for r in rows]
    return {
        "splits": splits,
        # How many images of a split were asked for, if that is all it has.
        "limits": sorted({n for n, one in zip(asked, known, strict=True) if n == one["images"]}),
        "per_class": sorted({tested.min(), tested.max()}),
        "trained": fact_in_words(group, training_images),
        "protocols": fact_in_words(group, protocol_in_words),
        "why": list(dict.fromkeys(filter(None, (m.protocol_note for m in group.methods)))),
        "left_out": left_out,
        "samples": [(name, thumbnail) for name, thumbnail in samples if thumbnail],
    }


def fact_in_words(group: Group, fact: Callable[[Method], str]) -> str:
    """Return a fact about the methods once, with their names where they differ in it."""
    facts = by_fact(group.methods, fact)
    if len(facts) == 1:
        return next(iter(facts))
    return "; ".join(f"{text} ({names_of(methods)})" for text, methods in facts.items())


def training_images(method: Method) -> str:
    """Say how many images a method was trained on."""
    sizes = sorted({split["n_train"] or 0 for split in method.result.splits})
    if not any(sizes):
        return "no image"
    several = " for each model" * (len(method.result.splits) > 1)
    return f"{' to '.join(map(count, sorted({sizes[0], sizes[-1]})))} images{several}"


def protocol_in_words(method: Method) -> str:
    """Say what the protocol of a method does, with its name."""
    protocol = method.row["protocol"]
    kind, _, number = protocol.partition(":")
    said = {
        "split": "the dataset's own test images",
        "folds": "the dataset's own folds",
        "kfold": f"{number}-fold cross-validation",
        "holdout": f"a random {float(number or 0):.0%} held out".replace("%", "\u00a0%"),
    }
    return f"{said[kind]} ({protocol})" if kind in said else protocol


def parts_of_time(row: dict[str, Any]) -> list[str]:
    """Say what the time of a method went into, the parts that matter."""
    spent = {word: row.get(f"{name}_seconds") or 0.0 for name, word in _TIMES.items()}
    least = _LEAST_TIME * sum(spent.values())
    return [f"{word} {duration(spent[word])}" for word in spent if spent[word] > least]


@SECTIONS.register
class Methods(Section):
    """What is measured of each method."""

    name = "methods"
    title = "Methods"

    def content(self, data: ReportData) -> Content:
        """Return a panel for each method, with its matrix, classes, curves and searches."""
        entries: list[tuple[str, str]] = []
        for group in data.groups:
            entries += [(group.label, "")] if group.label else []
            entries += [(method.title, method.anchor) for method in group.methods]
        charts = {
            method: [*method_curves(method), *search_charts(method), *training_charts(method)]
            for method in data.methods
        }
        html = render("methods.html.j2", groups=data.groups, charts=charts, confusion=confusion)
        return Content(html, tables=frames(data), entries=entries)


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
    # The square root keeps rare errors visible.
    heat = np.ceil(np.sqrt(share) * _HEAT_LEVELS)
    return {**named, "rows": np.stack([matrix, share, heat], axis=2), "chart": None}


# -- tables of the page --------------------------------------------------------------------------


def frames(data: ReportData) -> dict[str, pd.DataFrame]:
    """Return what is measured of all methods as tables, numbers unrounded."""

    def per_class(method: Method) -> Iterator[dict[str, Any]]:
        for row, name in zip(method.metrics["per_class"], method.classes, strict=True):
            yield {**row, "class": name}

    def confused(method: Method) -> Iterator[dict[str, Any]]:
        matrix = np.array(method.metrics["confusion"])
        for i, j in np.argwhere(matrix):
            named = {"true": method.classes[i], "answer": method.columns[j]}
            yield {**named, "images": matrix[i, j]}

    def model(record: dict[str, Any]) -> dict[str, Any]:
        sizes = {key: record.get(key) for key in ("n_train", "n_test", "train_per_class")}
        chosen = {f"chosen_{key}": value for key, value in record.get("chosen", {}).items()}
        ended = {"model": record["name"], **sizes, **chosen, "converged": record.get("converged")}
        metrics = record["metrics"].items()
        return ended | {k: v for k, v in metrics if v is None or isinstance(v, int | float)}

    def searched(method: Method) -> Iterator[dict[str, Any]]:
        for split in method.result.splits:
            for entry in split.get("search") or ():
                yield {"model": split["name"], **entry}

    def disputed(method: Method) -> Iterator[dict[str, Any]]:
        for row in method.result.extra.get("label_map", {}).get("disputed", ()):
            yield {**row, "source_classes": ", ".join(row["source_classes"])}

    return {
        "comparison": data.comparison.table(),
        "pairs": data.comparison.pair_table(),
        "per-class": data.frame(per_class),
        "confusion": data.frame(confused),
        "models": data.frame(lambda method: map(model, method.result.splits)),
        "search": data.frame(searched),
        "history": data.frame(lambda method: method.result.extra.get("history") or []),
        "disputed": data.frame(disputed),
    }
