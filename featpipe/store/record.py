"""Reading the record of a sealed store and the offsets of its arrays; every value is checked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError
from featpipe.fingerprint import of_bytes, of_mapping
from featpipe.steps.grammar import LOGITS
from featpipe.store import layout
from featpipe.store.arrays import Extent
from featpipe.urls import is_url

# Required content of a record: a type, a list of one type, or a mapping with at least these keys.
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
_SHARD = re.compile(r"\d{10,}-\d{10,}\.h5")
_FEATURE_TYPES = ("float32", "float16", "uint8")

Sealed = tuple[dict[str, Any], dict[str, list[Extent]], NDArray[np.int64]]


def read_sealed(stream: BinaryIO, path: Path, *, local: bool) -> Sealed:
    """Return the record of a store, the extents of its arrays, and its labels."""
    # Checked before HDF5 opens the file: is it a store, and neither truncated nor extended?
    head, n_bytes = stream.read(48), stream.seek(0, os.SEEK_END)
    if head.startswith(b"featpipe feature store\n"):
        raise _another_schema(path, 1)
    if not head.startswith(layout.HDF5_SIGNATURE + b"\x02"):  # older HDF5 formats have no checksums
        raise _not_sealed(path)
    sealed_bytes = layout.hdf5_size(head)
    require(n_bytes == sealed_bytes, f"it has {n_bytes} bytes instead of {sealed_bytes}")
    with h5py.File(path if local else stream, "r", locking=False) as file:
        record = _read_record(file, path)
        arrays, labels = _extents_of(file, record, path), file["labels"][()]
    require(of_bytes(labels.tobytes()) == arrays["labels"][0].sha256, "labels changed")
    in_range = (labels >= -1) & (labels < len(record["classes"]))
    require(bool(in_range.all()), "labels are of no class")
    return record, arrays, labels


def _read_record(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return everything but the arrays, verified by the seal and checked for consistency."""
    for name, dtype in (("schema", np.dtype("int64")), ("seal", np.dtype("S64"))):
        attribute = file.attrs.get_id(name) if name in file.attrs else None
        if attribute is None or (attribute.dtype, attribute.shape) != (dtype, ()):
            raise _not_sealed(path)
    schema = file.attrs["schema"]
    if schema not in (layout.SCHEMA_VERSION, layout.SHARDED_VERSION):
        raise _another_schema(path, schema)
    dataset = _dataset(file, "record")
    require(dataset.dtype.kind == "S" and dataset.shape == (), "its record is not text")
    n_bytes = dataset.dtype.itemsize
    require(n_bytes <= layout.MAX_RECORD_BYTES, f"its record has {n_bytes} bytes")
    _offset("its record", dataset)
    text = dataset[()]
    sealed = of_bytes(text).encode() == file.attrs["seal"]
    require(sealed, "its ids, manifest or other records changed")
    record: dict[str, Any] = json.loads(text)
    conform("its record", record, SCHEMA)
    manifest, skipped = record["manifest"], record["skipped"]
    n, layers, dtype = manifest["dataset"]["images"], manifest["layers"], manifest["dtype"]
    known = record["fingerprint"] == of_mapping(manifest)
    require(known, "its fingerprint is not that of its manifest")
    require(len(record["ids"]) == n, f"{len(record['ids'])} ids, {n} images")
    for rows in (skipped["rows"], *record["folds"]):
        require(all(0 <= row < n for row in rows), "skipped rows or folds are out of range")
    require(len(skipped["rows"]) == len(skipped["reasons"]), "skipped rows without a reason")
    require(len(set(layers)) == len(layers) > 0, "layers are not named")
    require(dtype in _FEATURE_TYPES, f"features of type {dtype!r}")
    groups, meaning = record.setdefault("groups", []), record.setdefault("source_classes", None)
    conform("groups", groups, [str])
    require(len(groups) in (0, n), f"{len(groups)} groups, {n} images")
    conform("source_classes", meaning or [[], []], [[str]])
    require(meaning is None or len(meaning) == 2, "source_classes are not ids and names")
    conform("run/request", record["run"].get("request", {"inputs": {}}), {"inputs": dict})
    if schema == layout.SHARDED_VERSION:
        conform("its record", record, {"shards": [dict], "shapes": dict})
        for shard in record["shards"]:
            conform("a shard", shard, {"file": str, "rows": int, "arrays": dict})
            require(bool(_SHARD.fullmatch(shard["file"])), f"a shard is called {shard['file']!r}")
        require(sum(shard["rows"] for shard in record["shards"]) == n, "its shards have other rows")
        conform("shards_at", at := record.setdefault("shards_at", ""), str)
        require(not at or is_url(at), f"its shards are at {at!r}")
    return record


