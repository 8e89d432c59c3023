"""A damaged store is refused with one clear error; it never gives a wrong number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

from featpipe.errors import StoreError
from featpipe.fingerprint import FileHashes
from featpipe.store import FeatureStore, scan_stores
from featpipe.store.arrays import Extent
from tests import stores
from tests.store.damage import DAMAGE, damage, relaxed


def check_damage(whole: Path, folder: Path, how: tuple[Any, ...]) -> None:
    """Damage is found, or it hit a byte that HDF5 does not use and changes nothing."""
    path = folder / "damaged.h5"
    path.write_bytes(damage(whole.read_bytes(), how))
    try:
        store = FeatureStore(path)
        store.verify()
    except StoreError as error:
        where = error.details["where"]
    else:
        where = str(path)
        assert path.stat().st_size == whole.stat().st_size
        assert stores.everything(store) == stores.everything(FeatureStore(whole))
    assert where == str(path)


@settings(relaxed, max_examples=60)
@given(how=DAMAGE)
def test_every_damage_is_found(whole: Path, tmp_path_factory: Any, how: tuple[Any, ...]) -> None:
    check_damage(whole, whole.parent, how)


@pytest.mark.long
@settings(relaxed, max_examples=500)
@given(how=DAMAGE)
def test_every_damage_is_found_long(whole: Path, how: tuple[Any, ...]) -> None:
    check_damage(whole, whole.parent, how)


def test_opening_alone_finds_what_is_not_a_feature(whole: Path, tmp_path: Path) -> None:
    """Only the bytes of the features, which are too many to read each time, wait for their use."""
    content = whole.read_bytes()
    wanted = stores.everything(FeatureStore(whole))
    arrays = {}
    with h5py.File(whole) as file:
        for name in ("features/avgpool", "features/logits"):
            start = file[name].id.get_offset()
            arrays[name] = range(start, start + file[name].nbytes)
    path = tmp_path / "a.h5"
    unused = []
    for place in range(0, len(content), 13):
        path.write_bytes(damage(content, ("flip", (place + 0.5) / len(content), 3)))
        hit = [name for name, array in arrays.items() if place in array]
        if hit:
            store, layer = FeatureStore(path), hit[0].removeprefix("features/")
            for look in (store.verify, lambda store=store, layer=layer: store.features(layer)):
                with pytest.raises(StoreError, match=f"the content of {hit[0]} changed"):
                    look()
            continue
        try:
            assert stores.everything(FeatureStore(path)) == wanted
        except StoreError:
            continue
        unused.append(place)
    assert not unused or max(unused) - min(unused) < 2048  # the rest of HDF5's block of metadata


def test_verify_names_every_array_that_changed(tmp_path: Path) -> None:
    store = stores.sealed(tmp_path / "a.h5", stores.content(n_logits=3))
    with h5py.File(store.path, "r+") as file:
        file["features/avgpool"][5, 2] = 0
        file["features/logits"][1, 1] = 0
    with pytest.raises(StoreError, match="content of features/avgpool, features/logits changed"):
        store.verify()


def test_what_was_compared_is_remembered_until_the_file_changes(
    tmp_path: Path, let_files_settle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stores.sealed(tmp_path / "a.h5").path
    hashes = FileHashes(tmp_path / "hashes.sqlite")
    let_files_settle()
    FeatureStore(path, hashes).features()
    read = []
    digest = Extent.digest
    monkeypatch.setattr(Extent, "digest", lambda one: read.append(one.shape) or digest(one))
    store = FeatureStore(path, hashes)
    store.features()
    assert not read
    with h5py.File(path, "r+") as file:
        file["features/avgpool"][0, 0] += 1
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, store.path.stat().st_mtime_ns))
    with pytest.raises(StoreError, match="the content of features/avgpool changed"):
        FeatureStore(path, hashes).features()
    assert (60, 8) in read


def test_features_of_a_file_cut_off_since_are_refused(tmp_path: Path) -> None:
    store = stores.sealed(tmp_path / "a.h5")
    with store.path.open("rb+") as file:
        file.truncate(100)
    with pytest.raises(StoreError, match="damaged"):
        store.features()


def test_opening_imports_nothing_heavy() -> None:
    code = "import sys, featpipe.store; print(*{'torch', 'sklearn', 'pandas'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


def test_scanning_tells_damaged_from_whole(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "good.h5").write_bytes(whole.read_bytes())
    (tmp_path / "x" / "bad.h5").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "x" / "new.h5.partial").write_bytes(b"")
    stores, errors = scan_stores(tmp_path)
    assert [store.path.name for store in stores] == ["good.h5"]
    assert [Path(error.details["where"]).name for error in errors] == ["bad.h5"]


def test_what_featpipe_0_1_left_unfinished_is_named(tmp_path: Path) -> None:
    for ending in (".partial", ".journal", ".undo"):
        (tmp_path / f"train-0123.h5{ending}").write_bytes(b"{}")
    stores, (error,) = scan_stores(tmp_path)
    assert not stores
    assert "featpipe 0.1" in error.what
    assert error.details["where"] == str(tmp_path / "train-0123.h5.journal")
    assert all(error.details["next"].count(ending) == 1 for ending in (".partial", ".undo"))


def test_four_lines_of_plain_h5py_read_a_store(whole: Path) -> None:
    """The lines of docs/feature-store.md."""
    with h5py.File(whole) as file:
        features = file["features/avgpool"][:]
        labels = file["labels"][:]
        record = json.loads(file["record"][()])
        offset = file["features/avgpool"].id.get_offset()
    mapped = np.memmap(whole, "float32", "r", offset, features.shape)
    store = FeatureStore(whole)
    np.testing.assert_array_equal(features, store.features())
    np.testing.assert_array_equal(mapped, features)
    assert labels.tolist() == store.labels.tolist()
    assert tuple(record["classes"]) == store.classes
    assert record["manifest"] == store.manifest
