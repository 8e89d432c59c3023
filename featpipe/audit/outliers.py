"""Images that are like no others: how far each is from its neighbours in feature space.

The distance to a near neighbour on the unit sphere tells images of another kind better than one to
the means of classes (Sun, Ming, Zhu and Li 2022, ICML, "Out-of-distribution detection with deep
nearest neighbors").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

_NEIGHBOUR = 5  # the first ones may be copies, or other images of the same odd kind
_FEWEST = 20  # images, below which nothing is usual
_COMPARED = 10_000  # images that others are compared with
_BEYOND = 5.0  # of 100,000 normally distributed distances, 37 are so many upper quartiles away
_BLOCK = 4096

Rows = NDArray[np.int64]


def isolated(
    rows: Rows, features_of: Callable[[Rows], NDArray[np.floating]], seed: int = 0
) -> tuple[Rows, NDArray[np.float32]]:
    """Return which images are far from all others, and their distances.

    An image is far if its distance to the fifth nearest image exceeds the median of all by more
    than five times what lies between median and upper quartile. Of more than 10,000 images, only so
    many, drawn at random, are compared with all.

    Parameters
    ----------
    rows : ndarray
        Numbers of those that take part; each image should occur once.
    features_of : callable
        Returns the features (k, d) of some of them.

    Returns
    -------
    far : ndarray
        Those of the rows that are.
    distances : ndarray
        One minus the cosine, 0 to 2, of these.
    """
    n = len(rows)
    if n < _FEWEST:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:_COMPARED])
    place = np.full(n, -1)
    place[drawn] = np.arange(len(drawn))
    compared, distance = _unit(features_of(rows[drawn])), np.empty(n, np.float32)
    for block in gen_batches(n, _BLOCK):
        cosines, own = _unit(features_of(rows[block])) @ compared.T, place[block]
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
