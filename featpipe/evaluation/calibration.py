"""Calibrated probabilities for the answers of any classifier.

Scores, or the logarithms of probabilities, are divided by a temperature T and go through a softmax
(Guo et al. 2017, "On calibration of modern neural networks", section 4.2). T minimises the log loss
of held-out training rows under models with the same settings. The answers do not change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from featpipe.evaluation.classifier import as_logits, predict_with_scores
from featpipe.evaluation.fitting import training_rows
from featpipe.evaluation.protocol import Split, StoredRows, validation_folds
from featpipe.probes.base import Probe

_WIDEST = 12.0  # of the logarithm of T, both ways


def calibrate(split: Split, probe: Probe, chosen: dict[str, Any], jobs: int) -> dict[str, Any]:
    """Find the temperature of a probe on the training rows of a split.

    ``chosen`` is the result's record of what was chosen on these rows. Returned are ``temperature``
    with the number of ``rows`` it is fitted on and their ``log_loss``, or the ``reason`` why there
    is none.
    """
    y = split.train.labels
    if (parts := validation_folds("auto", y, split.train.groups, probe.seed)) is None:
        return {"reason": "a class has too few training rows to hold some out"}
    X, (folds, on) = training_rows(split, probe), parts
    if isinstance(X, StoredRows):
        return {"reason": "the training rows do not fit into memory"}
    strategy = probe.strategy(*X.shape)
    value = next((v for v in probe.candidates() if {**chosen, **probe.recorded(v)} == chosen), None)
    known, n_classes, logits, truth = np.unique(y), len(split.train.store.classes), [], []
    with threadpool_limits(1):
        for train, held_out in folds:
            try:
                estimator, _ = strategy.fit(X[train], y[train], value, jobs)
                _, scores, graded = predict_with_scores(estimator, X[held_out], n_classes)
            except ValueError as error:  # more neighbours than rows, for example
                return {"reason": f"a part of the training rows is not enough: {error}"}
            if scores is None:
                return {"reason": "the classifier gives no scores"}
            logits.append(as_logits(scores[:, known], graded=graded))
            truth.append(np.searchsorted(known, y[held_out]))
    temperature, loss = fit_temperature(np.concatenate(logits), np.concatenate(truth))
    return {"temperature": temperature, "log_loss": loss, "rows": sum(map(len, truth)), "on": on}


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Return the temperature with the least log loss, and that loss in nats per row.

    Examples
    --------
    >>> logits = np.array([[2.0, 0.0]] * 4)  # right three times in four: log 3 would be
    >>> temperature, _ = fit_temperature(logits, np.array([0, 0, 0, 1]))
    >>> bool(abs(2 / temperature - np.log(3)) < 1e-3)
    True
    """
    scale = float(np.abs(logits).max()) or 1.0

    def loss(log_t: float) -> float:
        scaled = logits / (scale * np.exp(log_t))
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(truth)), truth]))

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded")
    return scale * float(np.exp(found.x)), float(found.fun)
