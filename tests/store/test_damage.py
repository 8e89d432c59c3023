"""A damaged store is refused with one clear error; it never gives a wrong number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.errors import StoreError
from featpipe.store import FeatureStore, scan_stores
from featpipe.store.seal import Seal
from tests import making


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    what = making.content(n=40, n_logits=5, folds=(np.array([1, 2, 3]),))
    return making.sealed(tmp_path_factory.mktemp("whole") / "a.h5", what).path


def everything(store: FeatureStore) -> list[Any]:
    return [
        store.ids,
        store.labels.tolist(),
        store.classes,
        [fold.tolist() for fold in store.folds],
        store.source_classes,
        store.manifest,
        store.fingerprint,
        store.run,
        store.skipped,
        store.layers,
        store.features().dtype,
        store.features().tolist(),
        store.logits.tolist(),
    ]


DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("longer"), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("flip early"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("overwrite"), st.floats(0, 1), st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("zeros"), st.floats(0, 1), st.integers(1, 6000)),
)


def damage(content: bytes, how: tuple[Any, ...]) -> bytes:
    kind, where = how[0], how[1]
    if kind == "longer":
        return content + where
    place = int(where * (500 if kind == "flip early" else len(content)))
    if kind == "cut":
        return content[:place]
    if kind == "flip early":
        kind = "flip"
    if kind == "flip":
        new = bytes([content[place] ^ 1 << how[2]])
    else:
        new = how[2] if kind == "overwrite" else b"\0" * how[2]
    return (content[:place] + new + content[place + len(new) :])[: len(content)]


def check_damage(whole: Path, folder: Path, how: tuple[Any, ...]) -> None:
    path = folder / "damaged.h5"
    content = damage(whole.read_bytes(), how)
    path.write_bytes(content)
    if content == whole.read_bytes():
        FeatureStore(path).verify()
        return
    with pytest.raises(StoreError) as caught:
        FeatureStore(path).verify()
    assert caught.value.details["where"] == str(path)


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(relaxed, max_examples=60)
@given(how=DAMAGE)
def test_every_damage_is_found(whole: Path, tmp_path_factory: Any, how: tuple[Any, ...]) -> None:
    check_damage(whole, whole.parent, how)


@pytest.mark.long
@settings(relaxed, max_examples=500)
@given(how=DAMAGE)
def test_every_damage_is_found_long(whole: Path, how: tuple[Any, ...]) -> None:
    check_damage(whole, whole.parent, how)


def test_opening_alone_finds_what_is_not_an_array(whole: Path, tmp_path: Path) -> None:
    """Only bytes of the arrays, which are too many to read each time, wait for verify."""
    content = whole.read_bytes()
    wanted = everything(FeatureStore(whole))
    arrays = [range(p.offset, p.stop) for p in Seal.read(whole).arrays.values()]
    path = tmp_path / "a.h5"
    for place in range(0, len(content), 97):
        path.write_bytes(damage(content, ("flip", (place + 0.5) / len(content), 3)))
        if any(place in array for array in arrays):
            assert everything(FeatureStore(path))[:-2] == wanted[:-2]
            with pytest.raises(StoreError, match="the content of"):
                FeatureStore(path).verify()
        else:
            with pytest.raises(StoreError):
                FeatureStore(path)


def foreign_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["labels"] = np.arange(3)


def another_schema(path: Path) -> None:
    making.sealed(path)
    seal = Seal.read(path)
    object.__setattr__(seal, "schema", 99)
    seal.write(path)


def unfinished(path: Path) -> None:
    making.StoreWriter(path, making.content()).close()


def renamed_unfinished(path: Path) -> None:
    unfinished(path)
    path.with_name(path.name + ".partial").rename(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such feature store"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "not a feature store"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 99), "not a feature store"),
        (lambda path: path.write_text("id,label\n1,2\n"), "not a feature store"),
        (lambda path: path.write_text("featpipe feature store\n"), "damaged"),
        (foreign_hdf5, "not a sealed feature store"),
        (another_schema, "another schema"),
        (unfinished, "unfinished"),
        (renamed_unfinished, "not a sealed feature store"),
        (
            lambda path: path.write_bytes(making.sealed(path).path.read_bytes()[:-1]),
            "bytes instead",
        ),
    ],
)
def test_what_is_no_store_is_refused_by_name(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "a.h5"
    make(path)
    with pytest.raises(StoreError, match=says) as caught:
        FeatureStore(path)
    assert caught.value.details["where"] == str(path)


def test_scanning_tells_damaged_from_whole(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "good.h5").write_bytes(whole.read_bytes())
    (tmp_path / "x" / "bad.h5").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "x" / "new.h5.partial").write_bytes(b"")
    stores, errors = scan_stores(tmp_path)
    assert [store.path.name for store in stores] == ["good.h5"]
    assert [Path(error.details["where"]).name for error in errors] == ["bad.h5"]


def test_five_lines_of_plain_h5py_read_a_store(whole: Path) -> None:
    """The lines of docs/feature-store.md."""
    with h5py.File(whole) as file:
        features = file["features/avgpool"][:]
        labels = file["labels"][:]
        classes = file["classes"].asstr()[:]
        manifest = json.loads(file["manifest"][()])
    store = FeatureStore(whole)
    np.testing.assert_array_equal(features, store.features())
    assert [classes[label] for label in labels] == [store.classes[label] for label in store.labels]
    assert manifest == store.manifest
