"""Rows of a store as batches for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch.utils.data import Dataset

from featpipe.errors import FitError


class StoreRows:
    """Some rows of a memory-mapped array, without a copy.

    Parameters
    ----------
    array : ndarray of shape (n, ...)
    rows : ndarray of shape (m,), int64
    """

    def __init__(self, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.array = array
        self.rows = np.asarray(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows together."""
        return (len(self.rows), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[Any]:
        return self.array[self.rows[places]]


class ActivationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Batches of stored activations, or of images that are augmented on the way.

    Parameters
    ----------
    X : array-like of shape (n, ...) or (n, views, ...)
    y : array-like of shape (n,), optional
    places : ndarray of int64, optional
        Which of the rows; default: all.
    views : int
        Stored augmented views per image; the first entry of the axis is the image as it is.
    augment : callable, optional
        Changes a batch of uint8 images at random.
    training : bool
        Whether views are drawn and images augmented.
    """

    def __init__(
        self,
        X: Any,
        y: ArrayLike | None = None,
        places: NDArray[np.int64] | None = None,
        *,
        views: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
    ) -> None:
        self.X = X
        self.y = np.zeros(len(X), np.int64) if y is None else np.asarray(y, np.int64)
        self.places = np.arange(len(X)) if places is None else places
        self.views = views
        self.augment = augment
        self.training = training

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        values, labels = self.__getitems__([index])
        return values[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch at once: one look into the store instead of one per row."""
        places = self.places[indices]
        values = np.asarray(self.X[places])
        if self.views:
            values = values[np.arange(len(values)), self._draw_views(len(values))]
        batch = torch.from_numpy(values)
        if self.training and self.augment is not None:
            batch = self.augment(batch)
        return batch, torch.from_numpy(self.y[places])

    def _draw_views(self, count: int) -> NDArray[np.int64]:
        if not self.training:
            return np.zeros(count, np.int64)
        return torch.randint(1, self.views + 1, (count,)).numpy()

    def part(self, places: NDArray[np.int64]) -> ActivationDataset:
        """Return some of these rows."""
        return self._with(self.places[places], self.training)

    def in_mode(self, *, training: bool) -> ActivationDataset:
        """Return the same rows for training, or as they are."""
        return self._with(self.places, training)

    def _with(self, places: NDArray[np.int64], training: bool) -> ActivationDataset:
        return ActivationDataset(
            self.X, self.y, places, views=self.views, augment=self.augment, training=training
        )


class HoldOut:
    """Splits training rows into those that train and those that choose the epoch.

    Parameters
    ----------
    share : float
        Share of the rows that are held out, the same share of every class.
    seed : int
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share = share
        self.seed = seed

    def __call__(self, dataset: ActivationDataset) -> tuple[ActivationDataset, ActivationDataset]:
        """Return the training and the validation part.

        Raises
        ------
        FitError
            If some class has a single row, so that none of it can be held out.
        """
        labels = dataset.y[dataset.places]
        n_classes = len(np.unique(labels))
        n_valid = max(round(self.share * len(labels)), n_classes)
        least = int(np.unique(labels, return_counts=True)[1].min())
        if least < 2 or len(labels) - n_valid < n_classes:
            raise FitError(
                "There are too few training rows to hold some out for validation.",
                got=f"{len(labels)} rows, {least} of the rarest class",
                next_step="train a fixed number of epochs: --validation 0",
            )
        splitter = StratifiedShuffleSplit(1, test_size=n_valid, random_state=self.seed)
        train, valid = next(splitter.split(labels, labels))
        return dataset.part(np.sort(train)), dataset.part(np.sort(valid))
