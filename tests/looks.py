"""Stores that know what their images look like, made of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featpipe.extraction.engine import look_at
from featpipe.store import FeatureStore, StoreWriter
from tests.stores import RUN, content, features


def seen(
    path: Path,
    images: list[np.ndarray],
    labels: np.ndarray | None = None,
    *,
    noise: float = 1.0,
    seed: int = 0,
    arrays: dict[str, np.ndarray] | None = None,
    **more: object,
) -> FeatureStore:
    """Seal a store of images; equal ones have equal features."""
    what = replace(content(len(images), labels=labels, **more), looks=True)
    made = [look_at(image) for image in images]
    looks = {name: np.stack([np.asarray(one[name]) for one in made]) for name in made[0]}
    arrays = arrays or features(what, noise=noise, seed=seed)
    _, first, place = np.unique(
        looks["looks/digest"], axis=0, return_index=True, return_inverse=True
    )
    arrays = {name: values[first[place.ravel()]] for name, values in arrays.items()}
    with StoreWriter(path, what) as writer:
        writer.append(arrays, looks=looks)
        return writer.seal(RUN)


def vectors(n: int, seed: int, classes: int = 3, dims: int = 40, apart: float = 2) -> np.ndarray:
    """Return features in which classes differ and every image is its own."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, dims)) * apart
    return (centres[np.arange(n) % classes] + rng.normal(size=(n, dims))).astype(np.float32)
