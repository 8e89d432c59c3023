"""What all methods share at the end: their Result, its files, and the line in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featpipe.evaluate.assemble import low_shot_curve, prediction_table, summarise
from featpipe.evaluate.methods import Evaluated
from featpipe.provenance import environment, now
from featpipe.results import PredictionTable, Result
from featpipe.steps.old import Context, Outcome, Step
from featpipe.store import FeatureStore


def build_result(
    step: Step, key: str, protocol: str, evaluated: Evaluated, context: Context
) -> tuple[Result, PredictionTable]:
    """Make the Result of a method, with the predictions that lie beside it.

    Parameters
    ----------
    step : Step
        The method with its settings; a ``title`` or ``layer`` among them is used.
    key : str
        Fingerprint of what the numbers follow from.
    protocol : str
        How rows were split.
    evaluated : Evaluated
        What the method answered on each split.
    context : Context
    """
    settings = step.settings()
    table = prediction_table(evaluated.tested)
    first = evaluated.tested[0].split
    stores = list({s.path: s for s in (first.train.store, first.test.store)}.values())
    records = [one.record() for one in evaluated.tested]
    curve = low_shot_curve(records)
    if curve:  # the headline of a low-shot result is its rightmost point
        largest = curve[-1]["train_per_class"]
        kept = [i for i, r in enumerate(records) if r["train_per_class"] == largest]
        table = table.only_splits(kept)
        evaluated.extra["low_shot"] = curve
    if context.recipe is not None:
        evaluated.extra["recipe"] = dict(context.recipe)
    headline = [r for r in records if not curve or r["train_per_class"] == largest]
    classes, other = first.test.store.classes, evaluated.tested[0].other
    manifest = stores[0].manifest
    result = Result(
        method=step.kind,
        title=settings.get("title") or evaluated.title,
        key=key,
        dataset={
            "name": manifest["dataset"]["name"],
            "classes": list(classes),
            "other": other,
            "test": first.test.store.manifest["dataset"],
        },
        settings=settings,
        protocol={"name": protocol, "splits": len(records), "n_test": len(table.ids)},
        splits=records,
        summary=summarise(headline, table, classes, other),
        cost={**evaluated.cost, **_extraction_cost(stores)},
        stores=[
            {
                "path": str(store.path),
                "fingerprint": store.fingerprint,
                "layer": settings.get("layer") or store.layers[0],
                "manifest": store.manifest,
                "run": store.run,
            }
            for store in stores
        ],
        environment=environment(),
        created=now(),
        command=context.command,
        notes=evaluated.notes,
        extra=evaluated.extra,
    )
    return result, table


def _extraction_cost(stores: Sequence[FeatureStore]) -> dict[str, Any]:
    return {
        "extract_seconds": sum(store.run["seconds"] for store in stores),
        "store_bytes": sum(store.n_bytes for store in stores),
    }


def save_result(result: Result, path: Path, table: PredictionTable) -> None:
    """Write the predictions first and the JSON last: a result that exists has all its files."""
    predictions = path.with_name(f"{path.stem}.predictions.npz")
    table.save(predictions)
    result.files["predictions"] = predictions.name
    result.save(path)


def complete_result(path: Path, *models: Path) -> Result | None:
    """Return the result at a path if it, its predictions and its models are all there.

    Raises
    ------
    ResultError
        If the result is damaged.
    """
    if not all(file.exists() for file in (path, *models)):
        return None
    result = Result.load(path)
    return result if path.with_name(result.files["predictions"]).exists() else None


def outcome_of(result: Result, status: str) -> Outcome:
    """Say in the terminal, and as data, what was measured."""
    accuracy = result.summary["accuracy"]
    spread = result.summary["spread"].get("accuracy")
    text = f"{result.title}: accuracy {accuracy['value']:.4f}"
    text += f" [{accuracy['low']:.4f}, {accuracy['high']:.4f}]"
    if spread is not None and spread["sd"] is not None:
        text += f", {spread['mean']:.4f} ± {spread['sd']:.4f} over {spread['n']} models"
    text += f" ({result.protocol['n_test']} test rows, {result.protocol['name']})"
    lines = [f"{status}: {text}", *(f"  note: {note}" for note in result.notes)]
    lines.append(f"  → {result.path}")
    metrics = {k: v for k, v in result.summary["metrics"].items() if k != "per_class"}
    facts = {"title": result.title, "accuracy": accuracy, "spread": spread, "metrics": metrics}
    facts["chosen"] = [split.get("chosen", {}) for split in result.splits]
    return Outcome(status, "\n".join(lines), (result.path,) if result.path else (), facts)
