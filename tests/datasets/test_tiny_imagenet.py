"""The official layout of Tiny-ImageNet."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets.dataset import open_source
from featpipe.datasets.folder import TinyImageNet
from featpipe.errors import DataError, UnknownNameError
from featpipe.fingerprint import FileHashes


@pytest.fixture
def made(make, options_for):
    made = make("tiny-imagenet")
    return made, options_for(made), made.data / "tiny-imagenet-200"


def test_classes_are_sorted_whatever_the_order_of_the_list(made):
    _, options, root = made
    assert (root / "wnids.txt").read_text().split()[0] == "n00000010"
    source = open_source("tiny-imagenet", "train", options)
    assert source.classes == ("n00000001", "n00000002", "n00000010")


def test_ids_are_paths_and_in_natural_order(made):
    _, options, _ = made
    train = open_source("tiny-imagenet", "train", options)
    assert train.ids[0] == "train/n00000001/images/n00000001_0.JPEG"
    val = open_source("tiny-imagenet", "val", options)
    assert list(val.ids) == [f"val/images/val_{at}.JPEG" for at in range(9)]


def test_both_splits_number_the_chosen_classes_alike(made):
    _, options, _ = made
    options = replace(options, classes="n00000010,n00000002")
    train, val = (open_source("tiny-imagenet", split, options) for split in ("train", "val"))
    assert train.classes == val.classes == ("n00000002", "n00000010")
    assert [train.classes[label] for label in train.labels] == [n.split("/")[1] for n in train.ids]


def test_a_cut_down_copy_is_used_by_choosing_its_classes(made):
    _, options, root = made
    shutil.rmtree(root / "train" / "n00000010")
    with pytest.raises(DataError, match="1 class folder") as caught:
        open_source("tiny-imagenet", "train", options)
    assert "n00000010" in str(caught.value)
    assert "--classes" in str(caught.value)
    source = open_source("tiny-imagenet", "train", replace(options, classes="first:2"))
    assert len(source) == 6


def test_a_class_that_is_not_one(made):
    _, options, _ = made
    with pytest.raises(UnknownNameError, match="n00000003"):
        open_source("tiny-imagenet", "val", replace(options, classes="n00000003"))


def test_an_empty_class_folder_is_named(made):
    _, options, root = made
    for file in (root / "train" / "n00000002" / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no images") as caught:
        open_source("tiny-imagenet", "train", options)
    assert "n00000002" in str(caught.value)


def test_validation_images_that_are_missing(made):
    _, options, root = made
    (root / "val" / "images" / "val_4.JPEG").unlink()
    with pytest.raises(DataError, match="1 validation image") as caught:
        open_source("tiny-imagenet", "val", options)
    assert "val_4.JPEG" in str(caught.value)


@pytest.mark.parametrize("text", ["val_0.JPEG n00000001", "\n\nval_0.JPEG\n"])
def test_annotations_that_cannot_be_read(made, text):
    _, options, root = made
    (root / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(DataError, match="annotations cannot be read") as caught:
        open_source("tiny-imagenet", "val", options)
    assert "line 1" in str(caught.value)


def test_annotations_that_are_missing(made):
    _, options, root = made
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match="file of the dataset cannot be read") as caught:
        open_source("tiny-imagenet", "val", options)
    assert "val_annotations.txt" in str(caught.value)


def test_a_class_without_validation_images(made):
    _, options, root = made
    annotations = root / "val" / "val_annotations.txt"
    lines = [line for line in annotations.read_text().splitlines() if "n00000010" not in line]
    annotations.write_text("\n".join(lines))
    with pytest.raises(DataError, match="no validation images") as caught:
        open_source("tiny-imagenet", "val", options)
    assert "n00000010" in str(caught.value)
    assert len(open_source("tiny-imagenet", "val", replace(options, classes="first:2"))) == 6


def test_the_download_leaves_out_the_images_without_labels(made, web, monkeypatch, tmp_path):
    _, options, root = made
    archive = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as package:
        for path in sorted(root.rglob("*")):
            package.write(path, f"tiny-imagenet-200/{path.relative_to(root).as_posix()}")
        package.writestr("tiny-imagenet-200/test/images/test_0.JPEG", b"x")
    web.content = archive.read_bytes()
    remote = replace(
        TinyImageNet.archive,
        url=web.url("tiny-imagenet-200.zip"),
        md5=FileHashes().one(archive, "md5"),
    )
    monkeypatch.setattr(TinyImageNet, "archive", remote)
    here = open_source("tiny-imagenet", "train", options).fingerprint
    shutil.rmtree(root)
    archive.unlink()
    fetched = replace(options, data=None, download=True)
    assert open_source("tiny-imagenet", "train", fetched).fingerprint == here
    assert len(open_source("tiny-imagenet", "val", fetched)) == 9
    assert len(web.asked) == 1
    assert [path.name for path in options.raw.iterdir()] == ["tiny-imagenet-200"]
    assert not (options.raw / "tiny-imagenet-200" / "test").exists()


@pytest.mark.real
def test_the_real_first_fifty_classes(shared, options):
    options = replace(options, data=shared / "data", classes="first:50")
    train, val = (open_source("tiny-imagenet", split, options) for split in ("train", "val"))
    assert train.classes == val.classes
    assert len(train.classes) == 50
    assert np.bincount(train.labels).tolist() == [60] * 50
    assert np.bincount(val.labels).tolist() == [50] * 50
    greys = 0
    for row in range(0, len(val), 10):
        image = val.read(row)
        assert image.shape == (64, 64, 3)
        greys += (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
    assert 0 < greys < 25, "about 2 % of the files are grey and become RGB like the others"
