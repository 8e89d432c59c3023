"""What other tools get: the same rows, skipped ones left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featpipe.errors import UnknownNameError, UsageError
from featpipe.store import FeatureStore, StoreWriter
from featpipe.store.export import export_store
from tests import stores


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    labels = np.array([0, 1, 2, -1, 0, 1])
    what = stores.content(n=6, dims=3, labels=labels, n_logits=2)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(stores.features(what), {1: "damaged"})
        return writer.seal(stores.RUN)


def test_npz(store: FeatureStore, tmp_path: Path) -> None:
    assert export_store(store, tmp_path / "new" / "x.npz") == 5
    with np.load(tmp_path / "new" / "x.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == [store.ids[row] for row in (0, 2, 3, 4, 5)]
        assert arrays["labels"].tolist() == [0, 2, -1, 0, 1]
        assert arrays["classes"].tolist() == list(store.classes)
        np.testing.assert_array_equal(arrays["features"], store.features()[[0, 2, 3, 4, 5]])
        np.testing.assert_array_equal(arrays["logits"], store.logits[[0, 2, 3, 4, 5]])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables(store: FeatureStore, tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / f"x.{ending}"
    assert export_store(store, target) == 5
    frame = pd.read_csv(target) if ending == "csv" else pd.read_parquet(target)
    assert list(frame.columns) == ["id", "label", "class", "f0", "f1", "f2"]
    assert frame["class"].isna().tolist() == [False, False, True, False, False]
    numbers = frame[["f0", "f1", "f2"]].to_numpy(np.float32)
    np.testing.assert_array_equal(numbers, store.features()[[0, 2, 3, 4, 5]])


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_equal_stores_give_equal_bytes(store: FeatureStore, tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    for name in ("x", "y"):
        export_store(store, tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"x.{ending}").read_bytes() == (tmp_path / f"y.{ending}").read_bytes()


@pytest.mark.parametrize("name", ["x.xlsx", "x", ".npz", "x.npz.gz"])
def test_other_endings_are_refused(store: FeatureStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="Cannot export"):
        export_store(store, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_unknown_layer_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'avgpool'"):
        raise_with_text(store, tmp_path)


def raise_with_text(store: FeatureStore, folder: Path) -> None:
    try:
        export_store(store, folder / "x.npz", "avgpol")
    except UnknownNameError as error:
        raise UnknownNameError(str(error)) from error
