"""Outliers: images that are far from their nearest neighbours in feature space.

The distance to a near neighbour on the unit sphere detects out-of-distribution images better than
the distance to the means of classes (Sun, Ming, Zhu and Li 2022, ICML, "Out-of-distribution
detection with deep nearest neighbors").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

_NEIGHBOUR = 5  # the first ones may be copies, or other images of the same odd kind
_FEWEST = 20  # images, below which nothing is usual
_COMPARED = 10_000  # images with which all others are compared
_BEYOND = 5.0  # of 100,000 normally distributed distances, 37 are that far from the median
_BLOCK = 4096

Rows = NDArray[np.int64]


def isolated(
    rows: Rows, features_of: Callable[[Rows], NDArray[np.floating]], seed: int = 0
) -> tuple[Rows, NDArray[np.float32]]:
    """Return which images are far from all others, and their distances.

    An image is far if its distance to the fifth nearest image exceeds the median of all distances
    by more than five times the difference between upper quartile and median. If there are more than
    10,000 images, all are compared with 10,000 of them, drawn at random.

    Parameters
    ----------
    rows : ndarray
        Numbers of the images that take part; each image should occur once.
    features_of : callable
        Returns the features (k, d) of some of them.

    Returns
    -------
    far : ndarray
        The rows of these images.
    distances : ndarray
        Of each, one minus the cosine: 0 to 2.
    """
    n = len(rows)
    if n < _FEWEST:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:_COMPARED])
    position = np.full(n, -1)
    position[drawn] = np.arange(len(drawn))
    compared, distance = _unit(features_of(rows[drawn])), np.empty(n, np.float32)
    for block in gen_batches(n, _BLOCK):
        cosines, own = _unit(features_of(rows[block])) @ compared.T, position[block]
        known = np.flatnonzero(own >= 0)
        cosines[known, own[known]] = -np.inf
        distance[block] = 1 - np.partition(cosines, -_NEIGHBOUR, axis=1)[:, -_NEIGHBOUR]
    median, upper = np.quantile(distance, [0.5, 0.75])
    limit = median + _BEYOND * (upper - median) if upper > median else np.inf
    far = np.flatnonzero(distance > limit)
    return rows[far], distance[far]


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    vectors = np.asarray(rows, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / length.clip(np.finfo(np.float32).tiny), np.float32)
