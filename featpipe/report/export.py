"""Tables beside the page: every number unrounded, one CSV file for each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from featpipe.report.material import Material, Method


def frames(material: Material) -> dict[str, pd.DataFrame]:
    """Return every table of the report by file name, numbers unrounded."""
    return {
        "comparison.csv": material.comparison.table(),
        "pairs.csv": pd.DataFrame(material.comparison.pairs),
        "per-class.csv": _join(material, lambda m: m.metrics["per_class"]),
        "confusion.csv": _join(material, _long_confusion),
        "models.csv": _join(material, _models),
        "search.csv": _join(material, _search),
        "low-shot.csv": _join(material, _low_shot),
        "history.csv": _join(material, lambda m: m.result.extra.get("history") or []),
        "errors.csv": _join(material, _errors),
    }


def _join(material: Material, rows_of: Callable[[Method], list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [
        {"result": method.row["name"], "method": method.title, **row}
        for method in material.methods
        for row in rows_of(method)
    ]
    return pd.DataFrame(rows)


def _long_confusion(method: Method) -> list[dict[str, Any]]:
    matrix = method.metrics["confusion"]
    return [
        {"true": name, "answer": answer, "images": matrix[i][j]}
        for i, name in enumerate(method.result.dataset["classes"])
        for j, answer in enumerate(method.columns)
        if matrix[i][j]
    ]


def _models(method: Method) -> list[dict[str, Any]]:
    return [
        {
            "model": record["name"],
            "n_train": record.get("n_train"),
            "n_test": record.get("n_test"),
            "train_per_class": record.get("train_per_class"),
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


def _search(method: Method) -> list[dict[str, Any]]:
    grids = [(r["name"], r.get("search") or []) for r in method.result.splits]
    grids.append(("search", method.result.extra.get("search") or []))
    return [{"model": name, **entry} for name, grid in grids for entry in grid]


def _low_shot(method: Method) -> list[dict[str, Any]]:
    return [
        {"train_per_class": point["train_per_class"], "draw": draw, "accuracy": accuracy}
        for point in method.result.extra.get("low_shot") or []
        for draw, accuracy in enumerate(point["accuracies"])
    ]


def _errors(method: Method) -> list[dict[str, Any]]:
    classes, columns = method.result.dataset["classes"], method.columns
    confidence = method.confidence
    wrong = np.flatnonzero(method.answers.predicted != method.table.true)
    return [
        {
            "id": str(method.table.ids[row]),
            "true": classes[method.table.true[row]],
            "answer": columns[method.answers.predicted[row]],
            "confidence": None if confidence is None else round(float(confidence[row]), 6),
        }
        for row in wrong
    ]
