"""The charts of a page: accuracy, cost, curves, searches, folds, few labels, sweeps, training.

A chart is data; the page's own script draws it in the width there is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featpipe.evaluation.curves import pr_curves, roc_curves
from featpipe.evaluation.metrics import reliability_curve
from featpipe.evaluation.titles import options_behind, settings_of
from featpipe.reporting.data import Group, Method, ReportData
from featpipe.reporting.sections import (
    SAME_COST,
    SECTIONS,
    Chart,
    Content,
    Missing,
    Section,
    axis,
    count,
    duration,
    line,
    lines,
    number_axis,
    percent,
)
from featpipe.statistics.comparison import LEADING
from featpipe.statistics.intervals import wilson
from featpipe.statistics.verdicts import WORSE

MAX_CLASS_CURVES = 12  # more lines cannot be distinguished
COSTS = {
    "total_seconds": "from images to answers, seconds",
    "extract_seconds": "extraction, seconds",
    "search_seconds": "search of hyper-parameters, seconds",
    "fit_seconds": "fit at the chosen setting, seconds",
    "parameters_trained": "parameters trained",
    "model_bytes": "model, bytes",
}
_UNIT = 10_000  # curve coordinates are whole ten-thousandths: half the bytes of decimals
_FEW_LINES = 6
_LEAST_POINTS = 3  # two points are a comparison, and that is in the table
_DRAWN = {"train": "training", "valid": "validation", "lr": "learning rate"}
_ACCURACY = axis("accuracy", format="percent")


@SECTIONS.register
class Variation(Section):
    """How accuracy changes with labels, folds and settings."""

    name = "labels"
    title = "Few labels, folds and settings"

    def content(self, data: ReportData) -> Content:
        """Return low-shot curves, the spread over models and sweeps of each group."""
        figures: list[Chart] = []
        for group in data.groups:
            figures += [*low_shot_chart(group), *fold_chart(group), *sweep_charts(group)]
        frame = data.frame(
            lambda method: [
                {"train_per_class": point["train_per_class"], "draw": draw, "accuracy": accuracy}
                for point in method.result.extra.get("low_shot") or []
                for draw, accuracy in enumerate(point["accuracies"])
            ]
        )
        return Content(figures=figures, tables={"low-shot": frame})


# -- methods side by side ------------------------------------------------------------------------


def accuracy_chart(group: Group, published: Sequence[dict[str, Any]]) -> Chart:
    """Accuracy of each method with its interval; published numbers apart and hollow."""
    ours = {method.title: method.row for method in group.methods}
    entries = [
        {"label": label, "note": row["verdict"], "value": row["accuracy"]}
        | {name: row[name] for name in ("low", "high", "published")}
        | {"best": row["verdict"] in LEADING}
        for label, row in [*ours.items(), *((row["method"], row) for row in published)]
        if row["accuracy"] is not None
    ]
    ways = sorted({row["interval"] for row in ours.values()})
    x = {**_ACCURACY, "digits": group.digits}
    return Chart(
        f"Accuracy{group.suffix}",
        {"kind": "intervals", "x": x, "entries": entries},
        f"Dot: accuracy on {group.methods[0].row['n_test']} test images. Line: 95 % interval over "
        f"test images ({', '.join(ways)}). Whether two intervals overlap says little about "
        "their difference: see the paired tests." + " Diamond: published." * bool(published),
    )


def difference_chart(group: Group, margin: float) -> list[Chart]:
    """How far each method is from the best, with the interval of its paired test."""
    first, *others = group.methods
    if not others:
        return []
    tests = [group.tests_of_first[method.row["name"]] for method in others]
    entries = [
        {"label": method.title, "tag": method.row["verdict"], "value": -test["difference"]}
        | {"low": -test["high"], "high": -test["low"], "open": method.row["verdict"] != WORSE}
        for method, test in zip(others, tests, strict=True)
    ]
    levels = sorted(100 * test["confidence"] for test in tests)
    span = " to ".join(dict.fromkeys(f"{level:.3g}" for level in (levels[0], levels[-1])))
    about = " and ".join(sorted({method.row["about"] for method in others}))
    x = axis("difference in points", format="points", digits=group.digits)
    chart = Chart(
        f"Difference from {first.title}{group.suffix}",
        {"kind": "intervals", "x": x, "entries": entries, "zero": True, "margin": margin / 100},
        f"Paired tests about {about}. Lines are {span} % confidence intervals, corrected for the "
        "number of pairs. Left of zero throughout: demonstrably worse. Within the shaded "
        f"{margin:g} point{'s' * (margin != 1)}: equivalent. Otherwise undecided (hollow).",
    )
    return [chart]


def cost_chart(group: Group) -> list[Chart | Missing]:
    """Accuracy against what each of several methods costs; the reader chooses which cost."""
    if len(group.methods) == 1:
        return []
    title = f"Accuracy against cost{group.suffix}"
    choices, shown = [], []
    for key, label in COSTS.items():
        points = [
            {"label": method.title, "x": float(row[key]), "y": row["accuracy"]}
            | {"low": row["low"], "high": row["high"]}
            for method in group.methods
            if (row := method.row).get(key) is not None
        ]
        if points:
            costs = [point["x"] for point in points]
            log = min(costs) > 0 and max(costs) > 10 * min(costs)
            choices.append({"x": axis(label, log=log), "points": points})
            if max(costs) > SAME_COST * min(costs):  # else there is nothing to see
                shown.append(choices[-1])
    if not choices:
        return [Missing(title, "no result records what it cost")]
    caption = "Up and to the left is better. Vertical lines: 95 % intervals."
    if choices[0] not in shown:  # then its parts matter as little
        most = duration(max(point["x"] for point in choices[0]["points"]))
        shown = [choice for choice in shown if "seconds" not in choice["x"]["label"]]
        if not shown:
            return [Missing(title, f"from images to answers, all methods take about {most}")]
        caption += f" From images to answers, all methods take about {most}."
    y = {**_ACCURACY, "digits": group.digits}
    return [Chart(title, {"kind": "scatter", "y": y, "choices": shown}, caption)]


def fold_chart(group: Group) -> list[Chart]:
    """Accuracy of every model of the methods that have several."""
    entries = []
    for method in group.methods:
        spread = method.result.summary["spread"].get("accuracy")
        records = [method.result.splits[number] for number in np.unique(method.table.split)]
        # The largest draws of a low-shot curve are in that curve, and often the very same rows.
        if spread and len(records) > 1 and not method.result.extra.get("low_shot"):
            dots = [record["metrics"]["accuracy"] for record in records]
            entry = {"label": method.title, "value": spread["mean"], "dots": dots}
            names = [record["name"] for record in records]
            entries.append({**entry, "names": names, "sd": spread["sd"]})
    chart = Chart(
        f"Spread over models{group.suffix}",
        {"kind": "intervals", "x": _ACCURACY, "entries": entries},
        "Each small dot is a model (fold or seed), the large one their mean. The spread says how "
        "much models differ; folds share rows, so it is no interval.",
    )
    return [chart] if entries else []


def low_shot_chart(group: Group) -> list[Chart]:
    """Accuracy against labelled images per class, with the draws' standard deviation."""
    drawn, draws = [], 0
    for method in group.methods:
        if curve := method.result.extra.get("low_shot"):
            x, y = ([point[key] for point in curve] for key in ("train_per_class", "mean"))
            sd = np.array([point["sd"] or 0.0 for point in curve])
            low, high = (np.clip(edge, 0, 1).tolist() for edge in (y - sd, y + sd))
            drawn.append(line(method.title, x, y, low=low, high=high, strong=True))
            draws = max(draws, *(len(point["accuracies"]) for point in curve))
    x_axis, band = axis("labelled images per class", log=True), "± one standard deviation"
    chart = Chart(
        f"Accuracy with few labels{group.suffix}",
        lines(x_axis, _ACCURACY, drawn, dots=True, band=band),
        f"Mean of up to {draws} models per point; the band is one standard deviation of them.",
    )
    return [chart] if drawn else []


