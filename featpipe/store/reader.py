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
from featpipe.fingerprint import FileHashes, of_mapping, of_part
from featpipe.notebook import html_table
from featpipe.steps.grammar import LOGITS
from featpipe.store.layout import (
    HDF5_SIGNATURE,
    JOURNAL,
    LOOKS,
    MAX_RECORD_BYTES,
    SCHEMA_VERSION,
    hdf5_size,
    partial_path,
)

_LOGITS = f"features/{LOGITS}"
# What a record holds: values of a type, lists of one kind, mappings with at least these keys.
SCHEMA: dict[str, Any] = {
    "fingerprint": str,
    "manifest": {
        "dataset": {"name": str, "split": str, "images": int, "fingerprint": str},
        "backbone": {"model": str},
        "layers": [str],
        "dtype": str,
    },
    "ids": [str],
    "classes": [str],
    "folds": [[int]],
    "skipped": {"rows": [int], "reasons": [str]},
    "run": {"created": str, "seconds": float, "images_per_s": float},
    "digests": dict,
}
_FEATURE_TYPES = ("float32", "float16", "uint8")


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
    are memory-mapped, so worker processes share them and nothing is copied. The first look at an
    array compares it with its digest.

    Parameters
    ----------
    path : str or Path
    hashes : FileHashes, optional
        Remembers which arrays were compared, so that the next process need not read them for it.

    Attributes
    ----------
    ids : list of str
    labels : ndarray of shape (n,), int64
    classes : tuple of str
    layers : tuple of str
        In the order in which they were asked for.
    shapes : dict of str to tuple of int
        Shape of one row of each layer, and of the logits where there are any.
    folds : tuple of ndarray of int64
    groups : list of str
        One for each row; empty where images have no groups.
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

    def __init__(self, path: str | os.PathLike[str], hashes: FileHashes | None = None) -> None:
        self.path = Path(path)
        self._hashes = hashes or FileHashes()
        self._intact: set[str] = set()
        with _translate_errors(self.path):
            _check_beginning(self.path)
            with h5py.File(self.path, "r", locking=False) as file:
                record = _read_record(file, self.path)
                self._arrays = _extents(file, record)
            self.labels: NDArray[np.int64] = np.array(self._map("labels"))
            _require(self._digest("labels") == self._arrays["labels"].sha256, "labels changed")
            in_range = (self.labels >= -1) & (self.labels < len(record["classes"]))
            _require(bool(in_range.all()), "labels are of no class")
        self.fingerprint: str = record["fingerprint"]
        self.manifest: dict[str, Any] = record["manifest"]
        self.run: dict[str, Any] = record["run"]
        self.ids: list[str] = record["ids"]
        self.classes: tuple[str, ...] = tuple(record["classes"])
        self.layers: tuple[str, ...] = tuple(self.manifest["layers"])
        self.shapes = {
            name.removeprefix("features/"): array.shape[1:]
            for name, array in self._arrays.items()
            if name.startswith("features/")
        }
        skipped = record["skipped"]
        self.skipped: dict[int, str] = dict(zip(skipped["rows"], skipped["reasons"], strict=True))
        self.folds = tuple(np.array(rows, dtype=np.int64) for rows in record["folds"])
        self.groups: list[str] = record["groups"]
        meaning = record["source_classes"]
        self.source_classes: tuple[list[str], list[str]] | None = meaning and tuple(meaning)

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
        StoreError
            If its content is not what was sealed.
        """
        layer = layer or self.layers[0]
        if layer not in self.shapes:
            hint, again = did_you_mean(layer, self.shapes), f"featpipe extract … --layer {layer}"
            raise UnknownNameError(
                f"The store holds no layer {layer!r}.",
                known=self.shapes,
                where=self.path,
                next_step=f"{hint} or extract it: {again}" if hint else again,
            )
        return self._intact_array(f"features/{layer}")

    @property
    def has_looks(self) -> bool:
        """Whether it is stored what the images look like."""
        return "looks/digest" in self._arrays

    @property
    def digests(self) -> NDArray[np.void] | None:
        """Digests of the decoded images, of shape (n,); zeros where one was skipped."""
        if not self.has_looks:
            return None
        return np.ascontiguousarray(self.looks("digest")).view("V16")[:, 0]

    def looks(self, part: str) -> NDArray[Any]:
        """Return what the images look like, where :attr:`has_looks`; zeros for a skipped one.

        Parameters
        ----------
        part : {"digest", "size", "thumbnail"}
            Of shape (n, 16), uint8; (n, 2), int32: height and width; (n, 32, 32), uint8, grey.
        """
        return self._intact_array(f"looks/{part}")

    def _intact_array(self, name: str) -> NDArray[Any]:
        with _translate_errors(self.path):
            if name not in self._intact:
                found = self._hashes.many([self.path], name, digest_of=lambda _, n: self._digest(n))
                _require(found == [self._arrays[name].sha256], f"the content of {name} changed")
                self._intact.add(name)
            return self._map(name)

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits of the backbone's own classifier, of shape (n, source classes), or ``None``."""
        return self.features(LOGITS) if LOGITS in self.shapes else None

    def _map(self, name: str) -> NDArray[Any]:
        array = self._arrays[name]
        if not array.n_bytes:
            return np.empty(array.shape, array.dtype)
        return np.memmap(self.path, array.dtype, "r", array.offset, array.shape)

    def _digest(self, name: str) -> str:
        return of_part(self.path, self._arrays[name].offset, self._arrays[name].n_bytes)

    def verify(self) -> None:
        """Read everything and compare it with the digests taken when the store was sealed.

        Raises
        ------
        StoreError
            Naming every array whose content changed.
        """
        store = FeatureStore(self.path)
        with _translate_errors(self.path):
            arrays = store._arrays.items()
            changed = [name for name, array in arrays if store._digest(name) != array.sha256]
            _require(not changed, f"the content of {', '.join(changed)} changed")


