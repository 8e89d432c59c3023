"""Rows of a store as batches for training, and rows held out to choose the epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch.utils.data import Dataset

from featpipe.errors import FitError


@dataclass(frozen=True, eq=False)
class RowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of an array, which may be memory-mapped; images are augmented on the way.

    Parameters
    ----------
    X : array-like of shape (n, ...)
        Activations, or uint8 images.
    y : ndarray of shape (n,), int64
    rows : ndarray of shape (m,), int64
        Which of them.
    augment : callable, optional
        Changes a batch of uint8 images at random.
    training : bool
        Whether it does.
    """

    X: Any
    y: NDArray[np.int64]
    rows: NDArray[np.int64]
    augment: Callable[[Tensor], Tensor] | None = None
    training: bool = False

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the rows, of shape (m,)."""
        return self.y[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch at once: one look into the store instead of one per row."""
        rows = self.rows[indices]
        batch = torch.from_numpy(np.asarray(self.X[rows]))
        if self.training and self.augment is not None:
            batch = self.augment(batch)
        return batch, torch.from_numpy(self.y[rows])


def hold_out(rows: RowBatches, share: float, seed: int) -> tuple[RowBatches, RowBatches]:
    """Split rows into those that train and those that choose the epoch.

    Parameters
    ----------
    rows : RowBatches
    share : float
        Share of the rows that are held out, the same share of every class.
    seed : int

    Raises
    ------
    FitError
        If some class has a single row, so that none of it can be held out.
    """
    labels = rows.labels
    counts = np.unique(labels, return_counts=True)[1]
    n_valid = max(round(share * len(labels)), len(counts))
    if counts.min() < 2 or len(labels) - n_valid < len(counts):
        raise FitError(
            "There are too few training rows to hold some out for validation.",
            got=f"{len(labels)} rows, {counts.min()} of the rarest class",
            next_step="train a fixed number of epochs: --validation 0",
        )
    splitter = StratifiedShuffleSplit(1, test_size=n_valid, random_state=seed)
    train, valid = next(splitter.split(labels, labels))
    return (
        replace(rows, rows=rows.rows[np.sort(train)]),
        replace(rows, rows=rows.rows[np.sort(valid)]),
    )