def sweep_charts(group: Group) -> list[Chart]:
    """Return a chart for every number that alone distinguishes methods of one kind.

    Where a second setting differs too (a sweep of two), each of its values is a line.
    """
    settings, seeds = {}, set()
    for method in group.methods:
        own = {"method": method.result.method, "features": method.row["features"]}
        settings[method] = own | settings_of(method.result)
        seeds |= {spec.name for spec in options_behind(method.result).values() if spec.seed}
    charts = []
    for key in sorted({key for values in settings.values() for key in values} - seeds):
        alike: dict[str, list[Method]] = defaultdict(list)
        for method, values in settings.items():
            if type(values.get(key)) in (int, float):  # not bool
                others = json.dumps({**values, key: None}, sort_keys=True, default=str)
                alike[others].append(method)
        sweeps = [
            sorted(methods, key=lambda method: float(settings[method][key]))
            for methods in alike.values()
            if len({settings[method][key] for method in methods}) >= _LEAST_POINTS
        ]
        if not sweeps:
            continue
        # A line is named by its method and by the settings in which the lines differ.
        firsts = [settings[sweep[0]] for sweep in sweeps]
        differ = [
            name
            for name in firsts[0]
            if name not in ("method", key) and len({str(first.get(name)) for first in firsts}) > 1
        ]
        drawn = []
        for first, sweep in zip(firsts, sweeps, strict=True):
            name = ", ".join([first["method"], *(f"{name} {first.get(name)}" for name in differ)])
            y, low, high = ([m.row[key] for m in sweep] for key in ("accuracy", "low", "high"))
            x = [settings[method][key] for method in sweep]
            drawn.append(line(name, x, y, low=low, high=high, strong=True))
        label = key.replace("_", " ")
        x_axis = number_axis(label, [value for one in drawn for value in one["x"]])
        spec = lines(x_axis, _ACCURACY, drawn, dots=True, band="95 % interval")
        caption = "Methods of the table that differ in nothing else; the band is the 95 % interval "
        title = f"Accuracy by {label}{group.suffix}"
        charts.append(Chart(title, spec, f"{caption}over test images."))
    return charts


