"""What cannot be learned is refused before the first batch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import FitError, UsageError


def check_training(labels: NDArray[np.int64], outputs: int, rate: float, batch_size: int) -> None:
    """Refuse rows, a head, a learning rate or a batch size that do not fit together.

    Parameters
    ----------
    labels : ndarray of shape (n,), int64
        Classes of the rows that train.
    outputs : int
        Outputs of the head.
    rate : float
        Learning rate.
    batch_size : int

    Raises
    ------
    FitError
        If the rows have a single class, or one that the head does not have.
    UsageError
        If the learning rate is not above zero, or a batch is larger than all rows.
    """
    if labels.min() < 0 or labels.max() >= outputs:
        raise FitError(
            "The head has another number of classes than the rows.",
            expected=f"labels from 0 to {outputs - 1}",
            got=f"{labels.min()} to {labels.max()}",
        )
    if len(np.unique(labels)) < 2:
        raise FitError(
            "A head needs training rows of at least two classes.", got=f"class {labels[0]} only"
        )
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError("The learning rate must be above zero.", got=rate)
    if not 1 <= batch_size <= len(labels):
        raise UsageError(
            "The batch is larger than the training rows.",
            expected=f"--batch-size up to {len(labels)}",
            got=batch_size,
        )
