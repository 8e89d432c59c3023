"""The rows that are audited: those of several splits of one dataset, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.evaluation.stores import TEST_SPLITS
from featpipe.store import FeatureStore

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows of splits, numbered through; rows without an image take no part."""

    stores: Sequence[FeatureStore]
    layer: str | None

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Number of the first row of each store, and how many there are."""
        return np.cumsum([0, *map(len, self.stores)])

    @cached_property
    def rows_of(self) -> list[Rows]:
        """Numbers of the rows of each store that have an image."""
        return [
            first + np.setdiff1d(np.arange(len(store)), list(store.skipped))
            for first, store in zip(self.offsets, self.stores, strict=False)
        ]

    @cached_property
    def rows(self) -> Rows:
        """Numbers of all rows that have an image."""
        return np.concatenate(self.rows_of)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all rows."""
        return [name for store in self.stores for name in store.ids]

    @cached_property
    def split(self) -> NDArray[np.int64]:
        """Number of the store of each row."""
        return np.repeat(np.arange(len(self.stores)), [len(store) for store in self.stores])

    @cached_property
    def splits(self) -> list[str]:
        """Name of each store's split."""
        return [str(store.manifest["dataset"]["split"]) for store in self.stores]

    @cached_property
    def tests(self) -> NDArray[np.bool_]:
        """Whether each row is there to test; never those of the first store."""
        kinds = [number > 0 and name in TEST_SPLITS for number, name in enumerate(self.splits)]
        return np.array(kinds)[self.split]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of each row; -1: unlabelled, or without an image."""
        found = np.full(len(self.ids), -1, np.int64)
        found[self.rows] = np.concatenate([store.labels for store in self.stores])[self.rows]
        return found

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return next((store.classes for store in self.stores if store.classes), ())

    @property
    def has_looks(self) -> bool:
        """Whether digests and thumbnails of all images are known."""
        return all(store.has_looks for store in self.stores)

    def take(self, rows: Rows, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return some rows of arrays that each belong to a store."""
        found = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number, array in enumerate(arrays):
            here = self.split[rows] == number
            found[here] = array[rows[here] - self.offsets[number]]
        return found

    def looks(self, part: str, rows: Rows) -> NDArray[Any]:
        """Return what some rows look like; see :meth:`FeatureStore.looks`."""
        return self.take(rows, [store.looks(part) for store in self.stores])