# -- one method ----------------------------------------------------------------------------------


def method_curves(method: Method) -> list[Chart | Missing]:
    """ROC and precision-recall curves of the first model, reliability curve of all."""
    of = f" Drawn for the first model, {method.first_model_name}." * bool(method.first_model_name)
    predictions = method.predictions(first_model=True)
    if predictions.ranking is None:
        why = "this method gives neither scores nor probabilities"
        return [Missing("ROC curves", why), Missing("Precision-recall curves", why)]
    x, y = _share("false positive rate"), _share("true positive rate")
    empty = lines(x, y, [], unit=_UNIT, square=True, diagonal=True)
    roc = _class_curves("ROC curves", empty, roc_curves(predictions), ("fpr", "tpr", "auc"), of)
    empty = lines(_share("recall"), _share("precision"), [], unit=_UNIT, square=True, steps=True)
    keys = ("recall", "precision", "average_precision")
    pr = _class_curves("Precision-recall curves", empty, pr_curves(predictions), keys, of)
    if predictions.probabilities is None:
        why = "this method gives decision values, not probabilities"
        return [roc, pr, Missing("Reliability curve", why)]
    reliability = reliability_curve(method.predictions(first_model=False))
    bins = [entry for entry in reliability["bins"] if entry["count"]]
    sizes = [entry["count"] for entry in bins]
    x, y = ([round(entry[key], 4) for entry in bins] for key in ("confidence", "accuracy"))
    answers = line("answers", x, y, size=sizes, strong=True)
    axes = _share("mean probability of the answer"), _share("share right")
    spec = lines(*axes, [answers], square=True, diagonal=True, dots=True)
    calibrated = "temperature" in method.result.extra.get("calibration", {})
    caption = (
        "On the diagonal, answers are right as often as their probability says. Expected "
        f"calibration error {percent(reliability['ece'], 1)} points in 15 equal-width bins; the "
        f"area of a dot is the number of answers in its bin{', of all models' * bool(of)}."
        + " Probabilities as trained; featpipe predict calibrates them."
        * calibrated
    )
    return [roc, pr, Chart("Reliability curve", spec, caption)]


