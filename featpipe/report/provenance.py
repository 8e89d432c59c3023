"""How to get the same again: commands, settings, versions, hardware, fingerprints."""

from __future__ import annotations

from typing import Any

import yaml

from featpipe.report.formats import number
from featpipe.report.material import Material, Method


def commands(material: Material) -> list[str]:
    """Return the commands that made the results, stores first, each once."""
    stores = [s["run"].get("command", "") for m in material.methods for s in m.result.stores]
    methods = [method.result.command for method in material.methods]
    return [line for line in dict.fromkeys([*stores, *methods]) if line]


def recipes(material: Material) -> list[str]:
    """Return the recipes that results came from, as YAML, each once whatever its tasks."""
    found = [method.result.extra.get("recipe") for method in material.methods]
    texts = [
        yaml.safe_dump(
            {key: value for key, value in recipe.items() if key != "task"},
            sort_keys=False,
            allow_unicode=True,
        )
        for recipe in found
        if recipe
    ]
    return list(dict.fromkeys(texts))


def step(method: Method) -> str:
    """Return the settings of a method as YAML, as a recipe's step takes them."""
    given = {key: value for key, value in method.result.settings.items() if value is not None}
    return yaml.safe_dump({method.result.method: given}, sort_keys=False, allow_unicode=True)


def facts(method: Method) -> list[tuple[str, str]]:
    """Return name and value of everything that identifies a result."""
    result = method.result
    rows = [
        ("Run on", result.created),
        ("Command", result.command or "not recorded (made from Python)"),
        ("Protocol", ", ".join(f"{k} {v}" for k, v in result.protocol.items())),
        ("Seed", number(result.settings.get("seed"))),
        ("Result", f"{result.name}, key {result.key[:16]}"),
        ("Test images", _dataset(result.dataset["test"])),
    ]
    for store in result.stores:
        rows += _store(store)
    network = result.extra.get("network")
    if network:
        rows.append(("Network", f"{network['model']}, weights {_weights(network)}"))
    label_map = result.extra.get("label_map")
    if label_map:
        rows.append(("Label map", f"{label_map['name']}, {label_map['fingerprint'][:16]}"))
    machine = result.environment
    packages = ", ".join(f"{k} {v}" for k, v in machine.get("packages", {}).items())
    hardware = [f"{k} {v}" for k, v in machine.items() if k not in ("packages", "python")]
    return [
        *rows,
        ("Versions", f"Python {machine.get('python', '?')}, {packages}"),
        ("Hardware", ", ".join(hardware)),
    ]


def _store(store: dict[str, Any]) -> list[tuple[str, str]]:
    manifest = store["manifest"]
    backbone = manifest.get("backbone", {})
    split = manifest["dataset"]["split"]
    rows = [
        (
            f"Features of {split}",
            f"{backbone.get('model', '?')} {store['layer']}, store {store['fingerprint'][:16]}, "
            f"made {store['run'].get('created', '?')}",
        ),
        (f"Images of {split}", _dataset(manifest["dataset"])),
    ]
    if "weights" in backbone:
        rows.insert(1, (f"Weights ({split})", _weights(backbone)))
    return rows


def _weights(backbone: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in backbone["weights"].items() if value)


def _dataset(dataset: dict[str, Any]) -> str:
    return (
        f"{dataset['name']} {dataset['split']}, {dataset['images']} images, "
        f"fingerprint {dataset['fingerprint'][:16]}"
    )
