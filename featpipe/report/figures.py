"""The charts of a page: accuracy, cost, curves, searches, folds, few labels, sweeps, training.

A chart is data; the page's own script draws it in the width there is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from featpipe.evaluation.curves import pr_curves, reliability_curve, roc_curves
from featpipe.report.data import Group, Method, ReportData, settings_of
from featpipe.report.render import count, percent
from featpipe.report.sections import (
    SECTIONS,
    Chart,
    Content,
    Missing,
    Section,
    axis,
    line,
    lines,
    number_axis,
)

MAX_CLASS_CURVES = 12  # more lines than these cannot be told apart
COSTS = {
    "train_seconds": "training, seconds",
    "extract_seconds": "extraction, seconds",
    "parameters_trained": "parameters trained",
    "model_bytes": "model, bytes",
}
_STEPS = 10_000  # curve coordinates are whole ten-thousandths: half the bytes of decimals
_FEW_LINES = 6
_LEAST_POINTS = 3  # two points are a comparison, and that is in the table
_NO_SWEEP = {"seed", "split_seed"}  # more draws of the same, not more of something
_ACCURACY = axis("accuracy", format="percent")


@SECTIONS.register
class Variation(Section):
    """How accuracy changes with labels, folds and settings."""

    name = "labels"
    title = "Few labels, folds, sweeps"

    def content(self, data: ReportData) -> Content:
        """Return low-shot curves, the spread over models and sweeps of each group."""
        figures: list[Chart | Missing] = []
        for group in data.groups:
            charts = [*low_shot_chart(group), *fold_chart(group), *sweep_charts(group)]
            why = Markup(
                "no result has several models or a low-shot curve "
                "(<code>--protocol folds</code>, <code>--train-per-class 1,5,20</code>), "
                "and no three differ in one number alone"
            )
            figures += charts or [Missing(group.label or self.title, why)]
        frame = data.frame(
            lambda method: [
                {"train_per_class": point["train_per_class"], "draw": draw, "accuracy": accuracy}
                for point in method.result.extra.get("low_shot") or []
                for draw, accuracy in enumerate(point["accuracies"])
            ]
        )
        return Content(figures=figures, tables={"low-shot": frame})


# -- methods beside each other -------------------------------------------------------------------


def accuracy_chart(group: Group, published: Sequence[dict[str, Any]]) -> Chart:
    """Accuracy of each method with its interval; published numbers apart and hollow."""
    shown = [(m.title, m.row, m.row["verdict"], False) for m in group.methods]
    shown += [(row["method"], row, "published, not measured here", True) for row in published]
    entries = [
        {
            "label": label,
            "note": note,
            "value": row["accuracy"],
            **_limits(row),
            "published": by_others,
            "best": number == 0 and len(group.methods) > 1,
        }
        for number, (label, row, note, by_others) in enumerate(shown)
        if row["accuracy"] is not None
    ]
    ways = sorted({method.row["interval"] for method in group.methods})
    return Chart(
        f"Accuracy{group.suffix}",
        {"kind": "intervals", "x": _ACCURACY, "entries": entries},
        f"Dot: accuracy on {group.methods[0].row['n_test']} test images. Line: 95 % interval over "
        f"test images ({', '.join(ways)}). Overlapping intervals decide nothing: the paired tests "
        "below do.",
    )


def cost_chart(group: Group) -> Chart | Missing:
    """Accuracy against what a method costs; the reader chooses which cost."""
    choices = []
    for key, label in COSTS.items():
        known = [m for m in group.methods if m.row.get(key) is not None]
        if known:
            values = [float(method.row[key]) for method in known]
            points = [
                {"label": m.title, "x": x, "y": m.row["accuracy"], **_limits(m.row)}
                for m, x in zip(known, values, strict=True)
            ]
            log = min(values) > 0 and max(values) > 10 * min(values)
            choices.append({"x": axis(label, log=log), "points": points})
    title = f"Accuracy against cost{group.suffix}"
    if not choices:
        return Missing(title, "no result records what it cost")
    # A cost that all methods share distinguishes nothing; it is shown if there is no other.
    shown = [c for c in choices if len({point["x"] for point in c["points"]}) > 1] or choices[:1]
    return Chart(
        title,
        {"kind": "scatter", "y": _ACCURACY, "choices": shown},
        "Up and to the left is better. Vertical lines: 95 % intervals.",
    )


def fold_chart(group: Group) -> list[Chart]:
    """Accuracy of every model of the methods that have several."""
    entries = []
    for method in group.methods:
        spread = method.result.summary["spread"].get("accuracy")
        numbers = sorted({int(number) for number in method.table.split})
        # The largest draws of a low-shot curve are in that curve, and often the very same rows.
        if not spread or len(numbers) < 2 or method.result.extra.get("low_shot"):
            continue
        records = [method.result.splits[number] for number in numbers]
        entries.append(
            {
                "label": method.title,
                "value": spread["mean"],
                "dots": [record["metrics"]["accuracy"] for record in records],
                "names": [record["name"] for record in records],
                "sd": spread["sd"],
            }
        )
    chart = Chart(
        f"Spread over models{group.suffix}",
        {"kind": "intervals", "x": _ACCURACY, "entries": entries},
        "Each small dot is a model (fold or seed), the large one their mean. The spread says how "
        "much models differ; folds share rows, so it is no interval.",
    )
    return [chart] if entries else []


def low_shot_chart(group: Group) -> list[Chart]:
    """Accuracy against labelled images per class, with the draws' standard deviation."""
    drawn = []
    draws = 0
    for method in group.methods:
        if curve := method.result.extra.get("low_shot"):
            edges = [
                [min(1.0, max(0.0, point["mean"] + sign * (point["sd"] or 0.0))) for point in curve]
                for sign in (-1, 1)
            ]
            x, y = ([point[key] for point in curve] for key in ("train_per_class", "mean"))
            drawn.append(line(method.title, x, y, low=edges[0], high=edges[1], strong=True))
            draws = max(draws, *(len(point["accuracies"]) for point in curve))
    if not drawn:
        return []
    x_axis, band = axis("labelled images per class", log=True), "± one standard deviation"
    return [
        Chart(
            f"Accuracy with few labels{group.suffix}",
            lines(x_axis, _ACCURACY, drawn, dots=True, band=band),
            f"Mean of up to {draws} models per point; the band is one standard deviation of them.",
        )
    ]


