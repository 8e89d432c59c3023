"""Near-duplicates: candidates by features, verified on thumbnails, scored, joined in clusters.

Two images of one shot are more similar to each other than to any other image. Cosines of whitened
features (Jégou and Chum 2012, ECCV, "Negative evidences and co-occurences in image retrieval") and
correlations of thumbnails are therefore measured relative to those with a row's neighbours: 1 for
the same image, 0 for one like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.special import expit, logit

from featpipe.evaluation.screening import components
from featpipe.lazy import Lazy
from featpipe.probes.linear import thread_pool
from featpipe.store import FeatureStore

faiss = Lazy("faiss")

# More are searched approximately if faiss is installed: of 60,000 rows with 256 features, 1.2 % of
# the neighbours were missed, seven times faster; usearch took five times as long as faiss.
EXACT_ROWS = 50_000
_LISTS, _PROBES = 4, 16  # inverted lists for each square root of the rows, and how many are read
NEIGHBOURS = 10  # the cosine of the last one counts as usual
CANDIDATES = 3  # the first of them, in each split, may be duplicates
_USUAL = (4, 7, 9)  # neighbours; the mean correlation of their thumbnails counts as usual
_BURST = 0.9  # pairs more similar than that share of all rows are not used as the baseline
_SOME = 500  # rows from which this is estimated
# The score is a probability: a logistic regression of "people confirmed the pair" on both, over
# 1500 × 5000 images of CIFAR-10 with 143 confirmed pairs (benchmarks/audit.py).
_COSINE, _CORRELATION, _INTERCEPT = 7.0, 8.4, -8.8
THRESHOLD = 0.4  # there: precision 0.92, recall 0.79
_DIMENSIONS = 512  # of the whitened features: half as many find less
_RIDGE = 1e-3  # of the largest variance: smaller ones are noise
_SAMPLE = 50_000  # rows from which the variances are estimated
_SHIFT = 4  # pixels of a thumbnail
_BLOCK = 4096
_PRODUCTS = 1 << 25  # of rows that are in memory at once

Array = NDArray[Any]
Near = tuple[NDArray[np.int64], NDArray[np.float32]]
Thumbnails = Callable[[Array], NDArray[np.uint8]]  # of some rows, (k, side, side)


def whitened(stores: Sequence[FeatureStore], layer: str | None) -> NDArray[np.float32]:
    """Return the rows of stores as unit vectors of their whitened principal components."""
    features = [store.features(layer) for store in stores]
    n, width = sum(map(len, features)), int(np.prod(features[0].shape[1:]))
    step = -(-n // _SAMPLE)
    sample = np.concatenate([np.asarray(each[::step], np.float32) for each in features])
    sample = sample.reshape(len(sample), width)
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample -= mean
    if len(sample) < width:
        _, deviations, spanned = np.linalg.svd(sample, full_matrices=False)
        variances, axes = deviations**2 / max(len(sample) - 1, 1), spanned.T
    else:
        variances, axes = np.linalg.eigh(sample.T @ sample / (len(sample) - 1))
        variances, axes = variances[::-1], axes[:, ::-1]
    tiny = np.finfo(np.float32).tiny
    ridge = max(_RIDGE * float(variances[0]), tiny)
    turn = axes[:, :_DIMENSIONS] / np.sqrt(variances[:_DIMENSIONS].clip(0) + ridge)
    rows, start = np.empty((n, turn.shape[1]), np.float32), 0
    for block in (each[block] for each in features for block in _blocks(len(each))):
        values = np.asarray(block, np.float32).reshape(-1, width) - mean
        rows[start : start + len(values)] = values @ turn
        start += len(values)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(tiny)
    return rows


def nearest(
    rows: NDArray[np.float32], queries: Array, among: Array, k: int = NEIGHBOURS, jobs: int = -1
) -> Near:
    """Return the k nearest of some rows for others, never the row itself, and their cosines.

    ``rows`` are unit vectors, (n, d); ``queries`` and ``among`` numbers of rows. Both arrays that
    are returned have the shape (len(queries), k), nearest first, with -1 where there are no more.
    """
    found = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -1, np.float32)
    if is_approximate(len(among)):
        return _approximate(rows, queries, among, (found, cosines))
    keys, n = rows[among], len(among)
    position = np.full(len(rows), -1)
    position[among] = np.arange(n)
    few = min(k, n)

    def search(block: slice) -> None:
        asked = queries[block]
        products = rows[asked] @ keys.T
        own = np.flatnonzero(position[asked] >= 0)
        products[own, position[asked[own]]] = -np.inf
        best = np.argpartition(products, n - few, axis=1)[:, n - few :]
        values = np.take_along_axis(products, best, axis=1)
        order = np.argsort(-values, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        real = np.isfinite(values)
        found[block, :few] = np.where(real, among[np.take_along_axis(best, order, axis=1)], -1)
        cosines[block, :few] = np.where(real, values, -1)

    size = max(1, min(_BLOCK, _PRODUCTS // max(n, 1)))
    with thread_pool(jobs) as pool:  # selecting takes as long as multiplying, and one thread
        list((pool.map if pool else map)(search, _blocks(len(queries) if few else 0, size)))
    return found, cosines


def is_approximate(n: int) -> bool:
    """Return whether the nearest of so many rows are searched approximately."""
    return n > EXACT_ROWS and find_spec("faiss") is not None


def _approximate(rows: NDArray[np.float32], queries: Array, among: Array, out: Near) -> Near:
    """Search inverted lists (Jégou, Douze and Schmid 2011, IEEE TPAMI 33: 117–128)."""
    lists, by = round(_LISTS * np.sqrt(len(among))), faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.index_factory(rows.shape[1], f"IVF{lists},SQfp16", by)
    sample = np.random.default_rng(0).permutation(among)[: 64 * lists]
    index.train(rows[np.sort(sample)])
    for block in _blocks(len(among)):
        index.add(rows[among[block]])
    index.nprobe = _PROBES
    found, cosines = out
    k = found.shape[1]
    for block in _blocks(len(queries)):
        asked = queries[block]
        values, positions = index.search(rows[asked], k + 1)  # one more: the row itself
        numbers = np.where(positions < 0, -1, among[positions])
        others = (numbers != asked[:, None]) & (numbers >= 0)
        order = np.argsort(~others, axis=1, kind="stable")[:, :k]  # the row itself is last
        kept = np.take_along_axis(others, order, axis=1)
        found[block] = np.where(kept, np.take_along_axis(numbers, order, axis=1), -1)
        cosines[block] = np.where(kept, np.take_along_axis(values, order, axis=1), -1)
    return out


def correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the best normalised cross-correlation of pairs of thumbnails, shifted or mirrored.

    The middle of one, four pixels less on every side, is looked for in the other and in its mirror
    image (template matching: Lewis 1995, "Fast normalized cross-correlation"). 0.1 ms a pair. 0 for
    an image without contrast.
    """
    best, side = np.zeros(len(one), np.float32), one.shape[1]
    width = side - 2 * _SHIFT
    for block in _blocks(len(one)):
        middle = one[block, _SHIFT:-_SHIFT, _SHIFT:-_SHIFT].astype(np.float32)
        middle -= middle.mean(axis=(1, 2), keepdims=True)
        energy = np.einsum("ijk,ijk->i", middle, middle)[:, None, None]
        template = np.conj(rfft2(middle, (side, side)))
        for image in (other[block], other[block, :, ::-1]):
            pixels = image.astype(np.float32)
            product = irfft2(rfft2(pixels) * template, (side, side))
            sums, squares = _window_sums(pixels, width), _window_sums(pixels * pixels, width)
            found = (squares - sums**2 / width**2) * energy
            shifts = product[:, : 2 * _SHIFT + 1, : 2 * _SHIFT + 1] / np.sqrt(found.clip(1))
            np.maximum(best[block], shifts.max(axis=(1, 2)), out=best[block])
    return best


