"""csv:PATH and npz:PATH: what a table or an archive says, and every way it can be wrong."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from featpipe.datasets.dataset import open_source, splits_of
from featpipe.errors import DataError, ImageError, UnknownNameError
from featpipe.fingerprint import FileHashes

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 2])


@pytest.fixture
def table(tmp_path):
    """Write a table beside three images, a.png, b.png and sub/c d.png."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.png", "b.png", "sub/c d.png")):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / name)
    path = tmp_path / "images.csv"

    def write(text, encoding="utf-8"):
        path.write_bytes(text.encode(encoding))
        return f"csv:{path}"

    write.path = path
    return write


def test_without_a_split_column_there_is_one_split(table, options):
    spec = table("path,label\na.png,dog\nb.png,cat\nsub/c d.png,dog\n")
    assert splits_of(spec, options) == ("all",)
    source = open_source(spec, "all", options)
    assert source.classes == ("cat", "dog")
    assert list(source.ids) == ["a.png", "b.png", "sub/c d.png"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.read(2)[0, 0, 0] == 2


def test_splits_in_their_usual_order_with_one_numbering(table, options):
    spec = table("path,label,split\na.png,x10,val\nb.png,x9,train\nsub/c d.png,x9,odd\n")
    assert splits_of(spec, options) == ("train", "val", "odd")
    for split, labels in (("val", [1]), ("train", [0]), ("odd", [0])):
        source = open_source(spec, split, options)
        assert source.classes == ("x9", "x10")
        assert source.labels.tolist() == labels


def test_an_empty_label_is_unlabelled(table, options):
    source = open_source(table("path,label\na.png,\nb.png,cat\n"), "all", options)
    assert source.labels.tolist() == [-1, 0]


def test_no_labels_at_all(table, options):
    source = open_source(table("path,label\na.png,\nb.png,\n"), "all", options)
    assert source.labels.tolist() == [-1, -1]
    assert source.classes == ()


def test_what_spreadsheets_write(table, options):
    text = '﻿label,remark,path\r\n"big, red","said ""no""",a.png\r\n\r\nΚαλή, ,b.png\r\n'
    source = open_source(table(text), "all", options)
    assert source.classes == ("big, red", "Καλή")
    assert list(source.ids) == ["a.png", "b.png"]


def test_absolute_paths(table, options, tmp_path):
    source = open_source(table(f"path,label\n{tmp_path / 'a.png'},x\n"), "all", options)
    assert source.read(0)[0, 0, 0] == 0


def test_missing_files_are_listed_with_their_lines(table, options):
    lines = [f"no{number}.png,x" for number in range(8)]
    spec = table("path,label\na.png,x\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"8 file\(s\)") as caught:
        open_source(spec, "all", options)
    message = str(caught.value)
    assert "line 3: no0.png" in message
    assert "and 3 more" in message
    assert str(table.path) in message


def test_a_folder_is_not_an_image(table, options):
    source = open_source(table("path,label\na.png,x\nsub,x\n"), "all", options)
    assert list(source.unreadable) == [1]
    with pytest.raises(ImageError, match="this is a folder"):
        source.read(1)


def test_an_image_listed_twice(table, options):
    with pytest.raises(DataError, match="twice") as caught:
        open_source(table("path,label\na.png,x\nb.png,x\na.png,y\n"), "all", options)
    assert "lines 2 and 4" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("path,label\na.png,x\n,y\n", 3),
        ("path,label\na.png\n", 2),
        ("path,label,split\na.png,x,train\nb.png,x,\n", 3),
        ("path,label,split\na.png,x\n", 2),
    ],
)
def test_an_incomplete_line_is_named(table, options, text, line):
    with pytest.raises(DataError, match="not complete") as caught:
        splits_of(table(text), options)
    assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "an empty file"),
        ("file,label\na.png,x\n", "file,label"),
        ("path;label\na.png;x\n", "commas"),
        ("path\tlabel\na.png\tx\n", "commas"),
        ("path,labels\na.png,x\n", "did you mean 'labels'?"),
        ("a.png,cat\nb.png,dog\n", "path,label"),
    ],
)
def test_a_header_that_does_not_fit(table, options, text, hint):
    with pytest.raises(DataError, match="no column") as caught:
        splits_of(table(text), options)
    assert hint in str(caught.value)


