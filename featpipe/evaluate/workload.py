"""What a fit asks for: rows that can be fitted, memory, and whether worker processes pay off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import psutil

from featpipe.errors import FitError, UsageError
from featpipe.evaluate.protocol import RowSet, Split
from featpipe.evaluate.validation import validation_rows
from featpipe.probes import Probe

# A fit of a linear classifier took 0.2 to 0.3 µs per number in its rows (800 × 512 features, mean
# over the grid, one 2.5 GHz core); starting workers that import scikit-learn takes seconds.
_SECONDS_PER_VALUE = 2.5e-7
_WORTH_WORKERS_SECONDS = 10.0


@dataclass(frozen=True)
class FitSettings:
    """How a probe is fitted, whatever the split.

    Parameters
    ----------
    layer : str or None
        Stored layer to use.
    validation : str
        ``"auto"``, ``"holdout:F"`` or ``"kfold:K"``.
    seed : int
    jobs : int
        Worker processes; never changes a number.
    """

    layer: str | None = None
    validation: str = "auto"
    seed: int = 0
    jobs: int = 1


def check_rows(split: Split) -> None:
    """Refuse rows that no classifier can honestly be trained or tested on.

    Raises
    ------
    FitError
        If there are no test rows, training rows of fewer than two classes, or the two have
        different classes.
    """
    store = split.train.store
    if not len(split.test):
        raise FitError(f"{split.name}: there is no labelled test row.", where=split.test.store.path)
    if split.test.store.classes != store.classes:
        raise FitError(
            "The training and the test store have different classes.",
            where=split.test.store.path,
            expected=", ".join(store.classes[:8]),
            got=", ".join(split.test.store.classes[:8]),
        )
    found = np.unique(split.train.labels)
    if len(found) < 2:
        raise FitError(
            f"{split.name}: a classifier needs training rows of at least two classes.",
            where=store.path,
            got=", ".join(store.classes[c] for c in found) or "no labelled row",
        )


def check_split(split: Split, probe: Probe, layer: str | None = None) -> None:
    """Refuse rows that a probe cannot honestly be trained or tested on.

    Raises
    ------
    FitError
        If there are no test rows, training rows of fewer than two classes, fewer of them than the
        probe needs, or the two have different classes or features.
    """
    check_rows(split)
    store = split.train.store
    if _row_shape(split.train, layer) != _row_shape(split.test, layer):
        raise FitError(
            "The training and the test rows have different features.",
            where=split.test.store.path,
            expected=f"shape {_row_shape(split.train, layer)} per image",
            got=f"shape {_row_shape(split.test, layer)} per image",
        )
    if probe.parameter is not None and not probe.admissible(probe.default, len(split.train)):
        raise FitError(
            f"{split.name}: {probe.parameter}={probe.default} needs as many training rows.",
            where=store.path,
            got=f"{len(split.train)} training rows",
            next_step=f"--{probe.parameter} with a smaller value",
        )


def workers_for(splits: Sequence[Split], probe: Probe, settings: FitSettings) -> int:
    """Return how many processes to use: one where starting more costs more than it saves.

    Raises
    ------
    UsageError
        If ``jobs`` is 0.
    """
    if settings.jobs == 0:
        raise UsageError("--jobs cannot be 0.", expected="-1 (one per core), or 1 and more")
    values = sum(len(split.train) * n_fits(split, probe, settings) for split in splits) * _width(
        splits[0], settings
    )
    solvers = len(splits[0].train.store.classes) if probe.cost.once_per_class else 1
    if values * solvers * _SECONDS_PER_VALUE < _WORTH_WORKERS_SECONDS:
        return 1
    return joblib.effective_n_jobs(settings.jobs)


def n_fits(split: Split, probe: Probe, settings: FitSettings) -> int:
    """Return how often a probe is fitted on one split: once per grid point and fold, and refit."""
    if probe.parameter is None or len(probe.values) < 2:
        return 1
    labels = split.train.labels
    cv = validation_rows(settings.validation, labels, settings.seed)
    return 1 if cv is None else len(probe.values) * cv.get_n_splits(labels, labels) + 1


def check_memory(
    splits: Sequence[Split], probe: Probe, settings: FitSettings, workers: int
) -> None:
    """Refuse a fit that would not fit into memory, before it starts.

    Raises
    ------
    FitError
        Saying what needs less.
    """
    largest, width = max(len(split.train) for split in splits), _width(splits[0], settings)
    alone = largest * width * probe.cost.bytes_per_value
    available = psutil.virtual_memory().available
    if alone * workers <= available:
        return
    fewer = int(available // alone)
    raise FitError(
        "This fit would not fit into memory.",
        expected=f"at most {available / 1e9:.1f} GB",
        got=f"{alone * workers / 1e9:.1f} GB for {largest} training rows of {width} features"
        f" in {workers} {'process' if workers == 1 else 'processes'}",
        next_step=f"--jobs {fewer}"
        if fewer
        else "--train-per-class N, a layer with fewer features"
        + ("" if probe.cost.bytes_per_value <= 12 else ", or featpipe centroid, which needs less"),
    )


def _width(split: Split, settings: FitSettings) -> int:
    return int(np.prod(_row_shape(split.train, settings.layer)))


def _row_shape(rows: RowSet, layer: str | None) -> tuple[int, ...]:
    return rows.store.features(layer).shape[1:]
