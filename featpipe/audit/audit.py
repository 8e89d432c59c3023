"""The audit of a dataset: findings about single images, and their summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from featpipe.audit import duplicates, labels, outliers
from featpipe.errors import FitError
from featpipe.evaluation.assemble import IMBALANCE, imbalance
from featpipe.evaluation.protocol import units_per_class
from featpipe.progress import SILENT, Progress
from featpipe.store import FeatureStore

FEW_IMAGES = 20  # of a class, all of them different
_CLUSTERED = 0.5  # share of a class's images that are copies of the others
TINY = 16  # pixels of the shorter side
_BLANK = 2.0  # standard deviation of a thumbnail's grey values, of 255
_DARK, _BRIGHT = 8.0, 247.0  # mean grey value
_PLACEHOLDER = 3  # classes that one picture is of ...
_COPIES = 5  # ... or images with the same pixels
_MOST_VALUES = 1 << 30  # numbers in the features that labels are checked with: 4 GB ...
_PER_CLASS = 4  # ... and this many times the probabilities: 1 GB
_BLOCK = 1 << 16

_DEFAULTS = {
    **dict.fromkeys(("partner", "partner_dataset", "partner_split", "partner_label"), ""),
    "likely": "",  # class that is more likely than the label
    "suggestion": "check",
    "score": 1.0,
    "cluster": "",
}
COLUMNS = ("dataset", "split", "id", "label", "issue", *_DEFAULTS)

Rows = NDArray[np.int64]


class _Pool:
    """The rows of several splits, numbered consecutively; those without an image are left out."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self.stores = stores
        self.starts = np.cumsum([0, *map(len, stores)])  # the first row of each store; their number
        self.split = np.repeat(np.arange(len(stores)), list(map(len, stores)))  # of each row
        known = [store.manifest["dataset"] for store in stores]
        self.splits = np.array([one["split"] for one in known], object)
        self.datasets = np.array([one["name"] for one in known], object)
        self.rows_of: list[Rows] = [  # of each store, those with an image
            start + np.setdiff1d(np.arange(len(store)), list(store.skipped))
            for start, store in zip(self.starts, stores, strict=False)
        ]
        self.rows: Rows = np.concatenate(self.rows_of)
        self.ids = np.array([name for store in stores for name in store.ids], object)
        self.labels = np.full(len(self.ids), -1, np.int64)  # unlabelled, or without an image
        self.labels[self.rows] = np.concatenate([store.labels for store in stores])[self.rows]
        self.tests = (self.split > 0) & (self.labels >= 0)  # whether a row is a test row
        self.classes = next((store.classes for store in stores if store.classes), ())
        self.label_names = np.array([*self.classes, ""], object)  # the last one: label -1
        self.has_looks = all(store.has_looks for store in stores)

    def take(self, rows: Rows, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return some rows of arrays that each belong to a store."""
        found = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number, array in enumerate(arrays):
            here = self.split[rows] == number
            found[here] = array[rows[here] - self.starts[number]]
        return found

    def named(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the columns of the list that identify some rows."""
        split, label = self.split[rows], self.label_names[self.labels[rows]]
        named = {"dataset": self.datasets[split], "split": self.splits[split]}
        return {**named, "id": self.ids[rows], "label": label}

    def first_alike(self) -> Rows:
        """Return for each row the first one with the same pixels.

        Of these, it is a test row, if there is any, or else a labelled one.
        """
        first, rows = np.arange(len(self.ids)), self.rows
        if self.has_looks:
            digests = np.ascontiguousarray(self.looks("digest", rows)).view("V16")[:, 0]
            number = np.unique(digests, return_inverse=True)[1]
            order = np.lexsort((rows, self.labels[rows] < 0, ~self.tests[rows], number))
            leading = np.unique(number[order], return_index=True)[1]
            first[rows] = rows[order][leading][number]
        return first

    def looks(self, part: str, rows: Rows) -> NDArray[Any]:
        """Return digests, sizes or thumbnails of some rows; see :meth:`FeatureStore.looks`."""
        return self.take(rows, [store.looks(part) for store in self.stores])


class Audit:
    """Findings about the images of some splits.

    Parameters
    ----------
    stores : sequence of FeatureStore
        Splits, embedded alike, the training split first. Labelled images of the others count as
        test images.
    layer : str, optional
    seed : int, optional
        Of the folds with which labels are checked.

    Attributes
    ----------
    findings : DataFrame
        A row for each, with the columns of the list.
    summary : dict
        Counts, shares and classes, JSON-like.

    Raises
    ------
    FitError
        If the layer holds maps, or there is no image.
    """

    def __init__(
        self,
        stores: Sequence[FeatureStore],
        layer: str | None = None,
        seed: int = 0,
        jobs: int = -1,
        progress: Progress = SILENT,
    ) -> None:
        shape = stores[0].shapes[layer or stores[0].layers[0]]
        if len(shape) != 1:
            what = "An audit needs one vector per image, and this layer holds maps."
            hint, got = "extract the layer without ':map'", f"shape {shape} per image"
            raise FitError(what, where=stores[0].path, got=got, next_step=hint)
        whole = [store for store in stores if len(store.skipped) < len(store)]
        if not whole:
            raise FitError("There is no image to audit.", where=stores[0].path)
        self._pool = pool = _Pool(whole)
        self._features = [store.features(layer) for store in whole]
        self._found: list[pd.DataFrame] = []
        with progress.task("audit", 3) as task:
            vectors = duplicates.whitened(whole, layer)
            self._near = [  # of all rows in each split
                duplicates.nearest(vectors, pool.rows, among, jobs=jobs) for among in pool.rows_of
            ]
            task.advance()
            alike = self._find_duplicates(vectors)
            del vectors
            odd = self._find_odd_images(seed)
            task.advance()
            doubted = self._find_wrong_labels(seed)
            task.advance()
        named = zip(pool.datasets, pool.splits, pool.rows_of, strict=True)
        self.summary: dict[str, Any] = {
            "splits": [{"dataset": d, "split": s, "images": len(rows)} for d, s, rows in named],
            "pixels_compared": pool.has_looks,
            "approximate": any(duplicates.is_approximate(len(rows)) for rows in pool.rows_of),
            "duplicates": alike,
            "odd": odd,
            "labels": doubted,
            "coverage": self._coverage(),
        }
        found = pd.concat(self._found) if self._found else pd.DataFrame(columns=list(COLUMNS))
        self.findings = found.sort_values(
            ["issue", "score"], ascending=[True, False], kind="stable", ignore_index=True
        )

    def _add(self, issue: str, rows: Rows, partners: Rows | None = None, **columns: Any) -> None:
        found: dict[str, Any] = {**self._pool.named(rows), "issue": issue, **_DEFAULTS}
        if partners is not None:
            partner = self._pool.named(partners)
            found["partner"] = partner.pop("id")
            found |= {f"partner_{part}": texts for part, texts in partner.items()}
            found["cluster"] = self._cluster[rows].astype(str).astype(object)
        if len(rows):
            self._found.append(pd.DataFrame(found | columns))

    def _find_duplicates(self, vectors: NDArray[np.float32]) -> dict[str, Any]:
        """Find images with the same pixels, and images that look the same."""
        pool, near, k = self._pool, self._near, duplicates.CANDIDATES
        n, tests = len(pool.ids), pool.tests
        one = np.tile(np.repeat(pool.rows, k), len(near))
        other = np.concatenate([found[:, :k].ravel() for found, _ in near])
        # The nearest in all splits together.
        every, values = (np.concatenate(parts, axis=1) for parts in zip(*near, strict=True))
        order = np.argsort(-values, axis=1, kind="stable")[:, : duplicates.NEIGHBOURS]
        shape = (n, duplicates.NEIGHBOURS)
        neighbours, cosines = np.full(shape, -1), np.zeros(shape, np.float32)
        neighbours[pool.rows] = np.take_along_axis(every, order, axis=1)
        cosines[pool.rows] = np.take_along_axis(values, order, axis=1)
        first, large = pool.first_alike(), np.ones(n, bool)
        if pool.has_looks:
            large[pool.rows] = pool.looks("size", pool.rows).min(axis=1) >= TINY
        compared = (other >= 0) & large[one] & large[other]  # tiny images look too similar
        thumbnails = (lambda rows: pool.looks("thumbnail", rows)) if pool.has_looks else None
        pairs = duplicates.score_pairs(
            vectors, one[compared], other[compared], (neighbours, cosines), thumbnails
        )
        pairs = pairs[first[pairs["a"]] != first[pairs["b"]]]
        a, b, scores = pairs["a"].to_numpy(), pairs["b"].to_numpy(), pairs["score"].tolist()
        self._copies = np.bincount(first[pool.rows], minlength=n)[first]
        same = np.flatnonzero(first != np.arange(n))
        ends = np.concatenate([a, same]), np.concatenate([b, first[same]])
        self._cluster = duplicates.clusters(n, *ends)
        # A number for each row, equal for those of one cluster.
        self._units = np.where(self._cluster >= 0, self._cluster, n + np.arange(n))

        clash = (pool.labels >= 0) & (pool.labels != pool.labels[first])
        advice = np.where(tests[same], "check", "drop")
        no_leak = tests[same] | ~tests[first[same]]
        advice = np.where(clash[same] & no_leak, "check label", advice)
        self._add("identical", same, first[same], suggestion=advice)
        across = tests[a] != tests[b]
        a, b = np.where(across & tests[a], b, a), np.where(across & tests[a], a, b)
        advice, scores = np.where(across, "drop", "keep together"), [round(x, 4) for x in scores]
        self._add("near-duplicate", a, b, score=scores, suggestion=advice)

        inside = np.zeros((len(pool.stores[0].folds), n), bool)
        for fold, members in zip(inside, pool.stores[0].folds, strict=True):
            fold[members] = True
        divided = (inside[:, ends[0]] != inside[:, ends[1]]).any(axis=0)
        return {
            **self._count_duplicates(first, a, b),
            "conflicting": int(clash.sum()),
            "clusters": len(np.unique(self._cluster[self._cluster >= 0])),
            "divided_by_folds": int(divided.sum()) if len(inside) else None,
            "too_small": int((~large).sum()),
        }

    def _count_duplicates(self, first: Rows, a: Rows, b: Rows) -> dict[str, dict[str, int]]:
        """Count images that repeat across training and test images, within and between splits.

        ``first`` is the first row with the same pixels, ``a`` and ``b`` are near-duplicates; where
        one of the two is a test row, it is ``b``.
        """
        pool, n, tests = self._pool, len(first), self._pool.tests
        trained = np.zeros(n, bool)  # by the first row of an image: whether it is trained on
        trained[first[pool.rows[~tests[pool.rows]]]] = True
        leaked, nearly, across = tests & trained[first], np.zeros(n, bool), tests[a] != tests[b]
        nearly[b[across]] = True
        # Of the images of one split those that repeat, and those that two test splits share.
        own = np.unique(np.stack([pool.split[pool.rows], first[pool.rows]]), axis=1)
        testing = np.bincount(own[1, own[0] > 0], minlength=n)
        inside_one = pool.split[a] == pool.split[b]
        counted = {
            "across": (leaked.sum(), nearly & ~leaked),
            "within": (len(pool.rows) - own.shape[1], ~across & inside_one),
            "between": ((testing > 1).sum(), ~across & ~inside_one),
        }
        return {
            where: {"identical": int(identical), "near": int(near.sum())}
            for where, (identical, near) in counted.items()
        }

    def _find_odd_images(self, seed: int) -> dict[str, int]:
        """Find images that are blank, shared by several classes, or like those of another class."""
        pool, before = self._pool, len(self._found)
        for i, rows in enumerate(pool.rows_of):
            if pool.has_looks:
                for part in gen_batches(len(rows), _BLOCK):
                    block = rows[part]
                    grey = pool.looks("thumbnail", block).reshape(len(block), -1).astype(np.float32)
                    mean, blank = grey.mean(axis=1), grey.std(axis=1) < _BLANK
                    self._add("blank", block[blank])
                    self._add("dark", block[(mean < _DARK) & ~blank])
                    self._add("bright", block[(mean > _BRIGHT) & ~blank])
                sides = pool.looks("size", rows).min(axis=1)
                self._add("tiny", rows[(sides < TINY) & (sides < np.median(sides))])
            if len(rows) > duplicates.CANDIDATES:  # else all are the nearest ones
                found = self._near[i][0][pool.split[pool.rows] == i, : duplicates.CANDIDATES]
                others = pool.labels[found]
                stray = (others == others[:, :1]).all(axis=1) & (others[:, 0] >= 0)
                stray &= (pool.labels[rows] >= 0) & (others[:, 0] != pool.labels[rows])
                likely = pool.label_names[others[stray, 0]]
                self._add("among another class", rows[stray], likely=likely)
        once = [rows[np.unique(self._units[rows], return_index=True)[1]] for rows in pool.rows_of]
        take = partial(pool.take, arrays=self._features)
        far, distances = outliers.isolated(np.concatenate(once), take, seed)
        self._add("far from all others", far, score=[round(d, 4) for d in distances.tolist()])
        known = (self._cluster >= 0) & (pool.labels >= 0)
        classes = pd.Series(pool.labels[known]).groupby(self._cluster[known]).nunique()
        shared = np.isin(self._cluster, classes.index[classes >= _PLACEHOLDER])
        self._add("placeholder", np.flatnonzero(shared | (self._copies >= _COPIES)))
        return dict(Counter(kind for frame in self._found[before:] for kind in frame["issue"]))

    def _coverage(self) -> dict[str, Any]:
        """Return classes with few training images or many near-duplicates; the imbalance."""
        pool = self._pool
        known = (pool.labels >= 0) & ~pool.tests
        images = np.bincount(pool.labels[known], minlength=len(pool.classes))
        different = units_per_class(pool.labels[known], self._units[known], len(pool.classes))
        rows = pd.DataFrame({"label": pool.classes, "images": images, "different": different})
        there = rows[rows.images > 0].sort_values("images", kind="stable")
        uneven = [0, -1] if len(there) and imbalance(images) >= IMBALANCE else []
        chosen = {
            "few": rows[rows.different < FEW_IMAGES],
            "clustered": rows[rows.different < _CLUSTERED * rows.images],
            "imbalance": there.iloc[uneven],
        }
        return {what: some.to_dict("records") for what, some in chosen.items()}

    def _find_wrong_labels(self, seed: int) -> dict[str, Any]:
        """Find labels that are doubted by a probe trained on other rows."""
        pool, rows = self._pool, np.flatnonzero(self._pool.labels >= 0)
        if not len(rows):
            return {"reason": "no image has a label"}
        # A class with a single image, or copies of it, cannot be checked.
        units = units_per_class(pool.labels[rows], self._units[rows], len(pool.classes))
        rows = rows[units[pool.labels[rows]] > 1]
        labelled = len(rows)
        most = _MOST_VALUES // max(self._features[0].shape[1], _PER_CLASS * len(pool.classes))
        if labelled > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        y = pool.labels[rows]
        X = pool.take(rows, self._features).astype(np.float32, copy=False)
        try:
            probabilities, shrinkage = labels.out_of_sample(X, y, self._units[rows], seed=seed)
        except FitError as error:
            return {"reason": error.what}
        found = labels.doubts(probabilities, y)
        doubted = found.better >= 0
        scores = [round(1 - confidence, 4) for confidence in found.confidence[doubted].tolist()]
        likely = pool.label_names[found.better[doubted]]
        self._add("label", rows[doubted], likely=likely, score=scores)
        return {
            "share": found.share(),
            "checked": len(rows),
            "labelled": labelled,
            "shrinkage": shrinkage,
            "classes": labels.by_class(found, y, pool.classes),
            "pairs": labels.pairs(found, y, pool.classes),
        }
