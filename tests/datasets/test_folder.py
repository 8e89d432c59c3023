"""folder:PATH, with splits and without, through links and around strays."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featpipe.datasets.dataset import open_source, splits_of
from featpipe.datasets.folder import images_below
from featpipe.datasets.images import IMAGE_SUFFIXES, is_image_name
from featpipe.errors import DataError, ImageError


@pytest.fixture
def tree(tmp_path):
    """Make files below a folder; images get a colour of their own."""
    root = tmp_path / "photos"

    def grow(*names):
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                Image.new("RGB", (3, 2), (number, 0, 0)).save(path)
            else:
                path.write_bytes(b"no image")
        return f"folder:{root}"

    grow.root = root
    return grow


def test_one_split_of_all_images(tree, options):
    spec = tree("cat/1.png", "dog/1.png", "dog/2.png")
    assert splits_of(spec, options) == ("all",)
    source = open_source(spec, "all", options)
    assert source.classes == ("cat", "dog")
    assert list(source.ids) == ["cat/1.png", "dog/1.png", "dog/2.png"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.read(2)[0, 0, 0] == 2


def test_natural_order(tree, options):
    spec = tree(*(f"{kind}/{number}.png" for kind in ("b10", "b9") for number in (10, 9, 1)))
    source = open_source(spec, "all", options)
    assert source.classes == ("b9", "b10")
    assert list(source.ids)[:3] == ["b9/1.png", "b9/9.png", "b9/10.png"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a/1.png", "test/a/1.png"], ("train", "test")),
        (["train/a/1.png", "val/a/1.png", "test/a/1.png"], ("train", "test", "val")),
        (["train/a/1.png", "valid/a/1.png", "extra/a/1.png"], ("train", "valid")),
        (["train/a/1.png", "train/b/1.png"], ("train",)),
        (["train/1.png", "plane/1.png"], ("all",)),
        (["train/steam/1.png", "plane/jet/1.png"], ("all",)),
        (["train/1.png", "test/1.png"], ("all",)),
    ],
)
def test_which_folders_are_splits(tree, options, names, splits):
    assert splits_of(tree(*names), options) == splits


def test_a_class_may_be_called_train(tree, options):
    source = open_source(tree("train/steam/1.png", "plane/jet/1.png"), "all", options)
    assert source.classes == ("plane", "train")
    assert list(source.ids) == ["plane/jet/1.png", "train/steam/1.png"]


def test_splits_share_the_numbering_of_the_classes(tree, options):
    spec = tree("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png")
    test = open_source(spec, "test", options)
    assert test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [2]
    assert list(test.ids) == ["test/c/1.png"]


def test_a_test_class_that_was_never_trained_is_named(tree, options):
    spec = tree("train/cat/1.png", "train/dog/1.png", "test/Cat/1.png")
    with pytest.raises(DataError, match="'test' has classes") as caught:
        open_source(spec, "test", options)
    assert "Cat" in str(caught.value)


def test_nested_images_belong_to_the_class_above(tree, options):
    source = open_source(tree("cat/2020/may/1.png", "cat/2.png", "dog/x/1.png"), "all", options)
    assert list(source.ids) == ["cat/2.png", "cat/2020/may/1.png", "dog/x/1.png"]
    assert source.labels.tolist() == [0, 0, 1]


def test_hidden_and_other_files_are_left_out(tree, options, listener):
    spec = tree(
        "cat/1.png", "cat/._1.png", "cat/notes.txt", ".git/x/1.png", "cat/.cache/1.png",
        "readme.md",
    )  # fmt: skip
    source = open_source(spec, "all", replace(options, progress=listener))
    assert list(source.ids) == ["cat/1.png"]
    assert listener.notes == []


def test_images_outside_class_folders_are_reported(tree, options, listener):
    spec = tree("cat/1.png", "stray.png", "other.png")
    open_source(spec, "all", replace(options, progress=listener))
    assert listener.notes[0].startswith("2 images in ")


def test_unicode_names(tree, options):
    source = open_source(tree("猫/ねこ 1.png", "Ελλάδα/ü€.png"), "all", options)
    assert source.classes == ("Ελλάδα", "猫")
    assert source.read(1).shape == (2, 3, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems forbid such names")
def test_a_name_that_is_not_text(tree, options):
    spec = tree("cat/1.png")
    with open(os.fsencode(tree.root / "cat") + b"/\xff.png", "wb"):
        pass
    source = open_source(spec, "all", options)
    assert list(source.ids) == ["cat/1.png", "cat/\\xff.png"]
    assert "not valid text" in source.unreadable[1]
    os.mkdir(os.fsencode(tree.root) + b"/\xff")  # this would be the name of a class
    with pytest.raises(DataError, match="not valid text") as caught:
        open_source(spec, "all", options)
    assert "\\xff" in str(caught.value)


@pytest.mark.parametrize("name", ["dog/notes.txt", "dog/.hidden.png"])
def test_an_empty_class_is_named(tree, options, name):
    with pytest.raises(DataError, match="no images") as caught:
        open_source(tree("cat/1.png", name), "all", options)
    assert "dog" in str(caught.value)


def test_images_without_class_folders_have_no_labels(tree, options):
    source = open_source(tree("2.png", "10.png"), "all", options)
    assert (source.ids, source.classes) == (["2.png", "10.png"], ())
    assert source.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("names", [["notes.txt"], []])
def test_a_folder_without_images(tree, options, names):
    spec = tree(*names)
    tree.root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match="no images") as caught:
        open_source(spec, "all", options)
    assert "for each class" in str(caught.value)


def test_a_path_that_is_not_a_folder_suggests_the_nearest(tmp_path, options):
    (tmp_path / "photos").mkdir()
    for name in ("photo.png", "list.csv"):
        (tmp_path / name).touch()
    for path, what, hint in [
        ("photo.png", "This is a file", f"name its folder: {tmp_path}"),
        ("list.csv", "This is a file", f"did you mean 'csv:{tmp_path / 'list.csv'}'?"),
        ("photo.pn", "does not exist", f"did you mean {str(tmp_path / 'photos')!r}?"),
        ("zzzz/qqqq", "does not exist", f"the nearest folder that exists: {tmp_path}"),
    ]:
        with pytest.raises(DataError, match=what) as caught:
            splits_of(f"folder:{tmp_path / path}", options)
        assert caught.value.details["next"] == hint
        assert "folder of images" in caught.value.details["expected"]


class TestLinks:
    def test_linked_folders_and_files_are_followed(self, tree, tmp_path, options):
        spec = tree("cat/1.png", "cat/2.png")
        os.symlink(tree.root / "cat", tree.root / "same")
        os.symlink(tree.root / "cat" / "1.png", tree.root / "cat" / "link.png")
        source = open_source(spec, "all", options)
        assert list(source.ids) == [
            "cat/1.png", "cat/2.png", "cat/link.png",
            "same/1.png", "same/2.png", "same/link.png",
        ]  # fmt: skip

    def test_circles_end(self, tree, options):
        spec = tree("cat/1.png", "cat/deep/2.png", "dog/1.png")
        os.symlink(tree.root, tree.root / "cat" / "deep" / "top")
        os.symlink(tree.root / "cat", tree.root / "cat" / "deep" / "up")
        ids = open_source(spec, "all", options).ids
        assert "cat/deep/2.png" in ids
        assert len(ids) < 20

    def test_a_link_to_nowhere(self, tree, options):
        spec = tree("cat/1.png")
        os.symlink(tree.root / "gone.png", tree.root / "cat" / "2.png")
        source = open_source(spec, "all", options)
        assert list(source.unreadable) == [1]
        with pytest.raises(ImageError, match="does not exist") as caught:
            source.read(1)
        assert "2.png" in str(caught.value)


def test_a_broken_image_is_an_error_when_it_is_read_not_before(tree, options):
    spec = tree("cat/1.png", "cat/2.png")
    (tree.root / "cat" / "2.png").write_bytes(b"")
    source = open_source(spec, "all", options)
    assert source.read(0).shape == (2, 3, 3)
    with pytest.raises(ImageError, match="empty") as caught:
        source.read(1)
    assert "2.png" in str(caught.value)


def test_a_file_that_vanishes_is_an_image_error(tree, options):
    source = open_source(tree("cat/1.png"), "all", options)
    (tree.root / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match="does not exist"):
        source.read(0)


def test_an_unchanged_folder_is_not_read_again(tree, options, listener, let_files_settle):
    spec = tree("cat/1.png", "dog/1.png")
    options = replace(options, progress=listener)
    let_files_settle()
    open_source(spec, "all", options)
    assert listener.steps == 2
    open_source(spec, "all", options)
    assert listener.steps == 2
    Image.new("RGB", (5, 5)).save(tree.root / "dog" / "1.png")
    open_source(spec, "all", options)
    assert listener.steps == 3, "only the changed file"


def test_a_split_without_labels_is_not_a_class(tree, options):
    spec = tree("train/cat/1.png", "train/dog/2.png", "test/3.png", "test/4.png")
    with pytest.raises(DataError, match="The split 'test' has no subfolders for classes") as caught:
        splits_of(spec, options)
    assert "featpipe predict" in str(caught.value)


def test_hashes_are_remembered_although_the_look_was_interrupted(
    tree, options, listener, let_files_settle
):
    spec = tree(*(f"cat/{number}.png" for number in range(10)))

    class Impatient(type(listener)):
        def advance(self, steps=1, **facts):
            super().advance(steps)
            if self.steps == 4:
                raise KeyboardInterrupt

    let_files_settle()
    with pytest.raises(KeyboardInterrupt):
        open_source(spec, "all", replace(options, progress=Impatient()))
    open_source(spec, "all", replace(options, progress=listener))
    assert listener.steps == 6


def test_a_folder_that_vanished(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        images_below(tmp_path / "gone")


def test_names_of_image_files():
    assert all(is_image_name(f"a{suffix}") for suffix in IMAGE_SUFFIXES)
    assert is_image_name("UPPER.JPEG")
    assert not any(map(is_image_name, ["a.txt", ".a.jpg", "._a.jpg", "jpg", "a.jpg.txt", "a.eps"]))


@pytest.mark.real
def test_real_imagenet_images(shared, options):
    source = open_source("folder:imagenette-val500", "all", replace(options, data=shared / "data"))
    assert np.bincount(source.labels).tolist() == [50] * 10
    assert source.classes[0] == "n01440764"
    assert all(source.read(row).shape == (224, 224, 3) for row in range(0, 500, 50))
