"""Charts of how a method came about: grids, folds, few labels, training epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from featpipe.report.charts import Chart, Missing, axis, number_axis, series
from featpipe.report.formats import count
from featpipe.report.material import Group, Method

_NOT_PARAMETERS = {"accuracy", "converged", "sd", "seconds", "loss"}
_FEW_LINES = 6


def search_parts(method: Method) -> list[Chart | dict[str, Any]]:
    """Charts of the hyper-parameter grids: a line for one parameter, a table for several."""
    grids = [
        (str(split["name"]), split["search"], split.get("chosen", {}))
        for split in method.result.splits
        if split.get("search")
    ]
    if extra := method.result.extra.get("search"):
        grids.append(("search", extra, method.result.extra.get("chosen", {})))
    if not grids:
        return []
    parameters = [key for key in grids[0][1][0] if key not in _NOT_PARAMETERS]
    varied = [p for p in parameters if len({str(e.get(p)) for _, g, _ in grids for e in g}) > 1]
    if len(varied) == 1 and all(isinstance(e[varied[0]], int | float) for e in grids[0][1]):
        return [_search_lines(varied[0], grids)]
    return [sweep_table(grids[0][1], varied or parameters)]


def _search_lines(name: str, grids: Sequence[tuple[str, Any, Any]]) -> Chart:
    values = sorted({float(entry[name]) for _, grid, _ in grids for entry in grid})
    lines = []
    for split, grid, chosen in grids:
        ordered = sorted(grid, key=lambda entry: entry[name])
        lines.append(
            series(
                split,
                [entry[name] for entry in ordered],
                [entry["accuracy"] for entry in ordered],
                marked=[entry[name] == chosen.get(name) for entry in ordered],
                strong=len(grids) == 1,
            )
        )
    label = "C" if name == "c" else name  # as the literature writes it
    spec = {
        "kind": "lines",
        "dots": True,
        "x": number_axis(label, values),
        "y": axis("validation accuracy", format="percent"),
        "series": lines,
    }
    by = grids[0][2].get("by", "validation rows")
    stopped = sum(not entry.get("converged", True) for _, grid, _ in grids for entry in grid)
    caption = f"Chosen by {by}; the ring marks the choice. Test images play no part in it."
    if stopped:
        caption += f" In {stopped} of these fits the solver did not converge."
    return Chart(f"Validation accuracy by {label}", spec, caption)


def sweep_table(grid: Sequence[dict[str, Any]], parameters: Sequence[str]) -> dict[str, Any]:
    """Return a grid of two parameters as a heat map, of more as a list, best first."""
    frame = pd.DataFrame(grid)
    if len(parameters) == 2:
        wide = frame.pivot_table(
            index=parameters[0], columns=parameters[1], values="accuracy", aggfunc="max"
        )
        low, high = float(frame["accuracy"].min()), float(frame["accuracy"].max())
        return {
            "heat": True,
            "corner": f"{parameters[0]} \\ {parameters[1]}",
            "columns": [_plain(value) for value in wide.columns],
            "rows": [
                (
                    _plain(index),
                    [None if pd.isna(v) else (float(v), _level(v, low, high)) for v in row],
                )
                for index, row in zip(wide.index, wide.to_numpy(), strict=True)
            ],
        }
    best_first = frame.sort_values("accuracy", ascending=False, kind="stable")
    return {
        "heat": False,
        "columns": [*parameters, "accuracy"],
        "rows": best_first[[*parameters, "accuracy"]].to_dict("records"),
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _level(value: float, low: float, high: float) -> int:
    return 0 if high == low else round(10 * (value - low) / (high - low))


def fold_chart(group: Group) -> Chart | None:
    """Accuracy of every model of the methods that have several."""
    entries = []
    for method in group.methods:
        spread = method.result.summary["spread"].get("accuracy")
        kept = sorted({int(number) for number in method.table.split})
        # The largest draws of a low-shot curve are in that curve, and often the very same rows.
        if not spread or len(kept) < 2 or method.result.extra.get("low_shot"):
            continue
        records = [method.result.splits[number] for number in kept]
        entries.append(
            {
                "label": method.title,
                "value": spread["mean"],
                "dots": [record["metrics"]["accuracy"] for record in records],
                "names": [record["name"] for record in records],
                "sd": spread["sd"],
            }
        )
    if not entries:
        return None
    spec = {"kind": "intervals", "x": axis("accuracy", format="percent"), "entries": entries}
    return Chart(
        f"Spread over models{group.suffix}",
        spec,
        "Each small dot is a model (fold or seed), the large one their mean. The spread says how "
        "much models differ; folds share rows, so it is no interval.",
    )


def low_shot_chart(group: Group) -> Chart | None:
    """Accuracy against labelled images per class, with the draws' standard deviation."""
    lines = []
    for method in group.methods:
        curve = method.result.extra.get("low_shot")
        if not curve:
            continue
        lines.append(
            series(
                method.title,
                [point["train_per_class"] for point in curve],
                [point["mean"] for point in curve],
                low=[_less(point, -1) for point in curve],
                high=[_less(point, 1) for point in curve],
                strong=True,
            )
        )
    if not lines:
        return None
    spec = {
        "kind": "lines",
        "dots": True,
        "x": axis("labelled images per class", log=True),
        "y": axis("accuracy", format="percent"),
        "series": lines,
    }
    draws = max(
        len(point["accuracies"])
        for method in group.methods
        for point in method.result.extra.get("low_shot", [])
    )
    return Chart(
        f"Accuracy with few labels{group.suffix}",
        spec,
        f"Mean of up to {draws} models per point; the band is one standard deviation of them.",
    )


