"""The sealed file: types, order, sizes; equal content gives equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featpipe.errors import UnknownNameError
from featpipe.store import StoreWriter
from tests import stores


def test_half_precision_is_for_features_only(tmp_path: Path) -> None:
    what = stores.content(n_logits=4, dtype="float16")
    store = stores.sealed(tmp_path / "a.h5", what)
    arrays = stores.features(what)
    assert store.features().dtype == np.float16
    assert store.logits.dtype == np.float32
    np.testing.assert_array_equal(store.features(), arrays["avgpool"].astype(np.float16))


def test_several_layers_keep_the_order_asked_for(tmp_path: Path) -> None:
    what = stores.content(n=6)
    shapes = {"layer4": (2, 3, 3), "avgpool": (8,), "layer1": (5,)}
    object.__setattr__(what, "shapes", shapes)
    what.manifest["layers"] = list(shapes)
    store = stores.sealed(tmp_path / "a.h5", what)
    assert store.layers == ("layer4", "avgpool", "layer1")
    assert store.features().shape == (6, 2, 3, 3)
    assert store.features("layer1").shape == (6, 5)


def test_a_store_without_images_can_be_sealed(tmp_path: Path) -> None:
    store = stores.sealed(tmp_path / "a.h5", stores.content(n=0))
    store.verify()
    assert store.features().shape == (0, 8)


def test_many_layers_and_folds(tmp_path: Path) -> None:
    what = stores.content(n=3, folds=(np.array([1]),) * 20)
    shapes = {f"layer{number}": (2,) for number in range(60)}
    object.__setattr__(what, "shapes", shapes)
    what.manifest["layers"] = list(shapes)
    store = stores.sealed(tmp_path / "a.h5", what)
    store.verify()
    assert (len(store.layers), len(store.folds)) == (60, 20)


def test_prepared_images_are_stored_as_bytes(tmp_path: Path) -> None:
    what = stores.content(n=5, dtype="uint8")
    object.__setattr__(what, "shapes", {"avgpool": (3, 4, 4)})
    images = np.arange(5 * 48, dtype=np.uint8).reshape(5, 3, 4, 4)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append({"avgpool": images})
        store = writer.seal(stores.RUN)
    assert store.features().dtype == np.uint8
    np.testing.assert_array_equal(store.features(), images)


def test_logits_are_features_too(tmp_path: Path) -> None:
    store = stores.sealed(tmp_path / "a.h5", stores.content(n_logits=4))
    assert store.layers == ("avgpool",)
    np.testing.assert_array_equal(store.features("logits"), store.logits)
    with pytest.raises(UnknownNameError):
        stores.sealed(tmp_path / "b.h5").features("logits")


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_equal_content_gives_equal_bytes(tmp_path: Path, batch: int) -> None:
    what = stores.content(n_logits=3)
    one = stores.sealed(tmp_path / "a.h5", what).path.read_bytes()
    with StoreWriter(tmp_path / "b.h5", what) as writer:
        while writer.rows < 60:
            rows = slice(writer.rows, writer.rows + batch)
            writer.append({n: values[rows] for n, values in stores.features(what).items()})
        assert writer.seal(stores.RUN).path.read_bytes() == one


def test_the_run_record_does_not_move_the_arrays(tmp_path: Path) -> None:
    what = stores.content()
    offsets = []
    for name, run in (("a.h5", stores.RUN), ("b.h5", {**stores.RUN, "text": "longer " * 999})):
        with StoreWriter(tmp_path / name, what) as writer:
            writer.append(stores.features(what))
            offsets.append(writer.seal(run).features().offset)
    assert offsets[0] == offsets[1]
