"""Export a store to other tools."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.fingerprint import SEAL, seal_archive
from featpipe.lazy import Lazy, check_installed
from featpipe.steps.grammar import table_file
from featpipe.store.reader import FeatureStore
from featpipe.workspace import atomic_write, neutralised, refuse_foreign

pd = Lazy("pandas")  # takes half a second to import, and .npz and .h5 do not need it

_WRITTEN = "featpipe store export"


def export_store(
    store: FeatureStore, target: Path, layer: str | None = None, *, force: bool = False
) -> int:
    """Write ids, labels, class names and one layer; return the number of rows written.

    Skipped rows have no features and are left out; without classes there are no labels. The suffix
    of ``target`` determines the format: ``.npz``, ``.parquet``, ``.csv`` or ``.h5``; ``layer`` is
    the first one by default.

    Raises
    ------
    UsageError
        For any other suffix, and for a file that featpipe did not write, unless ``force``.
    MissingExtraError
        If ``.parquet`` is requested and pyarrow is not installed.
    """
    table_file(target)
    kind = target.suffix
    if kind == ".parquet":
        check_installed("pyarrow", "parquet")
    rows = np.setdiff1d(np.arange(len(store)), list(store.skipped))
    features = np.asarray(store.features(layer)[rows])
    features = features.reshape(len(rows), math.prod(features.shape[1:]))
    ids, labels = [store.ids[row] for row in rows], store.labels[rows]
    header = b"id,label,class,f0" if store.classes else b"id,f0,"
    mark = {".npz": SEAL, ".csv": header}.get(kind, _WRITTEN.encode())
    refuse_foreign(target, mark, force=force)
    with atomic_write(target) as temporary:
        if kind in (".npz", ".h5"):
            text = np.str_ if kind == ".npz" else h5py.string_dtype()
            arrays: dict[str, Any] = {"ids": np.array(ids, text)}
            if store.classes:
                arrays |= {"labels": labels, "classes": np.array(store.classes, text)}
            arrays["features"] = features
            if store.logits is not None:
                arrays["logits"] = store.logits[rows]
            if kind == ".npz":
                with temporary.open("wb") as stream:
                    np.savez_compressed(stream, **arrays)
                seal_archive(temporary)
            else:
                with h5py.File(temporary, "w", locking=False) as file:
                    file.attrs["written by"] = np.bytes_(_WRITTEN)  # near the start of the file
                    for name, array in arrays.items():
                        file[name] = array
            return len(rows)
        columns: dict[str, Any] = {"id": ids}
        if store.classes:
            names = [store.classes[label] if label >= 0 else None for label in labels]
            columns |= {"label": labels, "class": names}
        numbered = [f"f{number}" for number in range(features.shape[1])]
        table = pd.DataFrame(columns).join(pd.DataFrame(features, columns=numbered))
        if kind == ".csv":
            neutralised(table).to_csv(temporary, index=False)
        else:
            table.attrs["written by"] = _WRITTEN  # stored in the file's metadata
            table.to_parquet(temporary, index=False)
    return len(rows)