def _less(point: dict[str, Any], sign: int) -> float:
    return float(min(1.0, max(0.0, point["mean"] + sign * (point["sd"] or 0.0))))


def training_charts(method: Method) -> list[Chart]:
    """Loss, accuracy, learning rate and gradients over the epochs of a trained head."""
    history = method.result.extra.get("history")
    if not history:
        return []
    epochs = [entry["epoch"] for entry in history]
    chosen = method.result.splits[0].get("chosen", {}).get("epoch")
    kept = "" if chosen is None else f"The ring marks epoch {chosen}, whose weights were kept."
    plans: tuple[tuple[str, str, dict[str, str], dict[str, Any]], ...] = (
        ("Loss", "loss", {"training": "train_loss", "validation": "valid_loss"}, {}),
        (
            "Accuracy by epoch",
            "accuracy",
            {"training": "train_accuracy", "validation": "valid_accuracy"},
            {"format": "percent"},
        ),
        ("Learning rate", "learning rate", {"learning rate": "lr"}, {}),
    )
    charts = []
    for title, label, lines, look in plans:
        drawn = [
            series(
                name,
                epochs,
                [entry.get(key) for entry in history],
                strong=True,
                marked=[epoch == chosen and key == "valid_accuracy" for epoch in epochs],
            )
            for name, key in lines.items()
            if any(entry.get(key) is not None for entry in history)
        ]
        if drawn:
            spec = {
                "kind": "lines",
                "dots": len(epochs) <= 30,
                "x": axis("epoch", whole=True),
                "y": axis(label, **look),
                "series": drawn,
            }
            said = {"Loss": _speed(history), "Accuracy by epoch": kept}
            charts.append(Chart(title, spec, said.get(title, "")))
    return [*charts, *gradient_chart(method)]


def _speed(history: Sequence[dict[str, Any]]) -> str:
    seconds = [entry["seconds"] for entry in history if entry.get("seconds") is not None]
    rates = [entry["images_per_s"] for entry in history if entry.get("images_per_s") is not None]
    parts = [f"{len(history)} epochs"]
    if seconds:
        parts.append(f"{sum(seconds):.1f} s")
    if rates:
        parts.append(f"{count(sum(rates) / len(rates))} images per second on average")
    return ", ".join(parts) + "."


def gradient_chart(method: Method) -> list[Chart]:
    """Mean absolute gradients over the epochs, or over the layers where those are many."""
    flow = method.result.extra.get("gradient_flow")
    if not flow:
        return []
    history = method.result.extra.get("history") or []
    epochs = [entry["epoch"] for entry in history][: len(flow)] or list(range(1, len(flow) + 1))
    layers = list(dict.fromkeys(entry["layer"] for epoch in flow for entry in epoch))
    means = [{entry["layer"]: entry["mean"] or None for entry in epoch} for epoch in flow]
    if len(layers) <= _FEW_LINES:
        x = axis("epoch", whole=True)
        lines = [series(name, epochs, [of.get(name) for of in means]) for name in layers]
        caption = "A layer whose line falls away no longer learns."
    else:
        x = axis("layer, from input to output", whole=True, names=layers)
        places = list(range(1, len(layers) + 1))
        shown = sorted({round(i * (len(flow) - 1) / (_FEW_LINES - 1)) for i in range(_FEW_LINES)})
        lines = [
            series(f"epoch {epochs[i]}", places, [means[i].get(name) for name in layers])
            for i in shown
        ]
        caption = "Where a line falls towards the input, the first layers hardly learn."
    spec = {
        "kind": "lines",
        "dots": True,
        "x": x,
        "y": axis("mean absolute gradient", log=True),
        "series": [{**line, "strong": True} for line in lines],
    }
    return [Chart("Gradient flow", spec, caption)]


def missing_training(method: Method) -> list[Missing]:
    """Say what a trained head lacks."""
    if method.result.method != "finetune" or method.result.extra.get("history"):
        return []
    return [Missing("Training curves", "the result holds no training history")]
