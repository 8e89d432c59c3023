"""Charts as data: what to draw, in numbers; how it is drawn is the page's own script.

A chart is a small JSON-like dict. The script draws it as SVG in the width there is, shows values
under the pointer or the arrow keys, and lists the same numbers as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featpipe.evaluate.curves import pr_curves, reliability_curve, roc_curves
from featpipe.report.formats import percent
from featpipe.report.material import Group, Material, Method

MAX_CLASS_CURVES = 12  # more lines than these cannot be told apart
_LOG_SPAN = 20
_STEPS = 10_000  # curve coordinates are whole ten-thousandths: half the bytes of decimals


@dataclass(frozen=True)
class Chart:
    """One chart with what is said about it.

    Parameters
    ----------
    title : str
        Its name for the heading and for people who cannot see it.
    spec : dict
        ``kind`` (``"lines"``, ``"intervals"``, ``"scatter"``), ``x``, ``y``, ``series``.
    caption : str
        What a reader must know.
    """

    title: str
    spec: dict[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Missing:
    """A part that a report would show if there were something to show."""

    title: str
    reason: str
    spec: None = field(default=None, init=False)


def axis(label: str, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    """Return an axis: its label, its limits where they are fixed, ``log``, ``format``."""
    return {"label": label, "low": low, "high": high, **more}


def number_axis(label: str, values: Sequence[float]) -> Any:
    """Return the axis of a parameter; one whose values span orders of magnitude is logarithmic."""
    return axis(label, log=min(values) > 0 and max(values) / min(values) >= _LOG_SPAN)


def series(name: str, x: Sequence[Any], y: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return a series of points; ``None`` in ``y`` leaves a gap."""
    return {"name": name, "x": list(x), "y": list(y), **more}


# -- the first screen ----------------------------------------------------------------------------


def accuracy_chart(group: Group, material: Material) -> Chart:
    """Accuracy of each method with its interval; published numbers apart and hollow."""
    entries = [
        {
            "label": method.title,
            "value": method.row["accuracy"],
            "low": method.row["low"],
            "high": method.row["high"],
            "note": method.row["verdict"],
            "best": number == 0 and len(group.methods) > 1,
            "href": f"#{method.anchor}",
        }
        for number, method in enumerate(group.methods)
    ]
    entries += [
        {
            "label": row["method"],
            "value": row["accuracy"],
            "low": row["low"],
            "high": row["high"],
            "note": "published, not measured here",
            "published": True,
        }
        for row in material.published(group)
        if row["accuracy"] is not None
    ]
    spec = {"kind": "intervals", "x": axis("accuracy", format="percent"), "entries": entries}
    ways = sorted({method.row["interval"] for method in group.methods})
    return Chart(
        f"Accuracy{group.suffix}",
        spec,
        f"Dot: accuracy on {group.methods[0].row['n_test']} test images. Line: 95 % interval over "
        f"test images ({', '.join(ways)}). Overlapping intervals decide nothing: the paired tests "
        "below do.",
    )


COSTS = {
    "train_seconds": "training, seconds",
    "extract_seconds": "extraction, seconds",
    "parameters_trained": "parameters trained",
    "model_bytes": "model, bytes",
}


def cost_chart(group: Group) -> Chart | Missing:
    """Accuracy against what a method costs; the reader chooses which cost."""
    choices = []
    for key, label in COSTS.items():
        shown = [m for m in group.methods if m.row.get(key) is not None]
        if not shown:
            continue
        values = [float(m.row[key]) for m in shown]
        choices.append(
            {
                "x": axis(label, log=min(values) > 0 and max(values) > 10 * min(values)),
                "points": [
                    {"label": m.title, "x": x, "y": m.row["accuracy"], "low": m.row["low"],
                     "high": m.row["high"], "href": f"#{m.anchor}"}
                    for m, x in zip(shown, values, strict=True)
                ],
            }
        )  # fmt: skip
    title = f"Accuracy against cost{group.suffix}"
    if not choices:
        return Missing(title, "no result records what it cost")
    # A cost that all methods share tells nothing, unless there is no other.
    telling = [c for c in choices if len({point["x"] for point in c["points"]}) > 1] or choices[:1]
    spec = {"kind": "scatter", "y": axis("accuracy", format="percent"), "choices": telling}
    return Chart(title, spec, "Up and to the left is better. Vertical lines: 95 % intervals.")