def _window_sums(images: Array, width: int) -> Array:
    """Return the sums over all square windows, by one integral image each."""
    total = np.pad(images.cumsum(axis=1, dtype=np.float64).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    above, below = total[:, :-width], total[:, width:]
    return below[:, :, width:] - below[:, :, :-width] - above[:, :, width:] + above[:, :, :-width]


def score_pairs(
    rows: NDArray[np.float32],
    a: Array,
    b: Array,
    near: Near,
    thumbnails: Thumbnails | None,
    least: float = THRESHOLD,
) -> pd.DataFrame:
    """Return pairs of rows a < b, each once, with a score of at least ``least``, the best first.

    ``rows`` are unit vectors, (n, d); ``near`` what :func:`nearest` finds for each among all.
    Without thumbnails the features alone decide.
    """
    a, b = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)]), axis=1)
    cosine = np.empty(len(a), np.float32)
    for block in _blocks(len(a)):
        cosine[block] = np.einsum("ij,ij->i", rows[a[block]], rows[b[block]])
    neighbours, last = near[0], near[1][:, -1]
    last = np.minimum(last, np.quantile(last, _BURST))  # in a burst all neighbours are duplicates
    pairs = pd.DataFrame({"a": a, "b": b, "cosine": _relative(cosine, (last[a] + last[b]) / 2)})
    pairs["same"] = pairs["cosine"]
    enough = logit(least) - _INTERCEPT
    if thumbnails is not None:
        pairs = pairs[_COSINE * pairs["cosine"] + _CORRELATION >= enough]
        pairs = pairs.assign(same=_compared(thumbnails, *pairs[["a", "b"]].to_numpy().T))
        # Relative to the usual correlation it can only be smaller.
        pairs = pairs[_COSINE * pairs["cosine"] + _CORRELATION * pairs["same"] >= enough]
        a, b = pairs[["a", "b"]].to_numpy().T
        with_images = np.flatnonzero(neighbours[:, 0] >= 0)
        some = np.random.default_rng(0).permutation(with_images)[:_SOME]
        most = np.quantile(_usual(thumbnails, some, neighbours), _BURST) if len(a) else 0
        usual = (_usual(thumbnails, a, neighbours) + _usual(thumbnails, b, neighbours)) / 2
        pairs = pairs.assign(same=_relative(pairs["same"].to_numpy(), np.minimum(usual, most)))
    logits = pairs["cosine"].astype(np.float64) * _COSINE + pairs["same"] * _CORRELATION
    pairs = pairs.assign(logit=logits, score=expit(logits + _INTERCEPT))[logits >= enough]
    best = pairs.sort_values("logit", ascending=False, kind="stable", ignore_index=True)
    return best[["a", "b", "score"]]