def scan_stores(
    folder: Path, hashes: FileHashes | None = None
) -> tuple[list[FeatureStore], list[StoreError]]:
    """Return the sealed stores below a folder, and what is wrong with those that are damaged.

    What featpipe 0.1 left of a store that it did not finish is named among the latter.
    """
    stores: list[FeatureStore] = []
    errors: list[StoreError] = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            stores.append(FeatureStore(path, hashes))
        except StoreError as error:
            errors.append(error)
    for journal in sorted(folder.rglob(f"*.h5{JOURNAL}")):
        path = journal.with_suffix("")
        parts = [journal, partial_path(path), path.with_name(path.name + ".undo")]
        left = " ".join(repr(str(part)) for part in parts if part.exists())
        what = "An unfinished feature store of featpipe 0.1 was left behind."
        next_step = f"it cannot be continued: rm {left}"
        errors.append(StoreError(what, where=journal, next_step=next_step))
    return stores, errors


def _check_beginning(path: Path) -> None:
    """Refuse, before HDF5 sees it, a file that is no store, cut off, or longer than it was."""
    _require(path.is_file() or path.is_dir() or not path.exists(), "it is no regular file")
    with path.open("rb") as file:
        head = file.read(48)
    if head.startswith(b"featpipe feature store\n"):
        raise _another_schema(path, 1)
    if not head.startswith(HDF5_SIGNATURE + b"\x02"):  # older HDF5 formats have no checksums
        raise _not_sealed(path)
    sealed_bytes, n_bytes = hdf5_size(head), path.stat().st_size
    _require(n_bytes == sealed_bytes, f"it has {n_bytes} bytes instead of {sealed_bytes}")


