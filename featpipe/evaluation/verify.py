"""Whether a result states what follows from its predictions: all of that is computed again.

A digest shows that a file is not the one that was written, but whoever forges a number can forge
its digest, too. The predictions give the numbers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import ResultError
from featpipe.evaluation.assemble import low_shot_curve, summarise
from featpipe.evaluation.leaks import accuracies
from featpipe.evaluation.metrics import Predictions, classification_metrics
from featpipe.evaluation.result import ChangedResultError, PredictionTable, Result

_ROUNDING = 1e-9  # of another processor or another version of NumPy
_WORDS = {"method", "reason", "reason_methods"}  # which another version may phrase differently
_MOST_NAMED, _LONGEST = 5, 200


def verify_result(path: Path, models: Path) -> Result:
    """Read a result with all its files and compare it with what its predictions give.

    The model, in the folder ``models``, is compared with its digest. A ``ResultError`` names the
    file and, for numbers, what is stated and what the predictions give.
    """
    try:
        result = Result.load(path)
    except ChangedResultError as error:
        refuse_other_numbers(error.result, error.details["next"])
        raise
    refuse_other_numbers(result, "run its command again with --force")
    for kind in {"model", "head"} & result.files.keys():
        result.check_file(kind, models / result.files[kind])
    return result


def refuse_other_numbers(result: Result, next_step: str) -> None:
    """Raise ``ResultError`` if a number of a result is not that of its predictions."""
    table = PredictionTable.load(result.predictions_path)
    try:
        wrong = list(differences(result, table))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = [f"its parts are not those of a result: {type(error).__name__}: {error}"]
    except ResultError as error:
        wrong = [error.what]
    if wrong:
        more = f"; {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        what = "The result states other numbers than its predictions give."
        got = "; ".join(text[:_LONGEST] for text in wrong[:_MOST_NAMED]) + more
        raise ResultError(what, where=result.path, got=got, next_step=next_step)
    result.check_file("predictions", result.predictions_path)


def differences(result: Result, table: PredictionTable) -> Iterator[str]:
    """Yield where a result differs from its predictions: name, stated and computed value.

    The table holds the splits of the headline: of a low-shot curve, those of its largest size. The
    points of the smaller ones are compared with the records of their splits only.
    """
    without = result.extra.get("label_map", {}).get("without_source")
    numbers = np.unique(table.split).tolist()
    headline = [result.splits[number] for number in numbers]

    def named(some: PredictionTable) -> Predictions:
        graded = headline[0]["metrics"].get("brier") is not None  # whether they are probabilities
        classes, other = result.dataset["classes"], bool(result.dataset["other"])
        return Predictions.of_table(some, classes, other=other, probabilities=graded)

    for number, stated in zip(numbers, headline, strict=True):
        one = table.only_splits([number])
        computed = classification_metrics(named(one), without)
        yield from _compare(f"splits[{number}].metrics", stated["metrics"], computed)
        yield from _compare(f"splits[{number}].n_test", stated["n_test"], len(one.row))
    computed = summarise(headline, table, named(table), result.protocol["training"])
    yield from _compare("summary", result.summary, computed)
    yield from _compare("protocol.n_test", result.protocol["n_test"], len(table.ids))
    yield from _compare("protocol.splits", result.protocol["splits"], len(result.splits))
    curve = low_shot_curve(result.splits) or None
    yield from _compare("extra.low_shot", result.extra.get("low_shot"), curve)
    if account := result.extra.get("leaks"):
        leaked = np.isin(table.ids[table.row], account.get("ids", ()))
        found = accuracies(table.correct, table.row, leaked)
        found["leaked"] = len(np.unique(table.row[leaked]))
        found["test_images"] = len(np.unique(table.row))
        for part in {**found, "accuracy_without": None}:
            yield from _compare(f"extra.leaks.{part}", account.get(part), found.get(part))


def _compare(name: str, stated: Any, computed: Any) -> Iterator[str]:
    """Yield where two JSON-like values differ by more than rounding."""
    lists = isinstance(stated, list | tuple) and isinstance(computed, list | tuple)
    if isinstance(stated, dict) and isinstance(computed, dict):
        for key in (k for k in {**computed, **stated} if k not in _WORDS):
            yield from _compare(f"{name}.{key}", stated.get(key), computed.get(key))
    elif lists and len(stated) == len(computed):
        for number, pair in enumerate(zip(stated, computed, strict=True)):
            yield from _compare(f"{name}[{number}]", *pair)
    elif isinstance(stated, float) and isinstance(computed, float | int):
        if not math.isclose(stated, computed, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            yield f"{name}: {stated:g} stated, {computed:g} by the predictions"
    elif stated != computed:
        yield f"{name}: {stated!r} stated, {computed!r} by the predictions"