def test_a_header_only(table, options):
    with pytest.raises(DataError, match="lists no images"):
        splits_of(table("path,label\n"), options)


@pytest.mark.parametrize("content", ["path,label\nä.png,ö\n".encode("latin-1"), b"\xff\xfep\0a\0"])
def test_another_encoding(table, options, content):
    table.path.write_bytes(content)
    with pytest.raises(DataError, match="UTF-8"):
        splits_of(f"csv:{table.path}", options)


def test_a_quote_that_never_ends(table, options):
    with pytest.raises(DataError, match="not a CSV"):
        splits_of(table('path,label\n"a.png,x\n'), options)


def test_other_columns_and_rows_of_other_splits_do_not_change_the_fingerprint(table, options):
    before = open_source(table("path,label,split\na.png,x,train\nb.png,x,test\n"), "train", options)
    after = open_source(
        table("path,label,split,note\na.png,x,train,!\nsub/c d.png,x,test,?\n"), "train", options
    )
    assert before.fingerprint == after.fingerprint
    relabelled = open_source(
        table("path,label,split\na.png,y,train\nb.png,x,test\n"), "train", options
    )
    assert relabelled.fingerprint != before.fingerprint


def test_a_folder_in_the_place_of_the_table(tmp_path, options):
    with pytest.raises(DataError, match="cannot be read"):
        splits_of(f"csv:{tmp_path}", options)