def sweep_charts(group: Group) -> list[Chart]:
    """Return a chart for every number in whose values methods of one kind differ alone.

    Where a second setting differs too (a sweep of two), each of its values is a line.
    """
    settings = {
        m: {"method": m.result.method, "features": m.row["features"], **settings_of(m.result)}
        for m in group.methods
    }
    charts = []
    for key in sorted({key for values in settings.values() for key in values} - _NO_SWEEP):
        alike: dict[str, list[Method]] = defaultdict(list)
        for method, values in settings.items():
            if type(values.get(key)) in (int, float):  # not bool
                others = {name: value for name, value in values.items() if name != key}
                alike[json.dumps(others, sort_keys=True, default=str)].append(method)
        sweeps = [
            sorted(methods, key=lambda method: float(settings[method][key]))
            for methods in alike.values()
            if len({settings[method][key] for method in methods}) >= _LEAST_POINTS
        ]
        if sweeps:
            charts.append(_sweep_chart(key, sweeps, settings, group))
    return charts


def _sweep_chart(
    key: str,
    sweeps: Sequence[Sequence[Method]],
    settings: dict[Method, dict[str, Any]],
    group: Group,
) -> Chart:
    # A line is named by its method and by the settings in which the lines differ.
    firsts = [settings[sweep[0]] for sweep in sweeps]
    differ = [
        name
        for name in firsts[0]
        if name not in ("method", key) and len({str(first.get(name)) for first in firsts}) > 1
    ]
    drawn = []
    for first, sweep in zip(firsts, sweeps, strict=True):
        rows = {name: [m.row[name] for m in sweep] for name in ("accuracy", "low", "high")}
        title = ", ".join([first["method"], *(f"{name} {first.get(name)}" for name in differ)])
        x = [settings[method][key] for method in sweep]
        drawn.append(line(title, x, rows.pop("accuracy"), **rows, strong=True))
    label = key.replace("_", " ")
    x_axis = number_axis(label, [float(value) for one in drawn for value in one["x"]])
    return Chart(
        f"Accuracy by {label}{group.suffix}",
        lines(x_axis, _ACCURACY, drawn, dots=True, band="95 % interval"),
        "Methods of the table that differ in nothing else; the band is the 95 % interval over "
        "test images.",
    )