def _share(label: str) -> Any:
    return axis(label, 0, 1, format="percent", digits=1)


def _class_curves(
    title: str, spec: dict[str, Any], data: dict[str, Any], keys: tuple[str, str, str], of: str
) -> Chart | Missing:
    """Draw one curve for each class, and the averages; of many classes the worst ones.

    ``keys`` are those of a curve's x, y and area.
    """
    if not data["curves"]:
        return Missing(title, "no class has both members and others among the test rows")
    x, y, area = keys
    name = "AUC" if area == "auc" else "average precision"
    averages = [curve for curve in data["curves"] if curve["class"] is None]
    classes = [curve for curve in data["curves"] if curve["class"] is not None]
    caption = f"One class against the rest; after each name its {name}.{of}"
    if len(classes) == 2:  # averages of two add nothing, and their ROC curves mirror each other
        averages = []
        if area == "auc":
            classes = classes[1:]
            found = percent(classes[0][area])
            caption = f"{classes[0]['class']} against the other class: {name} {found}\u00a0%.{of}"
    if len(classes) > MAX_CLASS_CURVES:
        drawn_of = f" Of {len(classes)} classes the {MAX_CLASS_CURVES} with the lowest {name}"
        caption += f"{drawn_of} are drawn; per-class.csv has all."
        classes = sorted(classes, key=lambda curve: curve[area])[:MAX_CLASS_CURVES]
    if undefined := data["undefined"]:
        named = [f"{cls} ({why})" for cls, why in list(undefined.items())[:5]]
        more = f" and {len(undefined) - 5} more" if len(undefined) > 5 else ""
        caption += f" Without a curve: {', '.join(named)}{more}."
    drawn = []
    for curve in [*averages, *classes]:
        name, value = curve["class"] or f"{curve['average']} average", f"{percent(curve[area])} %"
        xs, ys = ([round(share * _UNIT) for share in curve[key]] for key in (x, y))
        drawn.append(line(name, xs, ys, value=value, strong=curve["class"] is None))
    return Chart(title, {**spec, "series": drawn}, caption)


def search_charts(method: Method) -> list[Chart]:
    """Return validation accuracy over the values of the hyper-parameter that was chosen."""
    searched = [split for split in method.result.splits if split.get("search")]
    if not searched:
        return []
    names = [key for key in searched[0]["search"][0] if key in searched[0]["chosen"]]

    def tried(entry: Mapping[str, Any]) -> Any:
        value = entry.get(names[0])
        several = len(names) > 1 or isinstance(value, list | dict)
        return ", ".join(f"{name}={entry.get(name)}" for name in names) if several else value

    values = list(dict.fromkeys(tried(entry) for one in searched for entry in one["search"]))
    option = options_behind(method.result).get(names[0])
    label = (option and option.symbol) or ", ".join(names)
    if all(isinstance(value, int | float) for value in values):
        x_axis, place = number_axis(label, values), {value: value for value in values}
    else:
        x_axis = axis(label, whole=True, names=[str(value) for value in values])
        place = {value: number for number, value in enumerate(values, start=1)}
    drawn = []
    for one in searched:
        entries = sorted(one["search"], key=lambda entry: place[tried(entry)])
        x = [place[tried(entry)] for entry in entries]
        marked = [tried(entry) == tried(one["chosen"]) for entry in entries]
        y = [entry["accuracy"] for entry in entries]
        more: dict[str, Any] = {"strong": len(searched) == 1}
        if len(searched) == 1 and "rows" in entries[0]:
            ends = [wilson(round(one["accuracy"] * one["rows"]), one["rows"]) for one in entries]
            more |= {"low": [end.low for end in ends], "high": [end.high for end in ends]}
        drawn.append(line(str(one["name"]), x, y, marked=marked, **more))
    by = searched[0]["chosen"].get("by", "validation rows")
    caption = f"Chosen by {by}; the ring marks the choice. Test images play no part in it."
    if "low" in drawn[0]:
        caption += " The band is the 95 % interval of each accuracy over these rows."
    entries = [entry for one in searched for entry in one["search"]]
    if stopped := sum(not entry.get("converged", True) for entry in entries):
        caption += f" In {stopped} of these fits the solver did not converge."
    spec = lines(x_axis, axis("validation accuracy", format="percent"), drawn, dots=True)
    return [Chart(f"Validation accuracy by {label}", spec, caption)]


