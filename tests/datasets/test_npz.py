"""npz:PATH: arrays that fit, and arrays that do not."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets import open_source, splits_of
from featpipe.errors import DataError, UnknownNameError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 2])


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        path = tmp_path / "some.npz"
        np.savez_compressed(path, **arrays)
        return f"npz:{path}"

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_images_and_labels_alone(archive, options, dtype):
    spec = archive(images=IMAGES, labels=LABELS.astype(dtype))
    assert splits_of(spec, options) == ("all",)
    source = open_source(spec, "all", options)
    assert source.classes == ("0", "1", "2")
    assert list(source.ids) == ["00000", "00001", "00002", "00003"]
    np.testing.assert_array_equal(source.read(3), IMAGES[3])


@pytest.mark.parametrize("images", [IMAGES[..., 0], IMAGES[..., :1]])
def test_grey_images(archive, options, images):
    source = open_source(archive(images=images, labels=LABELS), "all", options)
    np.testing.assert_array_equal(source.read(1), np.repeat(IMAGES[1, ..., :1], 3, axis=2))


def test_names_ids_and_splits(archive, options):
    spec = archive(
        images=IMAGES,
        labels=LABELS,
        classes=np.array(["ä", "b", "c"]),
        ids=np.array([b"w", b"x", b"y", b"z"]),
        split=np.array(["test", "train", "train", "extra"]),
    )
    assert splits_of(spec, options) == ("train", "test", "extra")
    train = open_source(spec, "train", options)
    assert list(train.ids) == ["x", "y"]
    assert train.classes == ("ä", "b", "c")
    np.testing.assert_array_equal(train.read(0), IMAGES[1])
    with pytest.raises(UnknownNameError):
        open_source(spec, "all", options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "no array 'images'"),
        ({"images": IMAGES}, "no array 'labels'"),
        ({"images": IMAGES / 255, "labels": LABELS}, "8 bits"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, "another shape"),
        ({"images": IMAGES[0, 0], "labels": LABELS}, "another shape"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, "another shape"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "another shape"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "'labels' does not have one value"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, "'labels' does not have one value"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "not integers"),
        ({"images": IMAGES, "labels": LABELS.astype(str)}, "not integers"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b"]}, "name no class"),
        ({"images": IMAGES, "labels": LABELS - 2}, "name no class"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b", "a"]}, "not unique"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b", " "]}, "blank"),
        ({"images": IMAGES, "labels": LABELS, "classes": []}, "no class names"),
        ({"images": IMAGES, "labels": LABELS, "ids": ["a", "b", "c", "a"]}, "same id"),
        ({"images": IMAGES, "labels": LABELS, "ids": ["a"]}, "'ids' does not have"),
    ],
)
def test_arrays_that_do_not_fit(archive, options, arrays, message):
    spec = archive(**arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_source(spec, "all", options)
    assert "some.npz" in str(caught.value)


def test_planes_first_says_how_to_turn_them(archive, options):
    spec = archive(images=IMAGES.transpose(0, 3, 1, 2), labels=LABELS)
    with pytest.raises(DataError) as caught:
        open_source(spec, "all", options)
    assert "transpose(0, 2, 3, 1)" in str(caught.value)


@pytest.mark.parametrize("name", ["classes", "labels", "images", "ids"])
def test_python_objects_are_never_unpickled(archive, options, name):
    arrays = {"images": IMAGES, "labels": LABELS, name: np.array([["x"], 1], dtype=object)}
    with pytest.raises(DataError, match="Python objects") as caught:
        open_source(archive(**arrays), "all", options)
    assert f"'{name}'" in str(caught.value)
    assert "dtype=str" in str(caught.value)


def test_a_single_array_is_not_enough(tmp_path, options):
    np.save(tmp_path / "some.npy", IMAGES)
    with pytest.raises(DataError, match="single array"):
        open_source(f"npz:{tmp_path / 'some.npy'}", "all", options)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + b"x" * 50])
def test_a_file_that_is_no_archive(tmp_path, options, content):
    (tmp_path / "some.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a NumPy archive") as caught:
        open_source(f"npz:{tmp_path / 'some.npz'}", "all", options)
    assert "some.npz" in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_archive(archive, options, tmp_path, share):
    spec = archive(images=IMAGES, labels=LABELS)
    whole = (tmp_path / "some.npz").read_bytes()
    (tmp_path / "some.npz").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="damaged"):
        open_source(spec, "all", options)


@pytest.mark.real
def test_the_real_cifar_images(shared, options):
    options = replace(options, data=shared / "data")
    spec = "npz:cifar10/train_first4000.npz"
    source = open_source(spec, "all", options)
    assert len(source) == 4000
    assert source.classes[0] == "airplane"
    assert source.read(0).shape == (32, 32, 3)
    begun = time.perf_counter()
    open_source(spec, "all", options)
    assert time.perf_counter() - begun < 1.0