def _limits(row: dict[str, Any]) -> dict[str, Any]:
    return {"low": row["low"], "high": row["high"]}


# -- one method ----------------------------------------------------------------------------------


def method_curves(method: Method) -> list[Chart | Missing]:
    """ROC, precision-recall and reliability curves of the first model of a method."""
    of = f" Drawn for the first model, {method.first_model_name}." * bool(method.first_model_name)
    predictions = method.first_model
    if predictions.ranking is None:
        why = "this method gives neither scores nor probabilities"
        return [Missing("ROC curves", why), Missing("Precision-recall curves", why)]
    roc = _class_curves("ROC curves", roc_curves(predictions), "auc", of)
    pr = _class_curves("Precision-recall curves", pr_curves(predictions), "average_precision", of)
    if predictions.probabilities is None:
        why = "this method gives decision values, not probabilities"
        return [roc, pr, Missing("Reliability curve", why)]
    reliability = reliability_curve(predictions)
    bins = [entry for entry in reliability["bins"] if entry["count"]]
    answers = line(
        "answers",
        [round(entry["confidence"], 4) for entry in bins],
        [round(entry["accuracy"], 4) for entry in bins],
        size=[entry["count"] for entry in bins],
        strong=True,
    )
    x, y = axis("mean probability of the answer", 0, 1), axis("share right", 0, 1)
    chart = Chart(
        "Reliability curve",
        lines(x, y, [answers], square=True, diagonal=True, dots=True),
        f"On the diagonal, answers are right as often as they say. Expected calibration error "
        f"{percent(reliability['ece'])} points in 15 equal-width bins; the area of a dot is the "
        f"number of answers in its bin.{of}",
    )
    return [roc, pr, chart]


def _class_curves(title: str, data: dict[str, Any], area: str, of: str) -> Chart | Missing:
    """Draw one curve for each class, and the averages; of many classes the worst ones."""
    if not data["curves"]:
        return Missing(title, "no class has both members and others among the test rows")
    if area == "auc":
        x, y, name, look = "fpr", "tpr", "AUC", "diagonal"
    else:
        x, y, name, look = "recall", "precision", "average precision", "steps"
    curves = sorted(data["curves"], key=lambda curve: curve["class"] is not None)
    classes = [curve for curve in curves if curve["class"] is not None]
    averages = curves[: len(curves) - len(classes)]
    caption = f"One class against the rest; behind each name its {name}.{of}"
    if len(classes) > MAX_CLASS_CURVES:
        caption += (
            f" Of {len(classes)} classes the {MAX_CLASS_CURVES} with the lowest {name} are drawn; "
            "per-class.csv has all."
        )
        classes = sorted(classes, key=lambda curve: curve[area])[:MAX_CLASS_CURVES]
    if data["undefined"]:
        named = [f"{cls} ({why})" for cls, why in list(data["undefined"].items())[:5]]
        more = len(data["undefined"]) - len(named)
        caption += f" Without a curve: {', '.join(named)}{f' and {more} more' * bool(more)}."
    drawn = [
        line(
            curve["class"] or f"{curve['average']} average",
            [round(value * _STEPS) for value in curve[x]],
            [round(value * _STEPS) for value in curve[y]],
            value=f"{curve[area]:.4f}",
            strong=curve["class"] is None,
        )
        for curve in [*averages, *classes]
    ]
    labels = {"fpr": "false positive rate", "tpr": "true positive rate"}
    x_axis, y_axis = (axis(labels.get(key, key), 0, 1) for key in (x, y))
    spec = lines(x_axis, y_axis, drawn, unit=_STEPS, square=True) | {look: True}
    return Chart(title, spec, caption)