def training_charts(method: Method) -> list[Chart]:
    """Loss, accuracy, learning rate and gradients over the epochs, where a result records them."""
    history = method.result.extra.get("history")
    if not history:
        return []
    columns = {key: [entry.get(key) for entry in history] for entry in history for key in entry}
    epochs = columns["epoch"]
    speed = [f"{len(history)} epochs"]
    if seconds := [value for value in columns.get("seconds", ()) if value is not None]:
        speed.append(f"{sum(seconds):.1f} s")
    if rates := [value for value in columns.get("images_per_s", ()) if value is not None]:
        speed.append(f"{count(sum(rates) / len(rates))} images per second on average")
    chosen = method.result.splits[0].get("chosen", {}).get("epoch")
    kept = "" if chosen is None else f"The ring marks epoch {chosen}, whose weights were kept."
    charts = []
    for title, caption, y, keys in (
        ("Loss", f"{', '.join(speed)}.", axis("loss"), ("train_loss", "valid_loss")),
        ("Accuracy by epoch", kept, _ACCURACY, ("train_accuracy", "valid_accuracy")),
        ("Learning rate", "", axis("learning rate"), ("lr",)),
    ):
        drawn = []
        for key in keys:
            if len({*columns.get(key, ())} - {None}) > (key == "lr"):  # a constant rate is no curve
                name = _DRAWN[key.partition("_")[0]]
                marked = [epoch == chosen and key == "valid_accuracy" for epoch in epochs]
                drawn.append(line(name, epochs, columns[key], strong=True, marked=marked))
        if drawn:
            spec = lines(axis("epoch", whole=True), y, drawn, dots=len(epochs) <= 30)
            charts.append(Chart(title, spec, caption))
    flow = method.result.extra.get("gradient_flow")
    return [*charts, gradient_chart(epochs, flow)] if flow else charts


def gradient_chart(epochs: Sequence[int], flow: Sequence[Sequence[dict[str, Any]]]) -> Chart:
    """Mean absolute gradients over the epochs, or over the layers where those are many."""
    means = [{entry["layer"]: entry["mean"] or None for entry in epoch} for epoch in flow]
    layers = list(dict.fromkeys(layer for epoch in means for layer in epoch))
    if len(layers) <= _FEW_LINES:
        x = axis("epoch", whole=True)
        caption = "A layer whose line falls towards zero hardly learns."
        shown = {k: (epochs[: len(flow)], [of.get(k) for of in means]) for k in layers}
    else:
        x = axis("layer, from input to output", whole=True, names=layers)
        caption = "Where a line falls towards the input, the first layers hardly learn."
        places = range(1, len(layers) + 1)
        some = sorted({*np.linspace(0, len(flow) - 1, _FEW_LINES).round().astype(int).tolist()})
        shown = {f"epoch {epochs[i]}": (places, [means[i].get(k) for k in layers]) for i in some}
    drawn = [line(name, xs, ys, strong=True) for name, (xs, ys) in shown.items()]
    y = axis("mean absolute gradient", log=True)
    return Chart("Gradient flow", lines(x, y, drawn, dots=True), caption)
