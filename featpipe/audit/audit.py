"""The audit of a dataset: findings about single images, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featpipe.audit import duplicates, labels
from featpipe.errors import FitError
from featpipe.progress import SILENT, Progress
from featpipe.store import FeatureStore

_TEXTS = ("id", "split", "label", "issue", "partner", "partner_split", "likely", "suggestion")
COLUMNS = (*_TEXTS, "score", "cluster")  # of audit.csv
FEW_IMAGES = 20  # of a class
_BLANK = 2.0  # standard deviation of a thumbnail's grey values, of 255
_DARK, _BRIGHT = 8.0, 247.0  # mean grey value
TINY = 16  # pixels of the shorter side
_PLACEHOLDER = 3  # images of several classes that are all alike
_FAR = 5.0  # robust standard deviations
_MOST_VALUES = 1 << 30  # numbers in the features that labels are checked with: 4 GB

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows of several splits, one after the other, those with an image."""

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
    def ids(self) -> list[str]:
        """Ids of all rows."""
        return [name for store in self.stores for name in store.ids]

    @cached_property
    def split(self) -> NDArray[np.int64]:
        """Number of the store of each row."""
        return np.repeat(np.arange(len(self.stores)), [len(store) for store in self.stores])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of each row; -1: unlabelled, or without an image."""
        found = np.concatenate([store.labels for store in self.stores])
        for first, store in zip(self.offsets, self.stores, strict=False):
            found[first + np.array(list(store.skipped), np.int64)] = -1
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.stores[0].classes

    @property
    def has_looks(self) -> bool:
        """Whether it is known of every store what its images look like."""
        return all(store.has_looks for store in self.stores)

    def looks(self, part: str, rows: Rows) -> NDArray[Any]:
        """Return what some rows look like; see :meth:`FeatureStore.looks`."""
        arrays = [store.looks(part) for store in self.stores]
        found = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number, array in enumerate(arrays):
            here = self.split[rows] == number
            found[here] = array[rows[here] - self.offsets[number]]
        return found

    def name(self, row: int) -> tuple[str, str]:
        """Return the id of a row, and its split."""
        return self.ids[row], str(self.stores[self.split[row]].manifest["dataset"]["split"])

    def class_of(self, row: int) -> str:
        """Return the name of a row's class; empty without one."""
        return self.classes[self.labels[row]] if self.labels[row] >= 0 else ""


