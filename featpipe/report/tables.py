"""Tables of the page: rows of formatted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.report.formats import count, p_value, percent, points, seconds, size
from featpipe.report.material import Group, Material, Method

MAX_CELLS_WIDE = 26  # a confusion matrix with more classes is drawn, not written as a table
_HEAT_LEVELS = 10


# -- comparison ----------------------------------------------------------------------------------


def overview(group: Group) -> list[dict[str, Any]]:
    """Return the rows of the first screen's table."""
    return [
        {
            "title": method.title,
            "anchor": method.anchor,
            "verdict": method.row["verdict"],
            "facts": _facts(method),
            "warnings": method.result.notes,
            "accuracy": percent(method.row["accuracy"]),
            "interval": f"{percent(method.row['low'])}\u2009–\u2009{percent(method.row['high'])}",
            "balanced_accuracy": percent(method.row["balanced_accuracy"]),
            "macro_f1": percent(method.row["macro_f1"]),
            "roc_auc": percent(method.row["roc_auc"]),
            "train_seconds": seconds(method.row["train_seconds"]),
            "extract_seconds": seconds(method.row["extract_seconds"]),
            "parameters_trained": count(method.row["parameters_trained"]),
            "model_bytes": size(method.row["model_bytes"]),
        }
        for method in group.methods
    ]


def _facts(method: Method) -> str:
    """Return what else a number cannot be read without: features, choice, protocol, seed."""
    row = method.row
    chosen = row["chosen"]
    if chosen.count(";") > 1:  # more than two values in turn would bury the number beside them
        chosen = f"{chosen.partition('=')[0]} chosen for each model"
    facts = [row["features"], chosen, row["protocol"]]
    if row["models"] > 1:
        spread = f" (sd {percent(row['sd'])})" if row["sd"] is not None else ""
        facts.append(f"{row['models']} models{spread}")
    if row["seed"] is not None:
        facts.append(f"seed {row['seed']}")
    if not row["converged"]:
        facts.append("not converged")
    return " · ".join(str(fact) for fact in facts if fact)


def published(group: Group, material: Material) -> list[dict[str, Any]]:
    """Return the reference rows of the group's dataset."""
    return [
        {
            "title": row["method"],
            "protocol": row["protocol"],
            "n_test": count(row["n_test"]),
            "accuracy": percent(row["accuracy"]),
            "interval": f"{percent(row['low'])}\u2009–\u2009{percent(row['high'])}"
            if row["low"] is not None
            else "",
        }
        for row in material.published(group)
    ]


def pairs(group: Group) -> list[dict[str, Any]]:
    """Return every paired test of a group, the better method first."""
    titles = {method.row["name"]: method.title for method in group.methods}
    rows = []
    for pair in group.pairs:
        turned = pair["difference"] < 0
        sign = -1 if turned else 1
        first, second = ("b", "a") if turned else ("a", "b")
        limits = sorted((sign * pair["ci_low"], sign * pair["ci_high"]))
        rows.append(
            {
                "better": titles[pair[first]],
                "worse": titles[pair[second]],
                "difference": points(sign * pair["difference"]),
                "interval": f"{points(limits[0])} to {points(limits[1])}",
                "only_better": count(pair[f"{first}_better"]),
                "only_worse": count(pair[f"{second}_better"]),
                "p": p_value(pair["p_value"]),
                "p_adjusted": p_value(pair["p_adjusted"]),
                "distinguishable": pair["distinguishable"],
                "method": pair["method"],
            }
        )
    return rows


# -- one method ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix for the page.

    Parameters
    ----------
    classes, columns : tuple of str
        True classes, and possible answers.
    cells : list of list of tuple
        Count, share of the row, heat level 0 to 10; empty where the matrix is too wide.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    cells: list[list[tuple[int, str, int]]]
    sparse: list[list[int]]


def confusion(method: Method) -> Confusion:
    """Return counts, row shares and shades of a confusion matrix."""
    matrix = np.array(method.metrics["confusion"])
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    classes = tuple(method.result.dataset["classes"])
    if len(method.columns) > MAX_CELLS_WIDE:
        rows, columns = np.nonzero(matrix)
        sparse = np.column_stack([rows, columns, matrix[rows, columns]]).tolist()
        return Confusion(classes, method.columns, [], sparse)
    # Few errors are what one looks for: the square root lifts them off the paper.
    shade = np.ceil(np.sqrt(share) * _HEAT_LEVELS).astype(int)
    cells = [
        [
            (int(matrix[i, j]), percent(float(share[i, j]), 1), int(shade[i, j]))
            for j in range(matrix.shape[1])
        ]
        for i in range(matrix.shape[0])
    ]
    return Confusion(classes, method.columns, cells, [])


def classification_report(method: Method) -> list[dict[str, Any]]:
    """Return the rows of the per-class table, then the averages."""
    keys = ("precision", "recall", "f1", "roc_auc", "average_precision")
    rows = [
        {
            "name": entry["class"],
            **{key: percent(entry.get(key)) for key in keys},
            "bars": {key: entry.get(key) for key in ("precision", "recall")},
            "support": count(entry["support"]),
            "average": False,
        }
        for entry in method.metrics["per_class"]
    ]
    metrics = method.metrics
    for average in ("macro", "weighted"):
        rows.append(
            {
                "name": f"{average} average",
                **{key: percent(metrics.get(f"{average}_{key}")) for key in keys[:3]},
                "roc_auc": percent(metrics.get(f"roc_auc_{average}")),
                "average_precision": percent(metrics.get(f"average_precision_{average}")),
                "bars": {},
                "support": count(metrics["n"]),
                "average": True,
            }
        )
    return rows


OTHER_METRICS = {
    "top_2_accuracy": "top-2 accuracy",
    "top_3_accuracy": "top-3 accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "coverage": "coverage (not sent to “other”)",
    "accuracy_covered": "accuracy where covered",
    "accuracy_with_source": "accuracy on classes with a source class",
}
PLAIN_METRICS = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def key_figures(method: Method) -> list[tuple[str, str]]:
    """Return name and value of the metrics that a method has beyond the comparison table."""
    metrics = method.metrics
    shares = {name: metrics.get(key) for key, name in OTHER_METRICS.items()}
    plain = {name: metrics.get(key) for key, name in PLAIN_METRICS.items()}
    figures = [(name, f"{percent(value)} %") for name, value in shares.items() if value is not None]
    return figures + [(name, f"{value:.4f}") for name, value in plain.items() if value is not None]
