"""Sweeps: results that differ in one number of their settings, drawn over that number."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from featpipe.report.charts import Chart, axis, number_axis, series
from featpipe.report.material import Group, Method

_LEAST_POINTS = 3  # two points are a comparison, and that is in the table
_NO_SETTING = {"title", "train", "test", "force", "save_model", "data", "workers", "download"}
_NO_SWEEP = {"seed", "split_seed"}  # more draws of the same, not more of something


def sweep_charts(group: Group) -> list[Chart]:
    """Return a chart for every number in whose values methods of one kind differ alone.

    Where a second setting differs too (a sweep of two), each of its values is a line.
    """
    numbers = sorted(
        {
            key
            for method in group.methods
            for key, value in method.result.settings.items()
            if _is_number(value) and key not in _NO_SETTING | _NO_SWEEP
        }
    )
    return [chart for key in numbers if (chart := _sweep(key, group)) is not None]


def _sweep(key: str, group: Group) -> Chart | None:
    alike: dict[str, list[Method]] = defaultdict(list)
    for method in group.methods:
        if _is_number(method.result.settings.get(key)):
            alike[json.dumps(_others(method, key), sort_keys=True, default=str)].append(method)
    lines = [
        sorted(methods, key=lambda method: float(method.result.settings[key]))
        for methods in alike.values()
        if len({method.result.settings[key] for method in methods}) >= _LEAST_POINTS
    ]
    if not lines:
        return None
    values = [float(method.result.settings[key]) for line in lines for method in line]
    label = key.replace("_", " ")
    spec = {
        "kind": "lines",
        "dots": True,
        "x": number_axis(label, values),
        "y": axis("accuracy", format="percent"),
        "series": [
            series(
                name,
                [method.result.settings[key] for method in line],
                [method.row["accuracy"] for method in line],
                low=[method.row["low"] for method in line],
                high=[method.row["high"] for method in line],
                strong=True,
            )
            for name, line in zip(_names(key, lines), lines, strict=True)
        ],
    }
    return Chart(
        f"Accuracy by {label}{group.suffix}",
        spec,
        "Methods of the table that differ in nothing else; the band is the 95 % interval over "
        "test images.",
    )


def _names(key: str, lines: list[list[Method]]) -> list[str]:
    """Name each line by its method and by the settings in which the lines differ."""
    others = [_others(line[0], key) for line in lines]
    told = [k for k in others[0] if len({str(other.get(k)) for other in others}) > 1]
    return [
        ", ".join([other["method"], *(f"{k} {other.get(k)}" for k in told if k != "method")])
        for other in others
    ]


def _others(method: Method, key: str) -> dict[str, Any]:
    settings = method.result.settings
    others = {k: v for k, v in settings.items() if k not in _NO_SETTING and k != key}
    return {"method": method.result.method, "features": method.row["features"], **others}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