def search_chart(parameter: str, grids: Sequence[tuple[str, Any, Any]]) -> Chart:
    """Return validation accuracy over the values of one hyper-parameter.

    Parameters
    ----------
    parameter : str
    grids : sequence of tuple
        Of each model its name, the entries of its search, and what was chosen.
    """
    drawn = []
    for name, grid, chosen in grids:
        ordered = sorted(grid, key=lambda entry: entry[parameter])
        drawn.append(
            line(
                name,
                [entry[parameter] for entry in ordered],
                [entry["accuracy"] for entry in ordered],
                marked=[entry[parameter] == chosen.get(parameter) for entry in ordered],
                strong=len(grids) == 1,
            )
        )
    by = grids[0][2].get("by", "validation rows")
    caption = f"Chosen by {by}; the ring marks the choice. Test images play no part in it."
    stopped = sum(not entry.get("converged", True) for _, grid, _ in grids for entry in grid)
    if stopped:
        caption += f" In {stopped} of these fits the solver did not converge."
    label = "C" if parameter == "c" else parameter  # as the literature writes it
    x = number_axis(label, [float(value) for one in drawn for value in one["x"]])
    y = axis("validation accuracy", format="percent")
    return Chart(f"Validation accuracy by {label}", lines(x, y, drawn, dots=True), caption)


def training_charts(method: Method) -> list[Chart | Missing]:
    """Loss, accuracy, learning rate and gradients over the epochs of a trained network."""
    history = method.result.extra.get("history")
    if not history:
        said = Missing("Training curves", "the result holds no training history")
        return [said] if method.result.method == "finetune" else []
    epochs = [entry["epoch"] for entry in history]
    chosen = method.result.splits[0].get("chosen", {}).get("epoch")
    kept = "" if chosen is None else f"The ring marks epoch {chosen}, whose weights were kept."
    both = {"training": "train_{}", "validation": "valid_{}"}
    charts: list[Chart | Missing] = []
    for title, caption, y, keys in (
        ("Loss", _speed(history), axis("loss"), {n: k.format("loss") for n, k in both.items()}),
        ("Accuracy by epoch", kept, _ACCURACY, {n: k.format("accuracy") for n, k in both.items()}),
        ("Learning rate", "", axis("learning rate"), {"learning rate": "lr"}),
    ):
        drawn = [
            line(
                name,
                epochs,
                [entry.get(key) for entry in history],
                strong=True,
                marked=[epoch == chosen and key == "valid_accuracy" for epoch in epochs],
            )
            for name, key in keys.items()
            if any(entry.get(key) is not None for entry in history)
        ]
        if drawn:
            spec = lines(axis("epoch", whole=True), y, drawn, dots=len(epochs) <= 30)
            charts.append(Chart(title, spec, caption))
    flow = method.result.extra.get("gradient_flow")
    return [*charts, gradient_chart(epochs, flow)] if flow else charts


def _speed(history: Sequence[dict[str, Any]]) -> str:
    seconds = [entry["seconds"] for entry in history if entry.get("seconds") is not None]
    rates = [entry["images_per_s"] for entry in history if entry.get("images_per_s") is not None]
    parts = [f"{len(history)} epochs"]
    if seconds:
        parts.append(f"{sum(seconds):.1f} s")
    if rates:
        parts.append(f"{count(sum(rates) / len(rates))} images per second on average")
    return ", ".join(parts) + "."


def gradient_chart(epochs: Sequence[int], flow: Sequence[Sequence[dict[str, Any]]]) -> Chart:
    """Mean absolute gradients over the epochs, or over the layers where those are many."""
    layers = list(dict.fromkeys(entry["layer"] for epoch in flow for entry in epoch))
    means = [{entry["layer"]: entry["mean"] or None for entry in epoch} for epoch in flow]
    if len(layers) <= _FEW_LINES:
        x = axis("epoch", whole=True)
        drawn = [
            line(name, epochs[: len(flow)], [of.get(name) for of in means], strong=True)
            for name in layers
        ]
        caption = "A layer whose line falls away no longer learns."
    else:
        x = axis("layer, from input to output", whole=True, names=layers)
        places = range(1, len(layers) + 1)
        shown = sorted({round(i * (len(flow) - 1) / (_FEW_LINES - 1)) for i in range(_FEW_LINES)})
        drawn = [
            line(f"epoch {epochs[i]}", places, [means[i].get(k) for k in layers], strong=True)
            for i in shown
        ]
        caption = "Where a line falls towards the input, the first layers hardly learn."
    y = axis("mean absolute gradient", log=True)
    return Chart("Gradient flow", lines(x, y, drawn, dots=True), caption)
