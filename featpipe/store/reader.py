"""Reading sealed stores; everything in a file is checked before use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError, UnknownNameError, did_you_mean
from featpipe.fingerprint import FileHashes
from featpipe.notebook import html_table
from featpipe.steps.grammar import LOGITS
from featpipe.store import layout
from featpipe.store.arrays import Extent, ShardedArray
from featpipe.store.record import read_sealed, require, translate_errors
from featpipe.urls import Place
from featpipe.workspace import store_files

_PARALLEL_DOWNLOADS = 4  # of shards


class FeatureStore:
    """A sealed feature store, read-only.

    Everything but the feature arrays is read on opening, and the file is closed again. Feature
    arrays are memory-mapped, so worker processes share them without copies; each is compared with
    its digest on first access. Where the rows are in shards, which are separate files, arrays are
    of type :class:`featpipe.store.arrays.ShardedArray`.

    Parameters
    ----------
    path : str or Path
    hashes : FileHashes, optional
        Remembers which arrays were verified, so that the next process need not read them again.
    at : str, optional
        URL of the folder of the file, if it is not on this machine: then everything but the
        features can be read.

    Attributes
    ----------
    ids : list of str
    labels : ndarray of shape (n,), int64
    classes : tuple of str
    layers : tuple of str
        In the order in which they were requested.
    shapes : dict of str to tuple of int
        Shape of one row of each layer, and of the logits where there are any.
    folds : tuple of ndarray of int64
    groups : list of str
        One per row; empty where images have no groups.
    source_classes : tuple of (ids, names) or None
        Meaning of the columns of the logits.
    skipped : dict of int to str
        Rows without features, with the reason.
    manifest, run : dict
    fingerprint : str

    Raises
    ------
    StoreError
        If the file is missing, unfinished, damaged or of another schema.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        hashes: FileHashes | None = None,
        *,
        at: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._hashes = hashes or FileHashes()
        self._intact: set[str] = set()
        with translate_errors(self.path), self._stream(at) as stream:
            record, self._arrays, self.labels = read_sealed(stream, self.path, local=not at)
        self.shards_at: str = record.get("shards_at", "")
        self.fingerprint: str = record["fingerprint"]
        self.manifest: dict[str, Any] = record["manifest"]
        self.run: dict[str, Any] = record["run"]
        self.ids: list[str] = record["ids"]
        self.classes: tuple[str, ...] = tuple(record["classes"])
        self.layers: tuple[str, ...] = tuple(self.manifest["layers"])
        self.shapes = {
            name.removeprefix("features/"): extents[0].shape[1:]
            for name, extents in self._arrays.items()
            if name.startswith("features/")
        }
        skipped = record["skipped"]
        self.skipped: dict[int, str] = dict(zip(skipped["rows"], skipped["reasons"], strict=True))
        self.folds = tuple(np.array(rows, dtype=np.int64) for rows in record["folds"])
        self.groups: list[str] = record["groups"]
        meaning = record["source_classes"]
        self.source_classes: tuple[list[str], list[str]] | None = meaning and tuple(meaning)

    def _stream(self, at: str | None) -> AbstractContextManager[BinaryIO]:
        if at:
            return Place(at).opened(self.path.name)
        regular = self.path.is_file() or self.path.is_dir() or not self.path.exists()
        require(regular, "it is no regular file")  # opening a FIFO would wait for a writer
        return self.path.open("rb")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} rows, layers {self.layers})"

    def _repr_html_(self) -> str:
        dataset, model = self.manifest["dataset"], self.manifest["backbone"]["model"]
        layers = (f"{name} {'×'.join(map(str, self.shapes[name]))}" for name in self.layers)
        facts = {
            "images": len(self),
            "labelled": int((self.labels >= 0).sum()),
            "classes": len(self.classes),
            "layers": ", ".join(layers),
            "MB": round(self.n_bytes / 1e6, 1),
            "file": self.path,
        }
        return html_table(f"{dataset['name']} {dataset['split']} · {model}", [facts])

    @property
    def n_bytes(self) -> int:
        """Size of the file and of the arrays in its shards, wherever they are stored."""
        others = (e for extents in self._arrays.values() for e in extents if e.path != self.path)
        return self.path.stat().st_size + sum(extent.n_bytes for extent in others)

    @property
    def shards(self) -> list[Path]:
        """The files that hold the rows, in order; none where the rows are in this file."""
        extents = self._arrays[f"features/{self.layers[0]}"]
        return [extent.path for extent in extents if extent.path != self.path]

    @property
    def lost_shards(self) -> list[Path]:
        """Shards that are neither on this machine nor at ``shards_at``."""
        present = set(self.shards[0].parent.glob("*.h5")) if self.shards else set()
        absent = [path for path in self.shards if path not in present]
        remote = Place(self.shards_at).names() if absent and self.shards_at else ()
        return [path for path in absent if path.name not in remote]

    @property
    def usable(self) -> NDArray[np.int64]:
        """Rows that have features and a label."""
        mask = self.labels >= 0
        mask[list(self.skipped)] = False
        return np.flatnonzero(mask)

    def features(self, layer: str | None = None) -> NDArray[Any]:
        """Return the features of a layer, memory-mapped.

        Parameters
        ----------
        layer : str, optional
            Default: the first layer that was extracted. ``"logits"`` too, if the store has them.

        Returns
        -------
        features : ndarray of shape (n, *row shape), float32, float16 or uint8

        Raises
        ------
        UnknownNameError
            If the store does not hold the layer.
        StoreError
            If the array has changed since the store was sealed.
        """
        layer = layer or self.layers[0]
        if layer not in self.shapes:
            near, hint = did_you_mean(layer, self.shapes), f"featpipe extract … --layer {layer}"
            what = f"The store holds no layer {layer!r}."
            hint = f"{near} or extract it: {hint}" if near else hint
            raise UnknownNameError(what, known=self.shapes, where=self.path, next_step=hint)
        return self._intact_array(f"features/{layer}")

    @property
    def has_looks(self) -> bool:
        """Whether digests, sizes and thumbnails of the images are stored."""
        return "looks/digest" in self._arrays

    @property
    def digests(self) -> NDArray[np.void] | None:
        """Digests of the decoded images, of shape (n,); zeros where one was skipped."""
        if not self.has_looks:
            return None
        return np.ascontiguousarray(self.looks("digest")).view("V16")[:, 0]

    def looks(self, part: str) -> NDArray[Any]:
        """Return the digests, sizes or thumbnails of the images; zeros where one was skipped.

        They are stored where :attr:`has_looks` is true.

        Parameters
        ----------
        part : {"digest", "size", "thumbnail"}
            Of shape (n, 16), uint8; (n, 2), int32: height and width; (n, 32, 32), uint8, grey.
        """
        return self._intact_array(f"looks/{part}")

    def extents(self, name: str) -> Sequence[Extent]:
        """Return where in which files an array, such as ``features/avgpool``, is stored."""
        return self._arrays[name]

    def _intact_array(self, name: str) -> Any:
        extents = self._arrays[name]
        with translate_errors(self.path):
            if name not in self._intact:
                self._fetch_shards()
                self._refuse([extent for extent in extents if not extent.path.exists()], name)
                of = {extent.path: extent for extent in extents}
                found = self._hashes.many(of, name, digest_of=lambda path, _: of[path].digest())
                pairs = zip(extents, found, strict=True)
                self._refuse([one for one, digest in pairs if digest != one.sha256], name)
                self._intact.add(name)
            return ShardedArray(extents) if self.shards else extents[0].map()

    def _fetch_shards(self) -> None:
        """Copy the shards that are only at a URL to this machine, beside the store."""
        absent = [path for path in self.shards if not path.exists()] if self.shards_at else []
        if absent:
            place = Place(self.shards_at)
            names = place.names()
            with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
                wanted = [path for path in absent if path.name in names]
                list(pool.map(lambda path: place.fetch(path.name, path), wanted))

    def _refuse(self, changed: Sequence[Extent], names: str) -> None:
        """Raise an error that names the files of changed or missing extents, if there are any."""
        paths = list(dict.fromkeys(extent.path for extent in changed))
        require(self.path not in paths, f"the content of {names} changed")
        if paths:
            listed = " ".join(repr(str(path)) for path in paths[:5]) + " …" * (len(paths) > 5)
            remote = f", delete them in {self.shards_at}, too" * bool(self.shards_at)
            few = ", ".join(path.name for path in paths[:5])
            lost = f"{len(paths)} of {len(self.shards)}: {few}"
            what = f"Shards of the feature store are missing or damaged, {lost}."
            hint = f"rm -f {listed}{remote}, and extract again: only they are made again"
            raise StoreError(what, where=self.path, next_step=hint)

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits of the backbone's own classifier, of shape (n, source classes), or ``None``."""
        return self.features(LOGITS) if LOGITS in self.shapes else None

    def verify(self) -> None:
        """Read all arrays and compare them with the digests taken when the store was sealed.

        Raises
        ------
        StoreError
            With the names of all arrays, or shards, that have changed.
        """
        store = FeatureStore(self.path)
        with translate_errors(self.path):
            store._fetch_shards()
            every = ((name, one) for name, extents in store._arrays.items() for one in extents)
            changed = [(name, extent) for name, extent in every if not extent.is_intact()]
            names = ", ".join(dict.fromkeys(name for name, _ in changed))
            store._refuse([extent for _, extent in changed], names)


def scan_stores(
    folder: Path, hashes: FileHashes | None = None
) -> tuple[list[FeatureStore], list[StoreError]]:
    """Return the sealed stores below a folder, and an error for each damaged or outdated one."""
    stores: list[FeatureStore] = []
    errors: list[StoreError] = []
    for path in store_files(folder):
        try:
            stores.append(FeatureStore(path, hashes))
        except StoreError as error:
            errors.append(error)
    for journal in sorted(folder.rglob(f"*.h5{layout.JOURNAL}")):
        path = journal.with_suffix("")
        parts = [journal, layout.partial_path(path), path.with_name(path.name + ".undo")]
        left = " ".join(repr(str(part)) for part in parts if part.exists())
        what = "An unfinished feature store of featpipe 0.1 was left behind."
        next_step = f"it cannot be continued: rm {left}"
        errors.append(StoreError(what, where=journal, next_step=next_step))
    return stores, errors
