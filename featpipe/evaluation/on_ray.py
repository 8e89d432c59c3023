"""Fits on a Ray cluster; the object store of each node holds the features once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import joblib
import numpy as np
from numpy.typing import NDArray

from featpipe import cluster
from featpipe.cluster import ray
from featpipe.errors import ClusterError
from featpipe.evaluation.protocol import RowSet, Split
from featpipe.lazy import Lazy
from featpipe.probes.base import Probe
from featpipe.progress import Progress
from featpipe.store import FeatureStore

ray_joblib = Lazy("ray.util.joblib")
T = TypeVar("T")
_SHARE = 0.8  # of an object store, which holds what tasks return as well


def check_room(n_bytes: int) -> None:
    """Refuse features that do not fit into the object store of every node."""
    capacity = _SHARE * min(node.get("object_store_memory", 0) for node in cluster.nodes())
    if n_bytes > capacity:
        raise ClusterError(
            "The features do not fit into the object store of the smallest node.",
            expected=f"at most {capacity / 1e9:.1f} GB",
            got=f"{n_bytes / 1e9:.1f} GB",
            next_step="ray start --object-store-memory=BYTES, or leave out --engine ray: "
            "one machine reads features that are larger than its memory in blocks",
        )


class PlacedArray(np.ndarray[Any, Any]):
    """An array that other processes get by reference: each node holds it once."""

    _reference: Any = None

    @classmethod
    def of(cls, values: NDArray[Any]) -> PlacedArray:
        """Place an array in the object store."""
        check_room(values.nbytes)
        placed = np.asarray(values).view(cls)
        placed._reference = ray.put(np.asarray(values))
        return placed

    def __reduce_ex__(self, protocol: Any) -> Any:
        whole = self._reference is not None  # a part of it has no reference of its own
        return (ray.get, (self._reference,)) if whole else super().__reduce_ex__(protocol)


class PlacedStore(FeatureStore):
    """A store with one layer in the object store, read once and by one process."""

    def __init__(self, store: FeatureStore, layer: str | None) -> None:
        self.__dict__.update(store.__dict__)
        self._placed = PlacedArray.of(np.asarray(store.features(layer)))

    def features(self, layer: str | None = None) -> NDArray[Any]:
        """Return the features of the layer that was placed."""
        return self._placed


def memory_of_nodes() -> float:
    """Return the bytes of memory of the smallest node that has cores."""
    with_cores = [node for node in cluster.nodes() if node.get("CPU")]
    return min((node.get("memory", math.inf) for node in with_cores), default=math.inf)


@contextmanager
def on_cluster(address: str, progress: Progress) -> Iterator[None]:
    """Have joblib work on the cluster."""
    with cluster.joined(address, progress), cluster.translate_ray_errors():
        ray_joblib.register_ray()
        # Ray's pool reports that it ignores joblib's choice between fork and spawn.
        logging.getLogger("ray.util.multiprocessing.pool").setLevel(logging.CRITICAL)
        with joblib.parallel_config("ray", n_jobs=-1):
            yield


def fit_there(fit: Callable[..., T], splits: Sequence[Split], probe: Probe) -> Iterator[T]:
    """Yield what ``fit(split, probe, 1)`` returns for each split, fitted on the cluster."""
    stores = dict.fromkeys(part.store for split in splits for part in (split.train, split.test))
    layers = [store.features(probe.layer) for store in stores]
    check_room(sum(math.prod(layer.shape) * layer.dtype.itemsize for layer in layers))
    placed = {store: PlacedStore(store, probe.layer) for store in stores}

    def there(part: RowSet) -> RowSet:
        return replace(part, store=placed[part.store])

    moved = [replace(split, train=there(split.train), test=there(split.test)) for split in splits]
    every = ray.put(moved)  # once, whatever the number of splits
    run = ray.remote(lambda splits, number: fit(splits[number], probe, 1)).options(num_cpus=1)
    for ended in [run.remote(every, number) for number in range(len(splits))]:
        yield ray.get(ended)
