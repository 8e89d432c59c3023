"""Fit one probe on one split: choose on training rows, refit on all of them, test once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from featpipe.evaluate.protocol import Split
from featpipe.evaluate.validation import describe, validation_rows
from featpipe.evaluate.workload import FitSettings, check_memory, check_split, workers_for
from featpipe.probes import Probe
from featpipe.probes.probe import converged

__all__ = ["FitSettings", "FittedSplit", "fit_split", "fit_splits", "predict_with_scores"]


@dataclass(frozen=True)
class FittedSplit:
    """What came out of one split.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted on all training rows.
    predicted : ndarray of shape (n_test,), int64
    scores : ndarray of shape (n_test, n_classes) or None
        Decision values or probabilities, one column per class of the dataset.
    probabilities : bool
        Whether the scores are probabilities.
    chosen : dict
        Chosen hyper-parameters, and how they were chosen.
    search : list of dict
        One entry per grid point: value, validation accuracy, convergence.
    converged : bool
    seconds : dict of str to float
    """

    estimator: BaseEstimator
    predicted: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    probabilities: bool
    chosen: dict[str, Any]
    search: list[dict[str, Any]]
    converged: bool
    seconds: dict[str, float]


def fit_splits(
    splits: Sequence[Split], probe: Probe, settings: FitSettings
) -> Iterator[FittedSplit]:
    """Fit a probe on every split, in parallel over splits or, for a single one, over its grid.

    Results do not depend on ``jobs``: every worker computes with one thread, because the order
    in which threads add floats would otherwise show in the last digits.

    Yields
    ------
    fitted : FittedSplit
        One per split, in their order, as soon as it is done.

    Raises
    ------
    FitError
        If the rows cannot train or test the probe, or memory does not suffice.
    """
    for split in splits:
        check_split(split, probe, settings.layer)
    workers = workers_for(splits, probe, settings)
    check_memory(splits, probe, settings, workers)
    if len(splits) == 1 or workers == 1:
        inside = replace(settings, jobs=workers)
        yield from (fit_split(split, probe, inside) for split in splits)
        return
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(return_as="generator")
    alone = replace(settings, jobs=1)
    yield from parallel(joblib.delayed(fit_split)(split, probe, alone) for split in splits)


def fit_split(split: Split, probe: Probe, settings: FitSettings) -> FittedSplit:
    """Choose the hyper-parameter on training rows, refit on all of them, predict the test rows."""
    X, y = split.train.features(settings.layer), split.train.labels
    with (
        threadpool_limits(1),
        joblib.parallel_config("loky", n_jobs=settings.jobs, inner_max_num_threads=1),
    ):
        start = time.perf_counter()
        value, chosen, search = _choose(X, y, probe, settings)
        searched = time.perf_counter()
        estimator = probe.sized(*X.shape)
        if probe.parameter is not None:
            estimator.set_params(**{probe.path: value})
        done = _fit(estimator, X, y)
        fitted = time.perf_counter()
        predicted, scores, probabilities = predict_with_scores(
            estimator, split.test.features(settings.layer), len(split.train.store.classes)
        )
        tested = time.perf_counter()
    return FittedSplit(
        estimator,
        predicted,
        scores,
        probabilities,
        chosen,
        search,
        done,
        {"search": searched - start, "fit": fitted - searched, "predict": tested - fitted},
    )


def _fit(estimator: BaseEstimator, X: NDArray[np.float32], y: NDArray[np.int64]) -> bool:
    """Fit, and return whether every solver converged.

    L-BFGS may give up before its limit of iterations; then only a warning says so.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(X, y)
    gave_up = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in gave_up:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return converged(estimator) and not gave_up


def _choose(
    X: NDArray[np.float32], y: NDArray[np.int64], probe: Probe, settings: FitSettings
) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Return the best grid value, how it was chosen, and the score of every grid point."""
    if probe.parameter is None:
        return None, {}, []
    if len(probe.values) == 1:
        return probe.values[0], {probe.parameter: probe.values[0], "by": "given"}, []
    cv = validation_rows(settings.validation, y, settings.seed)
    if cv is None:
        how = "default: too few rows per class to choose"
        return probe.default, {probe.parameter: probe.default, "by": how}, []
    parts = cv.split(y, y)
    values = probe.grid(min(len(train) for train, _ in parts))
    if not values:
        how = "default: too few rows for the other values"
        return probe.default, {probe.parameter: probe.default, "by": how}, []
    with warnings.catch_warnings():  # what did not converge stands in the table of the search
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = GridSearchCV(
            probe.sized(*X.shape),
            {probe.path: values},
            cv=cv,
            scoring=_score,
            refit=False,
            error_score="raise",
        ).fit(X, y)
    accuracies = search.cv_results_["mean_test_accuracy"]
    best = int(np.argmax(accuracies))  # the first of the best: most regularised
    rows = [
        {
            probe.parameter: value,
            "accuracy": float(accuracies[i]),
            "converged": bool(search.cv_results_["mean_test_converged"][i] == 1),
        }
        for i, value in enumerate(values)
    ]
    chosen = {
        probe.parameter: values[best],
        "by": f"accuracy on {describe(cv)} of the training rows",
        **({"at_edge": True} if probe.open_ended and _at_edge(accuracies, best) else {}),
    }
    return values[best], chosen, rows


def _at_edge(accuracies: NDArray[np.float64], best: int) -> bool:
    """Return whether accuracy was still rising where the grid ends; a plateau is no edge."""
    last = len(accuracies) - 1
    if best == 0:
        return last > 0 and bool(accuracies[0] > accuracies[1])
    return best == last


def _score(estimator: BaseEstimator, X: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """Score a grid point: validation accuracy, and whether its solver converged."""
    return {"accuracy": estimator.score(X, y), "converged": float(converged(estimator))}


def predict_with_scores(
    estimator: BaseEstimator, X: NDArray[Any], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, bool]:
    """Return predictions, a score for every class of the dataset, and whether it is a probability.

    Classes that no training row had get the lowest score there is, or probability zero.
    """
    predicted = estimator.predict(X).astype(np.int64)
    probabilities = hasattr(estimator, "predict_proba")
    if probabilities:
        known = estimator.predict_proba(X)
    elif hasattr(estimator, "decision_function"):
        known = estimator.decision_function(X)
        if known.ndim == 1:  # scikit-learn gives one column for two classes
            known = np.column_stack([-known, known])
    else:
        return predicted, None, False
    lowest = 0.0 if probabilities else float(known.min()) - 1.0
    scores = np.full((len(known), n_classes), lowest, dtype=np.float32)
    scores[:, estimator.classes_] = known
    return predicted, scores, probabilities
