"""Export a store to other tools."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd

from featpipe.errors import MissingExtraError, UsageError
from featpipe.fingerprint import SEAL, seal_archive
from featpipe.store.reader import FeatureStore
from featpipe.workspace import atomic_write, neutralised, refuse_foreign

_WRITTEN = "featpipe store export"


def export_store(
    store: FeatureStore, target: Path, layer: str | None = None, *, force: bool = False
) -> int:
    """Write ids, labels, class names and one layer; return the number of rows written.

    Skipped rows have no features and are left out. The suffix of ``target`` is the format:
    ``.npz``, ``.parquet`` or ``.csv``; ``layer`` is the first one by default.

    Raises
    ------
    UsageError
        For any other ending, and for a file that featpipe did not write, unless ``force``.
    MissingExtraError
        If ``.parquet`` is asked for and pyarrow is not installed.
    """
    if target.suffix not in (".npz", ".parquet", ".csv"):
        raise UsageError(
            f"Cannot export to {target.name!r}.",
            expected="a name that ends in .npz, .parquet or .csv",
        )
    if target.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet")
    rows = np.setdiff1d(np.arange(len(store)), list(store.skipped))
    features = np.asarray(store.features(layer)[rows])
    features = features.reshape(len(rows), math.prod(features.shape[1:]))
    ids, labels = [store.ids[row] for row in rows], store.labels[rows]
    mark = {".npz": SEAL, ".csv": b"id,label,class,f0", ".parquet": _WRITTEN.encode()}
    refuse_foreign(target, mark[target.suffix], force=force)
    with atomic_write(target) as temporary:
        if target.suffix == ".npz":
            arrays = {
                "ids": np.array(ids, dtype=np.str_),
                "labels": labels,
                "classes": np.array(store.classes, dtype=np.str_),
                "features": features,
            }
            if store.logits is not None:
                arrays["logits"] = store.logits[rows]
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, **arrays)
            seal_archive(temporary)
            return len(rows)
        names = [store.classes[label] if label >= 0 else None for label in labels]
        columns = [f"f{number}" for number in range(features.shape[1])]
        table = pd.DataFrame({"id": ids, "label": labels, "class": names})
        table = table.join(pd.DataFrame(features, columns=columns))
        if target.suffix == ".csv":
            neutralised(table).to_csv(temporary, index=False)
        else:
            table.attrs["written by"] = _WRITTEN  # pandas puts it into the file's metadata
            table.to_parquet(temporary, index=False)
    return len(rows)
