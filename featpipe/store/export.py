"""Give a store's content to other tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featpipe.errors import MissingExtraError, UsageError
from featpipe.store.reader import FeatureStore
from featpipe.workspace import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def export_store(store: FeatureStore, target: Path, layer: str | None = None) -> int:
    """Write ids, labels, class names and one layer; return the number of rows written.

    Skipped rows have no features and are left out.

    Parameters
    ----------
    store : FeatureStore
    target : Path
        The ending says how: ``.npz``, ``.parquet`` or ``.csv``.
    layer : str, optional
        Default: the first layer.

    Raises
    ------
    UsageError
        For any other ending.
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
    features = store.features(layer)[rows].reshape(len(rows), -1)
    with atomic_write(target) as temporary:
        if target.suffix == ".npz":
            arrays = {
                "ids": np.array([store.ids[row] for row in rows], dtype=np.str_),
                "labels": store.labels[rows],
                "classes": np.array(store.classes, dtype=np.str_),
                "features": features,
            }
            if store.logits is not None:
                arrays["logits"] = store.logits[rows]
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, **arrays)
        elif target.suffix == ".csv":
            _frame(store, rows, features).to_csv(temporary, index=False)
        else:
            _frame(store, rows, features).to_parquet(temporary, index=False)
    return len(rows)


def _frame(store: FeatureStore, rows: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - only tables need it

    names = [store.classes[label] if label >= 0 else None for label in store.labels[rows]]
    columns = [f"f{number}" for number in range(features.shape[1])]
    frame = pd.DataFrame(np.asarray(features), columns=columns)
    frame.insert(0, "id", [store.ids[row] for row in rows])
    frame.insert(1, "label", store.labels[rows])
    frame.insert(2, "class", names)
    return frame