# -- curves of one method ------------------------------------------------------------------------


def method_curves(method: Method) -> list[Chart | Missing]:
    """ROC, precision-recall and reliability curves of the first model of a method."""
    of = f" Drawn for the first model, {method.first_model_name}." * bool(method.first_model_name)
    predictions = method.first_model
    if predictions.ranking is None:
        why = "this method gives neither scores nor probabilities"
        return [Missing("ROC curves", why), Missing("Precision-recall curves", why)]
    roc = roc_curves(predictions)
    charts: list[Chart | Missing] = [
        _curves(roc, "ROC curves", ("fpr", "false positive rate"), ("tpr", "true positive rate"),
                "auc", of, diagonal=True),
        _curves(pr_curves(predictions), "Precision-recall curves", ("recall", "recall"),
                ("precision", "precision"), "average_precision", of, steps=True),
    ]  # fmt: skip
    if predictions.probabilities is None:
        why = "this method gives decision values, not probabilities"
        return [*charts, Missing("Reliability curve", why)]
    return [*charts, _reliability(reliability_curve(predictions), of)]


def _curves(
    data: dict[str, Any],
    title: str,
    x: tuple[str, str],
    y: tuple[str, str],
    area: str,
    of: str,
    **drawing: bool,
) -> Chart | Missing:
    if not data["curves"]:
        return Missing(title, "no class has both members and others among the test rows")
    shown, left_out = _readable(data["curves"], area)
    spec = {
        "kind": "lines",
        "unit": _STEPS,
        "x": axis(x[1], 0, 1),
        "y": axis(y[1], 0, 1),
        "square": True,
        **drawing,
        "series": [
            series(
                curve["class"] or f"{curve['average']} average",
                [round(value * _STEPS) for value in curve[x[0]]],
                [round(value * _STEPS) for value in curve[y[0]]],
                value=f"{curve[area]:.4f}",
                strong=curve["class"] is None,
            )
            for curve in shown
        ],
    }
    name = "AUC" if area == "auc" else "average precision"
    caption = f"One class against the rest; behind each name its {name}.{of}"
    if left_out:
        caption += (
            f" Of {left_out + MAX_CLASS_CURVES} classes the {MAX_CLASS_CURVES} with the lowest "
            f"{name} are drawn; per-class.csv has all."
        )
    if data["undefined"]:
        caption += f" Without a curve: {_reasons(data['undefined'])}."
    return Chart(title, spec, caption)


def _readable(curves: list[dict[str, Any]], area: str) -> tuple[list[dict[str, Any]], int]:
    """Return the averages and the classes to draw, and how many classes are left out."""
    averages = [curve for curve in curves if curve["class"] is None]
    classes = [curve for curve in curves if curve["class"] is not None]
    if len(classes) <= MAX_CLASS_CURVES:
        return [*averages, *classes], 0
    worst = sorted(classes, key=lambda curve: curve[area])[:MAX_CLASS_CURVES]
    return [*averages, *worst], len(classes) - MAX_CLASS_CURVES


def _reasons(undefined: dict[str, str]) -> str:
    names = [f"{name} ({why})" for name, why in list(undefined.items())[:5]]
    more = len(undefined) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _reliability(data: dict[str, Any], of: str) -> Chart:
    bins = [entry for entry in data["bins"] if entry["count"]]
    spec = {
        "kind": "lines",
        "x": axis("mean probability of the answer", 0, 1),
        "y": axis("share right", 0, 1),
        "square": True,
        "diagonal": True,
        "dots": True,
        "series": [
            series(
                "answers",
                [round(entry["confidence"], 4) for entry in bins],
                [round(entry["accuracy"], 4) for entry in bins],
                size=[entry["count"] for entry in bins],
                strong=True,
            )
        ],
    }
    return Chart(
        "Reliability curve",
        spec,
        f"On the diagonal, answers are right as often as they say. Expected calibration error "
        f"{percent(data['ece'])} points in 15 equal-width bins; the area of a dot is the number "
        f"of answers in its bin.{of}",
    )
