"""How to get the same again: commands, recipes, settings, versions, hardware, fingerprints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from featpipe.report.data import Method, ReportData
from featpipe.report.render import MISSING, render
from featpipe.report.sections import Content, Section


class Provenance(Section):
    """The end of the page.

    Parameters
    ----------
    folder : str
        Name of the folder with the tables.
    files : sequence of str
        The tables in it.
    """

    name = "provenance"
    title = "How to get the same again"

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        self.folder, self.files = folder, files

    def content(self, data: ReportData) -> Content:
        """Return the commands and recipes, and what identifies each result."""
        stores = [s["run"].get("command", "") for m in data.methods for s in m.result.stores]
        commands = [*stores, *(method.result.command for method in data.methods)]
        recipes = recipes_of(data)
        made_by = data.context.recipe
        html = render(
            "provenance.html.j2",
            commands=[line for line in dict.fromkeys(commands) if line],
            recipes=[(recipe.get("name", ""), _yaml(recipe)) for recipe in recipes],
            names=list(dict.fromkeys(str(r["name"]) for r in recipes if r.get("name"))),
            made_by=made_by and made_by.get("name"),
            folder=self.folder,
            files=self.files,
            methods=[
                (group.label, method, facts(method), step(method))
                for group in data.groups
                for method in group.methods
            ],
        )
        return Content(html)


def recipes_of(data: ReportData) -> list[dict[str, Any]]:
    """Return the recipes that the results come from, each once whatever its tasks."""
    found: list[dict[str, Any]] = []
    for method in data.methods:
        recipe = dict(method.result.extra.get("recipe") or {})
        recipe.pop("task", None)
        if recipe and recipe not in found:
            found.append(recipe)
    return found


def step(method: Method) -> str:
    """Return the settings of a method as YAML, as a recipe's step takes them."""
    given = {key: value for key, value in method.result.settings.items() if value is not None}
    return _yaml({method.result.method: given})


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def facts(method: Method) -> list[tuple[str, str]]:
    """Return name and value of everything that identifies a result."""
    result, machine = method.result, method.result.environment
    seed = result.settings.get("seed")
    rows = [
        ("Run on", result.created),
        ("Command", result.command or "not recorded (made from Python)"),
        ("Protocol", _listed(result.protocol)),
        ("Seed", MISSING if seed is None else str(seed)),
        ("Result", f"{result.name}, key {result.key[:16]}"),
        ("Test images", _images(result.dataset["test"])),
    ]
    for store in result.stores:
        manifest = store["manifest"]
        backbone, split = manifest.get("backbone", {}), manifest["dataset"]["split"]
        features = (
            f"{backbone.get('model', '?')} {store['layer']}, store {store['fingerprint'][:16]}, "
            f"made {store['run'].get('created', '?')}"
        )
        rows.append((f"Features of {split}", features))
        if "weights" in backbone:
            rows.append((f"Weights ({split})", _listed(backbone["weights"])))
        rows.append((f"Images of {split}", _images(manifest["dataset"])))
    if network := result.extra.get("network"):
        rows.append(("Network", f"{network['model']}, weights {_listed(network['weights'])}"))
    if label_map := result.extra.get("label_map"):
        rows.append(("Label map", f"{label_map['name']}, {label_map['fingerprint'][:16]}"))
    packages = _listed(machine.get("packages", {}))
    hardware = {k: v for k, v in machine.items() if k not in ("packages", "python")}
    return [
        *rows,
        ("Versions", f"Python {machine.get('python', '?')}, {packages}"),
        ("Hardware", _listed(hardware)),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, ""))


def _images(dataset: Mapping[str, Any]) -> str:
    return (
        f"{dataset['name']} {dataset['split']}, {dataset['images']} images, "
        f"fingerprint {dataset['fingerprint'][:16]}"
    )
