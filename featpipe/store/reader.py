"""Reading sealed stores; nothing in a file is trusted unchecked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError, UnknownNameError, did_you_mean
from featpipe.steps.grammar import LOGITS
from featpipe.store.layout import (
    HDF5_SIGNATURE,
    JOURNAL,
    SCHEMA_VERSION,
    hdf5_size,
    partial_path,
)

_READ_BYTES = 1 << 22
_LOGITS = f"features/{LOGITS}"
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("manifest", "run", "skipped", "digests"), dict),
    **dict.fromkeys(("ids", "classes", "folds"), list),
    "fingerprint": str,
    "source_classes": (list, type(None)),
}
# Types and numbers of dimensions that an array may have.
_FEATURE_TYPES = (("float32", "float16", "uint8"), range(2, 9))
_TYPES = {"labels": (("int64",), (1,)), _LOGITS: (("float32",), (2,))}


class ArrayExtent(NamedTuple):
    """Where a contiguous array is stored in the file, and the digest of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    sha256: str


class FeatureStore:
    """A sealed feature store, read-only.

    Everything but the feature arrays is read at once and the file closed again; feature arrays
    are memory-mapped, so worker processes share them and nothing is copied.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    ids : list of str
    labels : ndarray of shape (n,), int64
    classes : tuple of str
    layers : tuple of str
        In the order in which they were asked for.
    folds : tuple of ndarray of int64
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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with _translate_errors(self.path):
            _check_beginning(self.path)
            with h5py.File(self.path, "r", locking=False) as file:
                record = _read_record(file, self.path)
                self._arrays = {
                    name: _extent(file, name, sha256) for name, sha256 in record["digests"].items()
                }
            self.labels: NDArray[np.int64] = np.array(self._map("labels"))
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        """Take over the record after checking it against itself and the arrays."""
        n = len(self.labels)
        self.fingerprint: str = record["fingerprint"]
        self.manifest: dict[str, Any] = record["manifest"]
        self.run: dict[str, Any] = record["run"]
        self.ids = _texts("ids", record["ids"])
        dataset = self.manifest.get("dataset")
        _require(isinstance(dataset, dict), "manifest names no dataset")
        images = self.manifest["dataset"].get("images", n)
        _require(len(self.ids) == n == images, f"{n} labels, {len(self.ids)} ids, {images} images")
        self.classes = tuple(_texts("classes", record["classes"]))
        in_range = bool(((self.labels >= -1) & (self.labels < len(self.classes))).all())
        _require(in_range and not self._changed("labels"), "the content of labels changed")
        rows = _rows("skipped", record["skipped"].get("rows"), n).tolist()
        reasons = _texts("skipped", record["skipped"].get("reasons"))
        self.skipped = dict(zip(rows, reasons, strict=True))
        self.folds = tuple(_rows("folds", rows, n) for rows in record["folds"])
        self.layers = tuple(_texts("layers", self.manifest.get("layers")))
        for name in [f"features/{layer}" for layer in self.layers] or ["features"]:
            _require(name in self._arrays, f"it has no {name}")
        for name, array in self._arrays.items():
            _require(array.shape[0] == n, f"{name} has shape {array.shape} for {n} images")
        self.source_classes: tuple[list[str], list[str]] | None = None
        if source := record["source_classes"]:
            ids, *names = (_texts("source_classes", texts) for texts in source)
            columns = self._arrays[_LOGITS].shape[1] if _LOGITS in self._arrays else len(ids)
            fit = [len(ids), *map(len, names)] == [columns, columns]
            _require(fit, "source_classes do not fit the logits")
            self.source_classes = ids, names[0]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} rows, layers {self.layers})"

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

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
        """
        layer = layer or self.layers[0]
        held = dict.fromkeys((*self.layers, *([LOGITS] if _LOGITS in self._arrays else [])))
        if layer not in held:
            hint = did_you_mean(layer, held)
            raise UnknownNameError(
                f"The store holds no layer {layer!r}.",
                known=held,
                where=self.path,
                next_step=f"{hint} or extract it: featpipe extract … --layer {layer}"
                if hint
                else f"featpipe extract … --layer {layer}",
            )
        with _translate_errors(self.path):
            return self._map(f"features/{layer}")

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits of the backbone's own classifier, of shape (n, source classes), or ``None``."""
        return self.features(LOGITS) if _LOGITS in self._arrays else None

    def _map(self, name: str) -> NDArray[Any]:
        array = self._arrays[name]
        if not array.n_bytes:
            return np.empty(array.shape, array.dtype)
        return np.memmap(self.path, array.dtype, "r", array.offset, array.shape)

    def _changed(self, name: str) -> bool:
        """Return whether the bytes of an array are other than the sealed ones."""
        array = self._arrays[name]
        digest, left = hashlib.sha256(), array.n_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(array.offset)
            while left and (piece := file.read(min(_READ_BYTES, left))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest() != array.sha256

    def verify(self) -> None:
        """Read everything and compare it with the digests taken when the store was sealed.

        Raises
        ------
        StoreError
            Naming every array whose content changed.
        """
        store = FeatureStore(self.path)
        with _translate_errors(self.path):
            changed = [name for name in store._arrays if store._changed(name)]
            _require(not changed, f"the content of {', '.join(changed)} changed")


def scan_stores(folder: Path) -> tuple[list[FeatureStore], list[StoreError]]:
    """Return the sealed stores below a folder, and what is wrong with those that are damaged.

    What featpipe 0.1 left of a store that it did not finish is named among the latter.
    """
    stores: list[FeatureStore] = []
    errors: list[StoreError] = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            stores.append(FeatureStore(path))
        except StoreError as error:
            errors.append(error)
    for journal in sorted(folder.rglob(f"*.h5{JOURNAL}")):
        path = journal.with_suffix("")
        parts = [journal, partial_path(path), path.with_name(path.name + ".undo")]
        left = " ".join(repr(str(part)) for part in parts if part.exists())
        errors.append(
            StoreError(
                "An unfinished feature store of featpipe 0.1 was left behind.",
                where=journal,
                next_step=f"it cannot be continued: rm {left}",
            )
        )
    return stores, errors


def _check_beginning(path: Path) -> None:
    """Refuse, before HDF5 sees it, a file that is no store, cut off, or longer than it was."""
    with path.open("rb") as file:
        head = file.read(48)
    if head.startswith(b"featpipe feature store\n"):
        raise _another_schema(path, 1)
    if not head.startswith(HDF5_SIGNATURE + b"\x02"):  # older HDF5 formats have no checksums
        raise _not_sealed(path)
    sealed_bytes, n_bytes = hdf5_size(head), path.stat().st_size
    _require(n_bytes == sealed_bytes, f"it has {n_bytes} bytes instead of {sealed_bytes}")


def _read_record(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return everything but the arrays, which the seal proves unchanged."""
    for name, kind in (("schema", "i"), ("seal", "S")):
        if name not in file.attrs or file.attrs.get_id(name).dtype.kind != kind:
            raise _not_sealed(path)
    if file.attrs["schema"] != SCHEMA_VERSION:
        raise _another_schema(path, file.attrs["schema"])
    dataset = _dataset(file, "record")
    _require(dataset.dtype.kind == "S", "its record is not text")
    text = dataset[()]
    sealed = hashlib.sha256(text).hexdigest().encode() == file.attrs["seal"]
    _require(sealed, "its ids, manifest or other records changed")
    record = json.loads(text)
    for name, kind in _KINDS.items():
        _require(
            isinstance(record, dict) and isinstance(record.get(name), kind),
            f"{name} is missing or of another type",
        )
    _require("labels" in record["digests"], "it has no labels")
    return dict(record)


def _extent(file: h5py.File, name: str, sha256: str) -> ArrayExtent:
    dataset = _dataset(file, name)
    dtype, shape = str(dataset.dtype), tuple(dataset.shape)
    types, dims = _TYPES.get(name, _FEATURE_TYPES)
    _require(dtype in types and len(shape) in dims, f"{name} has shape {shape} and type {dtype}")
    n_bytes = math.prod(shape) * dataset.dtype.itemsize
    offset = dataset.id.get_offset()
    stored = n_bytes == 0 or (offset is not None and offset + n_bytes <= file.id.get_filesize())
    _require(stored, f"the bytes of {name} are not in the file")
    return ArrayExtent(dtype, shape, offset or 0, n_bytes, sha256)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset whose bytes are all in this file, in one piece."""
    item = file
    for part in name.split("/"):
        link = item.id.links.get_info(part.encode())
        _require(link.type == h5py.h5l.TYPE_HARD, f"{name} is a link to elsewhere")
        item = item[part]
    plan = item.id.get_create_plist()
    _require(
        isinstance(item, h5py.Dataset)
        and item.shape is not None
        and plan.get_layout() == h5py.h5d.CONTIGUOUS
        and not plan.get_external_count(),
        f"{name} is not a contiguous array",
    )
    return item


def _texts(name: str, values: Any) -> list[str]:
    texts = isinstance(values, list) and all(isinstance(value, str) for value in values)
    _require(texts, f"{name} is not a list of text")
    return list(values)


def _rows(name: str, values: Any, n: int) -> NDArray[np.int64]:
    rows = isinstance(values, list) and all(type(row) is int and 0 <= row < n for row in values)
    _require(rows, f"{name} holds other than rows from 0 to {n - 1}")
    return np.array(values, dtype=np.int64)


def _require(condition: bool, detail: str) -> None:
    if not condition:
        raise ValueError(detail)


def _another_schema(path: Path, schema: int) -> StoreError:
    return StoreError(
        "The feature store was written by featpipe 0.1."
        if schema == 1
        else "The feature store has another schema.",
        where=path,
        expected=f"schema {SCHEMA_VERSION}",
        got=f"schema {schema}",
        next_step=f"delete it and extract it again: rm {str(path)!r}",
    )


def _not_sealed(path: Path) -> StoreError:
    # Deleting is not suggested: this may be any file of the user's, named by mistake.
    return StoreError(
        "The file is not a sealed feature store.",
        where=path,
        next_step="name another, or run the extract command again: featpipe store list",
    )


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Explain why a file cannot be read as a store."""
    try:
        yield
    except FileNotFoundError:
        unfinished = partial_path(path).exists()
        raise StoreError(
            "The feature store is unfinished." if unfinished else "There is no such feature store.",
            where=path,
            next_step="run the extract command again: it continues where it stopped"
            if unfinished
            else "featpipe store list",
        ) from None
    except IsADirectoryError:
        raise StoreError("A feature store is a file, this is a folder.", where=path) from None
    except PermissionError:
        raise StoreError("The feature store may not be read.", where=path) from None
    except (OSError, LookupError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise StoreError(
            f"The feature store is damaged: {error}.",
            where=path,
            next_step=f"delete it and extract again: rm {str(path)!r}",
        ) from error