def _read_record(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return everything but the arrays: what the seal proves unchanged, checked against itself."""
    for name, dtype in (("schema", np.dtype("int64")), ("seal", np.dtype("S64"))):
        attribute = file.attrs.get_id(name) if name in file.attrs else None
        if attribute is None or (attribute.dtype, attribute.shape) != (dtype, ()):
            raise _not_sealed(path)
    if file.attrs["schema"] != SCHEMA_VERSION:
        raise _another_schema(path, file.attrs["schema"])
    dataset = _dataset(file, "record")
    _require(dataset.dtype.kind == "S" and dataset.shape == (), "its record is not text")
    n_bytes = dataset.dtype.itemsize
    _require(n_bytes <= MAX_RECORD_BYTES, f"its record has {n_bytes} bytes")
    _place("its record", dataset)
    text = dataset[()]
    sealed = hashlib.sha256(text).hexdigest().encode() == file.attrs["seal"]
    _require(sealed, "its ids, manifest or other records changed")
    record: dict[str, Any] = json.loads(text)
    conform("its record", record, SCHEMA)
    manifest, skipped = record["manifest"], record["skipped"]
    n, layers, dtype = manifest["dataset"]["images"], manifest["layers"], manifest["dtype"]
    known = record["fingerprint"] == of_mapping(manifest)
    _require(known, "its fingerprint is not that of its manifest")
    _require(len(record["ids"]) == n, f"{len(record['ids'])} ids, {n} images")
    for rows in (skipped["rows"], *record["folds"]):
        _require(all(0 <= row < n for row in rows), "skipped rows or folds are out of range")
    _require(len(skipped["rows"]) == len(skipped["reasons"]), "skipped rows without a reason")
    _require(len(set(layers)) == len(layers) > 0, "layers are not named")
    _require(dtype in _FEATURE_TYPES, f"features of type {dtype!r}")
    groups, meaning = record.setdefault("groups", []), record.setdefault("source_classes", None)
    conform("groups", groups, [str])
    _require(len(groups) in (0, n), f"{len(groups)} groups, {n} images")
    conform("source_classes", meaning or [[], []], [[str]])
    _require(meaning is None or len(meaning) == 2, "source_classes are not ids and names")
    conform("run/request", record["run"].get("request", {"inputs": {}}), {"inputs": dict})
    return record


def _extents(file: h5py.File, record: dict[str, Any]) -> dict[str, ArrayExtent]:
    """Return where the arrays are that the record implies: no others, of its types and rows."""
    source, digests, n = record["source_classes"], record["digests"], len(record["ids"])
    layers = dict.fromkeys(record["manifest"]["layers"], record["manifest"]["dtype"])
    if source is not None or LOGITS in layers:
        layers[LOGITS] = "float32"
    types = {"labels": "int64"} | {f"features/{name}": dtype for name, dtype in layers.items()}
    if LOOKS.keys() <= digests.keys():
        types |= {name: dtype for name, (dtype, _) in LOOKS.items()}
    _require(digests.keys() == types.keys(), f"it holds {', '.join(digests)}")
    arrays = {}
    for name, dtype in types.items():
        dataset = _dataset(file, name)
        shape, given = tuple(dataset.shape), dataset.dtype
        dims = range(1, 2) if name == "labels" else range(2, 9)
        fit = len(shape) in dims and shape[0] == n and all(shape[1:])
        fit = fit and given == np.dtype(dtype) and shape[1:] == LOOKS.get(name, (0, shape[1:]))[1]
        _require(fit, f"{name} has shape {shape} and type {given} for {n} images")
        offset, n_bytes = _place(name, dataset)
        arrays[name] = ArrayExtent(dtype, shape, offset, n_bytes, digests[name])
    if source is not None:
        ids, names = source
        fit = arrays[_LOGITS].shape[1:] == (len(ids),) == (len(names),)
        _require(fit, "source_classes do not fit the logits")
    return arrays


def _place(name: str, dataset: h5py.Dataset) -> tuple[int, int]:
    """Return the first byte and the number of bytes of an array, all of which are in the file."""
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    offset, size = dataset.id.get_offset(), dataset.file.id.get_filesize()
    stored = n_bytes == 0 or (offset is not None and offset + n_bytes <= size)
    _require(stored, f"the bytes of {name} are not in the file")
    return offset or 0, n_bytes


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset whose bytes are all in this file, in one piece."""
    item = file
    for part in name.split("/"):
        link = item.id.links.get_info(part.encode())
        _require(link.type == h5py.h5l.TYPE_HARD, f"{name} is a link to elsewhere")
        item = item[part]
    plan, array = item.id.get_create_plist(), isinstance(item, h5py.Dataset)
    whole = array and item.shape is not None and plan.get_layout() == h5py.h5d.CONTIGUOUS
    _require(whole and not plan.get_external_count(), f"{name} is not a contiguous array")
    return item


def conform(name: str, value: Any, schema: Any) -> None:
    """Require that a JSON value is of the form that a schema describes."""
    kind = type(schema) if isinstance(schema, dict | list) else schema
    fits = type(value) is kind or (kind is float and type(value) is int)
    _require(fits, f"{name} is not of type {kind.__name__}")
    if isinstance(schema, dict):
        for key, part in schema.items():
            _require(key in value, f"{name} has no {key}")
            conform(key, value[key], part)
    elif isinstance(schema, list) and isinstance(schema[0], list):
        for part in value:
            conform(name, part, schema[0])
    elif isinstance(schema, list):  # of ten million ids, perhaps: not one after the other
        others = set(map(type, value)) - set(schema)
        _require(not others, f"{name} holds other than {schema[0].__name__}")


def _require(condition: bool, detail: str) -> None:
    if not condition:
        raise ValueError(detail)


def _another_schema(path: Path, schema: int) -> StoreError:
    old = schema == 1
    return StoreError(
        f"The feature store {'was written by featpipe 0.1' if old else 'has another schema'}.",
        where=path,
        expected=f"schema {SCHEMA_VERSION}",
        got=f"schema {schema}",
        next_step=f"delete it and extract it again: rm {str(path)!r}",
    )


def _not_sealed(path: Path) -> StoreError:
    # Deleting is not suggested: this may be any file of the user's, named by mistake.
    what = "The file is not a sealed feature store."
    next_step = "name another, or run the extract command again: featpipe store list"
    return StoreError(what, where=path, next_step=next_step)


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Explain why a file cannot be read as a store."""
    try:
        yield
    except FileNotFoundError:
        what, next_step = "There is no such feature store.", "featpipe store list"
        if partial_path(path).exists():
            what = "The feature store is unfinished."
            next_step = "run the extract command again: it continues where it stopped"
        raise StoreError(what, where=path, next_step=next_step) from None
    except IsADirectoryError:
        raise StoreError("A feature store is a file, this is a folder.", where=path) from None
    except PermissionError:
        raise StoreError("The feature store may not be read.", where=path) from None
    except (OSError, LookupError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        what = f"The feature store is damaged: {error}."
        next_step = f"delete it and extract again: rm {str(path)!r}"
        raise StoreError(what, where=path, next_step=next_step) from error