class Audit:
    """Findings about the images of some splits.

    Parameters
    ----------
    stores : sequence of FeatureStore
        Splits of one dataset, embedded alike, the training split first.
    layer : str, optional
    seed : int, optional
        Of the folds that labels are checked with.

    Attributes
    ----------
    findings : DataFrame
        A row for each, with the columns of ``audit.csv``.
    summary : dict
        What they add up to, JSON-like.

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
            raise FitError(
                "An audit needs one vector per image, and this layer holds maps.",
                where=stores[0].path,
                got=f"shape {shape} per image",
                next_step="extract the layer without ':map'",
            )
        self.pool = pool = Pool(stores, layer)
        if not sum(map(len, pool.rows_of)):
            raise FitError("There is no image to audit.", where=stores[0].path)
        self._found: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {
            "splits": [
                {"split": store.manifest["dataset"]["split"], "images": len(rows)}
                for store, rows in zip(stores, pool.rows_of, strict=True)
            ],
            "pixels_compared": pool.has_looks,
            "approximate": any(duplicates.is_approximate(len(rows)) for rows in pool.rows_of),
        }
        with progress.task("audit", 3) as task:
            vectors = duplicates.whitened(stores, layer)
            near = {
                (i, j): duplicates.nearest(vectors, one, other, jobs=jobs)
                for i, one in enumerate(pool.rows_of)
                for j, other in enumerate(pool.rows_of)
            }
            task.advance()
            self._find_duplicates(vectors, near)
            self._find_odd_images(near)
            task.advance()
            self._find_wrong_labels(seed, jobs)
            self._describe_classes(near)
            task.advance()
        self.findings = pd.DataFrame(self._found, columns=COLUMNS).sort_values(
            ["issue", "score"], ascending=[True, False], kind="stable", ignore_index=True
        )

    def _add(
        self, row: int, issue: str, score: float, partner: int | None = None, **more: Any
    ) -> None:
        name, split = self.pool.name(row)
        found: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        found |= {"id": name, "split": split, "issue": issue}
        found |= {"label": self.pool.class_of(row), "score": round(float(score), 4)}
        if partner is not None:
            found["partner"], found["partner_split"] = self.pool.name(partner)
        self._found.append(found | more)

    def _find_duplicates(self, vectors: NDArray[np.float32], near: dict[Any, Any]) -> None:
        """Find images with the same pixels, and images that people would call the same."""
        pool = self.pool
        every, k = np.concatenate(pool.rows_of), duplicates.CANDIDATES
        one = np.concatenate([np.repeat(pool.rows_of[i], k) for i, _ in near])
        other = np.concatenate([found[:, :k].ravel() for found, _ in near.values()])
        one, other = one[other >= 0], other[other >= 0]
        too_small = 0
        if pool.has_looks:  # of tiny images too much is alike
            large = pool.looks("size", np.arange(len(pool.ids))).min(axis=1) >= TINY
            too_small = int(np.count_nonzero(~large[every]))
            one, other = one[large[one] & large[other]], other[large[one] & large[other]]
        thumbnails = (lambda rows: pool.looks("thumbnail", rows)) if pool.has_looks else None
        pairs = duplicates.score_pairs(vectors, one, other, self._nearest(near), thumbnails)
        a, b, scores = pairs.a, pairs.b, pairs.score

        kept = np.arange(len(pool.ids))  # of identical images the one that stays: a test image
        if pool.has_looks:
            digests = np.ascontiguousarray(pool.looks("digest", every)).view("V16")[:, 0]
            number = np.unique(digests, return_inverse=True)[1]
            order = np.lexsort((every, -pool.split[every], number))
            first = np.unique(number[order], return_index=True)[1]
            kept[every] = every[order][first][number]
        same = np.flatnonzero(kept != np.arange(len(kept)))
        cluster = duplicates.clusters(
            len(pool.ids), np.concatenate([a, same]), np.concatenate([b, kept[same]])
        )
        across: dict[str, set[int]] = {"identical": set(), "near-duplicate": set()}
        within = dict.fromkeys(across, 0)
        conflicting = 0

        def add(row: int, partner: int, issue: str, score: float) -> None:
            nonlocal conflicting
            apart = pool.split[row] != pool.split[partner]
            clash = min(pool.labels[row], pool.labels[partner]) >= 0 and (
                pool.labels[row] != pool.labels[partner]
            )
            if apart:
                across[issue].add(partner)
            else:
                within[issue] += 1
            conflicting += int(clash and issue == "identical")
            drop = apart or (issue == "identical" and not clash)
            advice = "drop" if drop else "check label" if clash else "keep together"
            self._add(row, issue, score, partner, cluster=int(cluster[row]), suggestion=advice)

        for row in same.tolist():
            add(row, int(kept[row]), "identical", 1.0)
        for row, partner, score in zip(a.tolist(), b.tolist(), scores.tolist(), strict=True):
            if kept[row] != kept[partner]:  # rows of training splits come first
                add(row, partner, "near-duplicate", score)
        self.cluster = cluster
        inside = np.zeros((len(pool.stores[0].folds), len(pool.ids)), bool)
        for fold, members in zip(inside, pool.stores[0].folds, strict=True):
            fold[members] = True
        straddling = int((inside[:, a] != inside[:, b]).any(axis=0).sum())
        self.summary["duplicates"] = {
            "across": {issue: len(rows) for issue, rows in across.items()},
            "within": within,
            "conflicting": conflicting,
            "clusters": len(np.unique(cluster[cluster >= 0])),
            "largest": int(np.bincount(cluster[cluster >= 0]).max(initial=0)),
            "straddle_folds": straddling if len(inside) else None,
            "threshold": duplicates.THRESHOLD,
            "too_small": too_small,
        }

    def _nearest(self, near: dict[Any, Any]) -> tuple[Rows, NDArray[np.float32]]:
        """Return the nearest of all rows for each, whatever their splits."""
        pool = self.pool
        rows = np.full((len(pool.ids), duplicates.NEIGHBOURS), -1, np.int64)
        cosines = np.zeros(rows.shape, np.float32)
        for i, own in enumerate(pool.rows_of):
            parts = [near[i, j] for j in range(len(pool.stores))]
            found, values = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
            order = np.argsort(-values, axis=1, kind="stable")[:, : duplicates.NEIGHBOURS]
            rows[own] = np.take_along_axis(found, order, axis=1)
            cosines[own] = np.take_along_axis(values, order, axis=1)
        return rows, cosines

    def _find_odd_images(self, near: dict[Any, Any]) -> None:
        """Find images that show nothing, hardly anything, or the same for several classes."""
        pool = self.pool
        kinds: dict[str, list[Rows]] = {}
        if pool.has_looks:
            for rows in pool.rows_of:
                grey = pool.looks("thumbnail", rows).reshape(len(rows), -1)
                mean, deviation = grey.mean(axis=1), grey.std(axis=1)
                kinds.setdefault("blank", []).append(rows[deviation < _BLANK])
                kinds.setdefault("dark", []).append(rows[(mean < _DARK) & (deviation >= _BLANK)])
                bright = (mean > _BRIGHT) & (deviation >= _BLANK)
                kinds.setdefault("bright", []).append(rows[bright])
                sides = pool.looks("size", rows).min(axis=1)
                tiny = (sides < TINY) & (sides < np.median(sides))
                kinds.setdefault("tiny", []).append(rows[tiny])
        members = np.flatnonzero(self.cluster >= 0)
        for number in np.unique(self.cluster[members]):
            rows = members[self.cluster[members] == number]
            if len(rows) >= _PLACEHOLDER and len(np.unique(pool.labels[rows])) >= _PLACEHOLDER:
                kinds.setdefault("placeholder", []).append(rows)
        for i, rows in enumerate(pool.rows_of):
            closest = near[i, i][1].max(axis=1)
            middle = np.median(closest)
            spread = 1.4826 * np.median(np.abs(closest - middle))
            far = rows[closest < middle - _FAR * spread] if spread > 0 else rows[:0]
            kinds.setdefault("far from all others", []).append(far)
        counts = {}
        for kind, parts in kinds.items():
            found = np.concatenate(parts)
            counts[kind] = len(found)
            for row in found:
                self._add(int(row), kind, 1.0, suggestion="check")
        self.summary["odd"] = counts

    def _find_wrong_labels(self, seed: int, jobs: int) -> None:
        """Find labels that a probe doubts which was trained on other rows."""
        pool = self.pool
        labelled = np.flatnonzero(pool.labels >= 0)
        counts = np.bincount(pool.labels[labelled], minlength=len(pool.classes))
        rows = labelled[counts[pool.labels[labelled]] > 1]  # of a single row nothing can be said
        width = int(np.prod(pool.stores[0].shapes[pool.layer or pool.stores[0].layers[0]]))
        most = _MOST_VALUES // width
        checked = len(rows)
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        y = pool.labels[rows]
        X = np.empty((len(rows), width), np.float32)
        for number, store in enumerate(pool.stores):
            here = pool.split[rows] == number
            features = store.features(pool.layer)
            X[here] = features[rows[here] - pool.offsets[number]].reshape(-1, width)
        together = np.where(
            self.cluster >= 0, self.cluster, len(pool.ids) + np.arange(len(pool.ids))
        )
        try:
            probabilities, c = labels.out_of_sample(X, y, together[rows], seed=seed, jobs=jobs)
        except FitError as error:
            self.summary["labels"] = {"reason": error.what}
            return
        found = labels.doubts(probabilities, y, c)
        doubted = found.better >= 0
        for place in np.flatnonzero(doubted):
            self._add(
                int(rows[place]),
                "label",
                1 - found.confidence[place],
                likely=pool.classes[found.better[place]],
                suggestion="check",
            )
        self.summary["labels"] = {
            "share": found.share,
            "checked": len(rows),
            "labelled": checked,
            "c": c,
            "accuracy": found.accuracy,
            "pairs": labels.pairs(found, y, pool.classes),
            "per_class": [
                {
                    "class": name,
                    "images": int((y == k).sum()),
                    "doubted": int(doubted[y == k].sum()),
                }
                for k, name in enumerate(pool.classes)
            ],
        }

    def _describe_classes(self, near: dict[Any, Any]) -> None:
        """Count images of classes, and find those among images of another class."""
        pool = self.pool
        for i, rows in enumerate(pool.rows_of):
            found = near[i, i][0][:, : duplicates.CANDIDATES]
            if len(rows) <= duplicates.CANDIDATES:
                continue
            others = pool.labels[found]
            own = pool.labels[rows]
            lonely = (own >= 0) & (others == others[:, :1]).all(axis=1)
            lonely &= (others[:, 0] != own) & (others[:, 0] >= 0)
            for place in np.flatnonzero(lonely):
                likely = pool.classes[others[place, 0]]
                self._add(
                    int(rows[place]), "among another class", 1.0, likely=likely, suggestion="check"
                )
        counts = [
            np.bincount(own[own >= 0], minlength=len(pool.classes))
            for own in (pool.labels[rows] for rows in pool.rows_of)
        ]
        total, clustered = np.sum(counts, axis=0), self.cluster >= 0
        self.summary["classes"] = [
            {
                "class": name,
                "images": [int(count[k]) for count in counts],
                "clustered": int(np.count_nonzero(clustered & (pool.labels == k))),
                "few": bool(total[k] < FEW_IMAGES),
            }
            for k, name in enumerate(pool.classes)
        ]