def test_the_home_folder_may_be_abbreviated(table, options, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    table("path,label\na.png,x\n")
    assert len(open_source("csv:~/images.csv", "all", replace(options))) == 1


def test_labels_of_a_column_are_natural(table, options):
    source = open_source(table("path,label\na.png,10\nb.png,9\n"), "all", options)
    assert source.classes == ("9", "10")
    np.testing.assert_array_equal(source.labels, [1, 0])


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
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, "the shape of images"),
        ({"images": IMAGES[0, 0], "labels": LABELS}, "the shape of images"),
        ({"images": IMAGES[..., :2], "labels": LABELS}, "the shape of images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "the shape of images"),
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
def test_a_file_that_is_not_an_archive(tmp_path, options, content):
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


@pytest.mark.parametrize("name", ["path", "label", "split"])
def test_two_columns_of_one_name(table, options, name):
    spec = table(f"path,label,split,{name}\na.png,x,train,b.png\n")
    with pytest.raises(DataError, match=f"2 columns called '{name}'"):
        splits_of(spec, options)


def test_a_table_that_was_made_safe_for_spreadsheets_is_read_as_it_was(table, options, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "=1.png")
    source = open_source(table("path,label\n'=1.png,'-cat\na.png,'cat\n"), "all", options)
    assert list(source.ids) == ["=1.png", "a.png"]
    assert source.classes == ("'cat", "-cat")
    assert source.read(0).shape == (2, 2, 3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("spec", ["csv", "npz"])
def test_a_fifo_in_the_place_of_the_file(spec, tmp_path, options):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="cannot be read") as caught:
        open_source(f"{spec}:{tmp_path / 'fifo'}", "all", options)
    assert "a FIFO, not a regular file" in str(caught.value)


@pytest.mark.timeout(20)
def test_a_fifo_among_the_images(table, options, tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    source = open_source(table("path,label\na.png,x\nfifo.png,x\n"), "all", options)
    assert "a FIFO" in source.unreadable[1]


@pytest.mark.parametrize("label", [100_000, 10**12, 2**63 - 1, 2**64 - 1])
def test_labels_are_names_or_small_numbers(archive, options, label):
    labels = np.array([0, 1, 1, label], dtype=np.uint64)
    with pytest.raises(DataError, match="not small numbers") as caught:
        open_source(archive(images=IMAGES, labels=labels), "all", options)
    assert "some.npz" in str(caught.value)
    with pytest.raises(DataError, match="name no class"):
        open_source(archive(images=IMAGES, labels=labels, classes=["a", "b"]), "all", options)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
@pytest.mark.parametrize("array", ["classes", "ids"])
def test_names_that_are_not_text(archive, options, array, name):
    texts = {"classes": ["a", "b", "c"], "ids": list("wxyz")}
    texts[array][1] = name
    spec = archive(images=IMAGES, labels=LABELS, **{k: np.array(v) for k, v in texts.items()})
    with pytest.raises(DataError, match=r"text|NUL|decode"):
        open_source(spec, "all", options)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 6, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_that_are_not_compressed_are_mapped(tmp_path, options, shape, order):
    images = np.asarray(IMAGES.reshape(-1)[: np.prod(shape)].reshape(shape), order=order)
    np.savez(tmp_path / "some.npz", note=np.arange(9), images=images, labels=LABELS)
    source = open_source(f"npz:{tmp_path / 'some.npz'}", "all", options)
    mapped = [Path(found.path) for found in psutil.Process().memory_maps()]
    assert tmp_path / "some.npz" in mapped
    for row in range(4):
        pixels = images[row] if images.ndim == 4 else np.repeat(images[row, ..., None], 3, axis=2)
        np.testing.assert_array_equal(source.read(row), pixels)


def test_a_changed_byte_of_a_mapped_array_is_noticed(tmp_path, options):
    path = tmp_path / "some.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_source(f"npz:{path}", "all", options)


def test_an_archive_replaced_while_it_is_read(archive, options):
    spec = archive(images=IMAGES, labels=LABELS)

    class ReplacedOnceHashed(FileHashes):
        def many(self, *args, **kwargs):
            digests = super().many(*args, **kwargs)
            archive(images=255 - IMAGES, labels=LABELS)
            return digests

    with pytest.raises(DataError, match="changed while it was read"):
        open_source(spec, "all", replace(options, hashes=ReplacedOnceHashed()))


def test_a_text_file_called_npz_brings_no_advice_to_open_it_unsafely(tmp_path, options):
    (tmp_path / "some.npz").write_text("labels and images\n" * 99)
    with pytest.raises(DataError) as caught:
        open_source(f"npz:{tmp_path / 'some.npz'}", "all", options)
    assert "pickle" not in str(caught.value)


BOUNDED = """
import resource, sys
import numpy as np
import psutil
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import DataError
bound = psutil.Process().memory_info().data + (100 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
try:
    source = open_source(f"npz:{sys.argv[1]}", "all", DatasetOptions())
    print(len(source), source.read(len(source) - 1).shape)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("shape", "compression", "expected"),
    [
        ((256, 1024, 1024), zipfile.ZIP_DEFLATED, "'images' is too large to be unpacked"),
        ((256, 1024, 1024), zipfile.ZIP_STORED, "256 (1024, 1024, 3)"),
        ((30_000_000, 1, 1), zipfile.ZIP_DEFLATED, "has too many rows"),
    ],
    ids=["compressed", "mapped", "many rows"],
)
def test_a_quarter_of_a_gigabyte_in_a_process_that_may_have_a_tenth(
    tmp_path, shape, compression, expected
):
    path, left = tmp_path / "bomb.npz", math.prod(shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    block = bytes(1 << 24)
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        with archive.open("images.npy", "w") as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            while left:
                left -= entry.write(block[: min(left, len(block))])
        with archive.open("labels.npy", "w") as entry:
            np.lib.format.write_array(entry, np.zeros(shape[0], np.uint8))
    ended = subprocess.run(
        [sys.executable, "-c", BOUNDED, path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert expected in ended.stdout
    if "large" in expected:
        assert "268 MB" in ended.stdout
