"""Images that are like no others: how far each is from its neighbours in feature space.

The distance to a near neighbour on the unit sphere tells images of another kind better than one to
the means of classes (Sun, Ming, Zhu and Li 2022, ICML, "Out-of-distribution detection with deep
nearest neighbors").
"""

from __future__ import annotations

from collections.abc import Sequence

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
    features: Sequence[NDArray[np.floating]], rows: Sequence[Rows], seed: int = 0
) -> tuple[Rows, NDArray[np.float32]]:
    """Return which images are far from all others, and their distances.

    An image is far if its distance to the fifth nearest image exceeds the median of all by more
    than five times what lies between median and upper quartile. Of more than 10,000 images, only so
    many, drawn at random, are compared with all.

    Parameters
    ----------
    features : sequence of ndarray
        Of each split, (n, d).
    rows : sequence of ndarray
        Which of them take part; each image should occur once.

    Returns
    -------
    places : ndarray
        Positions in the joined ``rows``.
    distances : ndarray
        One minus the cosine, 0 to 2, of these.
    """
    sizes = [len(some) for some in rows]
    n = sum(sizes)
    if n < _FEWEST:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    first = np.cumsum([0, *sizes])
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:_COMPARED])
    place = np.full(n, -1)
    place[drawn] = np.arange(len(drawn))
    units = []
    for number, each in enumerate(features):
        here = drawn[(drawn >= first[number]) & (drawn < first[number + 1])] - first[number]
        units.append(_unit(each[rows[number][here]]))
    compared, distance = np.concatenate(units), np.empty(n, np.float32)
    for number, each in enumerate(features):
        for block in gen_batches(sizes[number], _BLOCK):
            cosines = _unit(each[rows[number][block]]) @ compared.T
            own = place[first[number] + block.start : first[number] + block.stop]
            known = np.flatnonzero(own >= 0)
            cosines[known, own[known]] = -np.inf
            near = np.partition(cosines, -_NEIGHBOUR, axis=1)[:, -_NEIGHBOUR]
            distance[first[number] + block.start : first[number] + block.stop] = 1 - near
    median, upper = np.quantile(distance, [0.5, 0.75])
    limit = median + _BEYOND * (upper - median) if upper > median else np.inf
    far = np.flatnonzero(distance > limit)
    return far, distance[far]


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    vectors = np.asarray(rows, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / length.clip(np.finfo(np.float32).tiny), np.float32)