def _usual(thumbnails: Thumbnails, rows: Array, neighbours: Array) -> NDArray[np.float32]:
    """Return how rows correlate with neighbours that are not their nearest, on average."""
    total: NDArray[np.float32] = np.zeros(len(rows), np.float32)
    for rank in _USUAL:
        other = neighbours[rows, rank]
        total += np.where(other < 0, 0, _compared(thumbnails, rows, other))
    return np.asarray(total / len(_USUAL), np.float32)


def _relative(value: Array, usual: Array) -> Array:
    """Return 1 for the largest similarity there is, 0 for the usual one."""
    usual = usual.clip(0, 0.999)
    return (value - usual) / (1 - usual)


def _compared(thumbnails: Thumbnails, a: Array, b: Array) -> NDArray[np.float32]:
    """Return the correlations of pairs of rows; blocks are compared in parallel."""
    blocks = list(_blocks(len(a), 1024))
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        parts = pool.map(lambda k: correlation(thumbnails(a[k]), thumbnails(b[k])), blocks)
        return np.concatenate([np.empty(0, np.float32), *parts])


def clusters(n: int, a: Array, b: Array) -> NDArray[np.int64]:
    """Return the number of the cluster that each of n rows is in; -1 where it is alone."""
    numbers = components(n, a, b)
    sizes = np.bincount(numbers)
    return np.where(sizes[numbers] > 1, numbers, -1)


def _blocks(n: int, size: int = _BLOCK) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]