def _extents_of(file: h5py.File, record: dict[str, Any], path: Path) -> dict[str, list[Extent]]:
    """Return the extents of the arrays that the record implies, with its types and row counts.

    A file that holds any other array is refused.
    """
    source, digests, n = record["source_classes"], record["digests"], len(record["ids"])
    layers = dict.fromkeys(record["manifest"]["layers"], record["manifest"]["dtype"])
    if source is not None or LOGITS in layers:
        layers[LOGITS] = "float32"
    types = {"labels": "int64"} | {f"features/{name}": dtype for name, dtype in layers.items()}
    held = {**digests, **record.get("shapes", {})}
    if layout.LOOKS.keys() <= held.keys():
        types |= {name: dtype for name, (dtype, _) in layout.LOOKS.items()}
    require(held.keys() == types.keys(), f"it holds {', '.join(held)}")
    arrays = {}
    for name, dtype in types.items():
        if name in digests:
            dataset = _dataset(file, name)
            shape, given = tuple(dataset.shape), dataset.dtype
            require(given == np.dtype(dtype), f"{name} is of type {given}")
            arrays[name] = [Extent(path, dtype, shape, _offset(name, dataset), digests[name])]
        else:
            shape, arrays[name] = (n, *record["shapes"][name]), []
            for shard in record["shards"]:
                offset, digest = shard["arrays"][name]
                conform(name, digest, str)
                require(type(offset) is int and offset >= 0, f"{name} begins at {offset}")
                place, rows = layout.shard_folder(path) / shard["file"], (shard["rows"], *shape[1:])
                arrays[name].append(Extent(place, dtype, rows, offset, digest))
        dims = range(1, 2) if name == "labels" else range(2, 9)
        _, row = layout.LOOKS.get(name, ("", shape[1:]))
        fit = len(shape) in dims and shape[0] == n and all(shape[1:]) and shape[1:] == row
        require(fit, f"{name} has shape {shape} for {n} images")
    if source is not None:
        ids, names = source
        fit = arrays[f"features/{LOGITS}"][0].shape[1:] == (len(ids),) == (len(names),)
        require(fit, "source_classes do not fit the logits")
    return arrays


def _offset(name: str, dataset: h5py.Dataset) -> int:
    """Return the offset of an array in the file, which must contain all its bytes."""
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    offset, size = dataset.id.get_offset(), dataset.file.id.get_filesize()
    stored = n_bytes == 0 or (offset is not None and offset + n_bytes <= size)
    require(stored, f"the bytes of {name} are not in the file")
    return offset or 0


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset that is stored contiguously in this file."""
    item = file
    for part in name.split("/"):
        link = item.id.links.get_info(part.encode())
        require(link.type == h5py.h5l.TYPE_HARD, f"{name} is a link to elsewhere")
        item = item[part]
    plan, array = item.id.get_create_plist(), isinstance(item, h5py.Dataset)
    whole = array and item.shape is not None and plan.get_layout() == h5py.h5d.CONTIGUOUS
    require(whole and not plan.get_external_count(), f"{name} is not a contiguous array")
    return item


def conform(name: str, value: Any, schema: Any) -> None:
    """Raise ValueError unless a JSON value conforms to a schema."""
    kind = type(schema) if isinstance(schema, dict | list) else schema
    fits = type(value) is kind or (kind is float and type(value) is int)
    require(fits, f"{name} is not of type {kind.__name__}")
    if isinstance(schema, dict):
        for key, part in schema.items():
            require(key in value, f"{name} has no {key}")
            conform(key, value[key], part)
    elif isinstance(schema, list) and isinstance(schema[0], list):
        for part in value:
            conform(name, part, schema[0])
    elif isinstance(schema, list):  # in one pass: there may be ten million ids
        others = set(map(type, value)) - set(schema)
        require(not others, f"{name} holds other than {schema[0].__name__}")


def require(condition: bool, detail: str) -> None:
    """Raise ValueError with a description of the problem unless the condition holds."""
    if not condition:
        raise ValueError(detail)


def _another_schema(path: Path, schema: int) -> StoreError:
    why = "was written by featpipe 0.1" if schema == 1 else "has another schema"
    what, hint = f"The feature store {why}.", f"delete it and extract it again: rm {str(path)!r}"
    expected, got = f"schema {layout.SCHEMA_VERSION}", f"schema {schema}"
    return StoreError(what, where=path, expected=expected, got=got, next_step=hint)


def _not_sealed(path: Path) -> StoreError:
    # No advice to delete it: this may be any file of the user, named by mistake.
    what = "The file is not a sealed feature store."
    next_step = "name another, or run the extract command again: featpipe store list"
    return StoreError(what, where=path, next_step=next_step)


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn any error of reading a store into a StoreError that says what to do."""
    try:
        yield
    except FileNotFoundError:
        what, next_step = "There is no such feature store.", "featpipe store list"
        if layout.partial_path(path).exists():
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
