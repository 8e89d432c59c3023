"""wds:PATH: shards on the disk and at URLs, and every way they can be wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from featpipe.api import extract
from featpipe.datasets import short_name, slug, wds
from featpipe.datasets.dataset import SourceRequest, open_source, splits_of
from featpipe.datasets.remote import RemoteFolder, as_listed
from featpipe.datasets.wds import Shard, read_index
from featpipe.errors import DataError, ImageError, UsageError
from tests.datasets.conftest import pictures, png, save, write_shard

HOW = {"model": "glyphnet", "device": "cpu", "runtime": "torch"}


@pytest.fixture(params=["disk", "file", "memory", "s3"])
def at(request, tmp_path, memory):
    """Two training shards and one test shard; the address of their folder."""
    every = pictures(9, 32)
    for number, rows in enumerate((range(4), range(4, 7), range(7, 9))):
        name = f"{('train', 'train', 'test')[number]}-{number % 2:06d}.tar"
        members = {}
        for row in rows:
            members |= {f"{row}.png": png(every[row]), f"{row}.cls": b"%d\n" % (row % 3)}
        write_shard(tmp_path / "shards" / name, members)
    if request.param == "file":
        return f"file://{tmp_path}/shards"
    if request.param == "memory":
        memory.put(str(tmp_path / "shards"), "/shards", recursive=True)
        return "memory://shards"
    if request.param == "s3":
        client = request.getfixturevalue("s3")
        for path in (tmp_path / "shards").iterdir():
            client.upload_file(str(path), "shelf", f"shards/{path.name}")
        return "s3://shelf/shards"
    return str(tmp_path / "shards")


@pytest.mark.parametrize("pattern", ["", "/{train,test}-{000000..000000}.tar"])
def test_images_labels_and_splits(at, options, pattern):
    spec = f"wds:{at}{pattern}"
    assert splits_of(spec, options) == ("train", "test")
    train, test = (open_source(spec, split, options) for split in ("train", "test"))
    assert train.classes == test.classes == ("0", "1", "2")
    assert list(train.ids)[:4] == [f"train-000000/{row}.png" for row in range(4)]
    assert len(train) == (4 if pattern else 7)
    assert train.labels.tolist() == [row % 3 for row in range(len(train))]
    assert (list(test.ids), test.labels.tolist()) == (
        ["test-000000/7.png", "test-000000/8.png"],
        [1, 2],
    )
    assert train.size == (32, 32)
    with ThreadPoolExecutor(4) as pool:
        for row, image in enumerate(pool.map(train.read, range(len(train)))):
            np.testing.assert_array_equal(image, pictures(9, 32)[row])


def test_one_tar_file(at, options):
    source = open_source(f"wds:{at}/train-000001.tar", "train", options)
    assert list(source.ids) == [f"train-000001/{row}.png" for row in (4, 5, 6)]
    np.testing.assert_array_equal(source.read(2), pictures(9, 32)[6])


def test_a_tar_file_in_the_topmost_folder(memory, options, tmp_path):
    write_shard(tmp_path / "x.tar", {"1.png": png(pictures(1)[0])})
    memory.put(str(tmp_path / "x.tar"), "/train-0.tar")
    assert splits_of("wds:memory://train-0.tar", options) == ("train",)
    source = open_source("wds:memory://train-0.tar", "train", options)
    assert list(source.ids) == ["train-0/1.png"]


def test_braces_that_match_nothing_or_not_all(at, options):
    for pattern, wrong in (("{000000..000002}", "1 of 3"), ("{5..6}", "2 of 2")):
        with pytest.raises(DataError, match=f"{wrong} tar files are missing") as caught:
            splits_of(f"wds:{at}/train-{pattern}.tar", options)
        assert "train-" in caught.value.details["got"]


def test_the_index_is_remembered(at, options, monkeypatch):
    first = open_source(f"wds:{at}", "train", options)
    monkeypatch.setattr(wds, "read_index", None)
    again = open_source(f"wds:{at}", "train", options)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.read(3), first.read(3))


def test_a_shard_that_changes_or_vanishes_stops_the_run(at, options, tmp_path, memory, request):
    source = open_source(f"wds:{at}", "train", options)
    local = tmp_path / "shards" / "train-000000.tar"
    members = {"other.png": png(pictures(9, 32)[5]), "x.cls": b"0"}
    write_shard(local, members)
    if "s3:" in at:
        request.getfixturevalue("s3").upload_file(str(local), "shelf", f"shards/{local.name}")
    elif "memory:" in at:
        memory.put(str(local), f"/shards/{local.name}")
    with pytest.raises(DataError, match="has changed") as caught:
        source.read(0)
    assert not isinstance(caught.value, ImageError)
    local.unlink()
    if "s3:" in at:
        request.getfixturevalue("s3").delete_object(Bucket="shelf", Key=f"shards/{local.name}")
    elif "memory:" in at:
        memory.rm(f"/shards/{local.name}")
    with pytest.raises(DataError, match="Nothing was found at this location") as caught:
        source.read(0)
    assert not isinstance(caught.value, ImageError)
    assert source.read(5).shape == (32, 32, 3)


def test_the_same_features_as_a_folder_of_the_same_images(at, tmp_path):
    for row, image in enumerate(pictures(9, 32)):
        save(
            tmp_path / "photos" / ("train" if row < 7 else "test") / str(row % 3) / f"{row}.png",
            image,
        )
    stores = extract(f"wds:{at}", workspace=tmp_path / "work", **HOW)
    wanted = extract(f"folder:{tmp_path / 'photos'}", workspace=tmp_path / "work", **HOW)
    for store, other in zip(stores, wanted, strict=True):
        rows = {name.rpartition("/")[2]: row for row, name in enumerate(other.ids)}
        order = [rows[name.rpartition("/")[2]] for name in store.ids]
        np.testing.assert_array_equal(store.features(), other.features()[order])
        np.testing.assert_array_equal(store.labels, other.labels[order])


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        ({"a": "b10", "b": "b9"}, ("b9", "b10"), [1, 0, -1]),
        ({"a": "7", "b": "b9", "c": ""}, ("7", "b9"), [0, 1, -1]),
        ({"a": "2", "b": "-1"}, ("0", "1", "2"), [2, -1, -1]),
        ({"a": "  1\n", "b": "0"}, ("0", "1"), [1, 0, -1]),
        ({"c": "Ελλάδα"}, ("Ελλάδα",), [-1, -1, 0]),
        ({}, (), [-1, -1, -1]),
    ],
)
def test_labels(shard, options, labels, classes, found):
    source = open_source(shard("a.png", "b.JPG", "c.webp", **labels), "all", options)
    assert (source.classes, source.labels.tolist()) == (classes, found)


def test_a_label_that_is_a_large_number_is_not_a_class(shard, options):
    with pytest.raises(DataError, match="not small numbers"):
        open_source(shard("a.png", a=9999999999), "all", options)


def test_folders_are_classes_where_there_is_no_cls(shard, options):
    source = open_source(shard("p/b10/1.png", "p/b9/1.png", "top.png"), "all", options)
    assert (source.classes, source.labels.tolist()) == (("b9", "b10"), [1, 0, -1])
    assert list(source.ids) == ["pets/p/b10/1.png", "pets/p/b9/1.png", "pets/top.png"]
    source = open_source(shard("./images/1.png", "./images/2.png"), "all", options)
    assert (source.classes, list(source.ids)) == ((), ["pets/images/1.png", "pets/images/2.png"])


def test_classes_hold_in_every_split(shard, tmp_path, options):
    shard("a.png", at="s/train.tar", a="dog")
    shard("a.png", at="s/val/x.tar", a="ant")
    train, val = (open_source(f"wds:{tmp_path / 's'}", name, options) for name in ("train", "val"))
    assert train.classes == val.classes == ("ant", "dog")
    assert (train.labels.tolist(), val.labels.tolist()) == ([1], [0])


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-000.tar", "val000.tar"], ("train", "val")),
        (["imagenet1k-train-0.tar", "imagenet1k-validation-0.tar"], ("train", "validation")),
        (["test/0.tar", "train/0.tar"], ("train", "test")),
        (["0.tar", "trains.tar", "latest.tar"], ("all",)),
    ],
)
def test_which_names_are_splits(shard, tmp_path, options, names, splits):
    for name in names:
        shard("a.png", at=f"s/{name}")
    assert splits_of(f"wds:{tmp_path / 's'}", options) == splits


def test_a_tar_file_of_no_split_among_others(shard, tmp_path, options):
    shard("a.png", at="s/train-0.tar")
    shard("a.png", at="s/extra-0.tar")
    with pytest.raises(DataError, match="belong to no split") as caught:
        splits_of(f"wds:{tmp_path / 's'}", options)
    assert "extra-0.tar" in str(caught.value)


def test_an_image_that_is_damaged_is_named_with_its_tar_file(tmp_path, options):
    write_shard(tmp_path / "x.tar", {"1.png": b"no image"})
    source = open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)
    with pytest.raises(ImageError) as caught:
        source.read(0)
    assert caught.value.details["where"] == f"{tmp_path / 'x.tar'}, 1.png"


def test_compressed_tar_files_are_refused(shard, options, tmp_path):
    shard("1.png")
    packed = gzip.compress((tmp_path / "pets.tar").read_bytes())
    (tmp_path / "s").mkdir()
    for name in ("s/pets.tar.gz", "s/x.tgz", "disguised.tar"):
        (tmp_path / name).write_bytes(packed)
    for name in ("s", "s/pets.tar.gz", "s/x.tgz", "disguised.tar", "s/{pets,pets}.tar.gz"):
        with pytest.raises(DataError, match="compressed") as caught:
            open_source(f"wds:{tmp_path / name}", "all", options)
        assert "plain .tar" in caught.value.details["next"]


def test_nothing_to_read(shard, options, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").touch()
    with pytest.raises(DataError, match="no tar files"):
        splits_of(f"wds:{tmp_path / 's'}", options)
    with pytest.raises(DataError, match="no images in the tar files"):
        open_source(shard("a.txt"), "all", options)
    with pytest.raises(DataError, match="no such tar file") as caught:
        splits_of(f"wds:{tmp_path / 'pest.tar'}", options)
    assert "pets.tar" in caught.value.details["next"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.timeout(30)
def test_a_fifo_is_not_waited_for(options, tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError):
        open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{x}", ["{x}"]),
    ],
)
def test_braces(pattern, texts):
    assert wds.expanded(pattern, "wds:x") == texts


@pytest.mark.parametrize("pattern", ["{9..1}", "{a..c}", "{0..999999999}", "{0..9999}{0..9999}"])
def test_braces_that_mean_nothing(options, pattern):
    with pytest.raises(UsageError, match="braces"):
        splits_of(f"wds:x-{pattern}.tar", options)


def test_braces_mean_the_same_in_every_folder(shard, tmp_path, monkeypatch, options):
    shard("a.png", at="s/train-0.tar")
    monkeypatch.chdir(tmp_path / "s")
    for spec in ("wds:train-{0..0}.tar", f"wds:{tmp_path}/s/train-{{0..0}}.tar"):
        assert (short_name(spec), slug(short_name(spec))) == (
            "wds:train-{0..0}.tar",
            "wds-train-0-0",
        )
        kept = SourceRequest.from_dict(SourceRequest(spec).as_dict())
        assert kept.dataset == f"wds:{tmp_path}/s/train-{{0..0}}.tar"
        assert splits_of(spec, options) == ("train",)
    shutil.copytree(tmp_path / "s", tmp_path / "moved" / "s")
    assert len(kept.moved(tmp_path / "moved").open("train", options)) == 1
    data = replace(options, data=tmp_path)
    assert splits_of("wds:s/train-{0..0}.tar", data) == ("train",)
    spec = "wds:s3://shelf/{train,val}/x-{00..09}.tar"
    assert SourceRequest(spec).as_dict()["dataset"] == spec
    assert short_name(spec) == "wds:{train,val}/x-{00..09}.tar"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems forbid such names")
def test_a_tar_file_whose_name_is_not_text(shard, options, tmp_path):
    shard("a.png", at="s/x.tar")
    os.rename(tmp_path / "s" / "x.tar", os.fsencode(tmp_path / "s") + b"/\xff.tar")
    with pytest.raises(DataError, match="not valid text"):
        open_source(f"wds:{tmp_path / 's'}", "all", options)


IMAGE = png(pictures(1)[0])


def index_of(address):
    """Return what a tar file at a path or URL is found to hold."""
    place = RemoteFolder(str(address))
    return read_index(Shard("x", as_listed(place.info(place.path)), str(address)), place)


@pytest.mark.parametrize("remote", [False, True])
def test_the_index_says_where_the_bytes_of_an_image_are(tmp_path, memory, remote):
    path = tmp_path / "x.tar"
    members = {"b/1.png": IMAGE, "b/1.cls": b" cat\n", "b/1.json": b"{}", "a/2.JPG": b"12345"}
    write_shard(path, members)
    content = path.read_bytes()
    memory.pipe("/x.tar", content)
    first, second = index_of("memory://x.tar" if remote else path)
    assert (first.name, first.label, first.obstacle) == ("b/1.png", "cat", "")
    assert (second.name, second.label, second.obstacle) == ("a/2.JPG", None, "")
    for sample in (first, second):
        assert content[sample.start : sample.start + sample.size] == members[sample.name]
        assert sample.check == zlib.crc32(content[sample.start - 512 : sample.start])


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [
        ("gzip", gzip.compress(b"tar", mtime=0)),
        ("bzip2", bz2.compress(b"tar")),
        ("xz", lzma.compress(b"tar")),
        ("zstd", b"\x28\xb5\x2f\xfd"),
    ],
)
def test_a_compressed_archive_is_recognised_by_its_first_bytes(tmp_path, kind, beginning):
    path = tmp_path / "x.tar"
    path.write_bytes(beginning.ljust(1024, b"\0"))
    with pytest.raises(DataError, match="compressed") as caught:
        index_of(path)
    assert caught.value.details["got"] == kind
    assert caught.value.details["where"] == str(path)


@pytest.mark.parametrize("label", [b"two\nlines", b"\xff\xfe", b"x" * 5000])
def test_invalid_labels(tmp_path, options, label):
    write_shard(tmp_path / "x.tar", {"a.png": IMAGE, "a.cls": label})
    with pytest.raises(DataError, match="not a label"):
        open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)


def test_other_members_are_left_out(shard, options):
    names = ("1.png", "1.seg.png", "1.json", ".2.png", "__MACOSX/._1.png", "note.txt")
    spec = shard(*names, **{"2": "a label alone"})
    assert list(open_source(spec, "all", options).ids) == ["pets/1.png"]


def test_names_that_climb_are_texts(shard, options, tmp_path):
    spec = shard("../../a.png", "/etc/b.png", "c d\n€.png")
    source = open_source(spec, "all", options)
    assert list(source.ids) == ["pets/a.png", "pets/etc/b.png", "pets/c d\n€.png"]
    assert source.read(1).shape == (8, 8, 3)
    assert sorted(os.listdir(tmp_path)) == ["hashes.sqlite", "pets.tar"]


@pytest.mark.parametrize("names", [["1.png", "1.jpg"], ["a/1.png", "./a/1.png"]])
def test_two_images_with_one_key(shard, options, names):
    with pytest.raises(DataError, match="same key") as caught:
        open_source(shard(*names), "all", options)
    assert "pets.tar" in str(caught.value)


def test_a_label_given_twice(tmp_path, options):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("1.png", "1.cls", "1.cls"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="same key"):
        open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)


def test_an_image_whose_name_has_several_dots(shard, options):
    with pytest.raises(DataError, match="several dots") as caught:
        open_source(shard("1.png", "IMG.2020.png"), "all", options)
    assert "IMG.2020.png" in str(caught.value)


def test_links_are_unreadable(tmp_path, options):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("3.png")
        member.size = len(IMAGE)
        tar.addfile(member, io.BytesIO(IMAGE))
    source = open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)
    assert sorted(source.unreadable) == [0, 1]
    with pytest.raises(ImageError, match="a link"):
        source.read(0)
    assert source.read(2).shape == (8, 8, 3)


def test_long_names(shard, options):
    name = "x" * 300
    source = open_source(shard(f"{name}/1.png", f"{name}/2.png"), "all", options)
    assert source.ids[1] == f"pets/{name}/2.png"
    np.testing.assert_array_equal(source.read(1), pictures(1)[0])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("cut", ["header", "member", "between", "damaged", "nothing", "text"])
def test_a_tar_file_that_is_damaged_or_cut_off(tmp_path, options, memory, cut, remote):
    path = tmp_path / "pets.tar"
    write_shard(path, {"1.png": IMAGE, "2.png": IMAGE, "3.png": IMAGE})
    content = path.read_bytes()
    each = 512 + -(-len(IMAGE) // 512) * 512
    changed = {
        "header": content[: each + 100],
        "member": content[: each + 512 + 20],
        "between": content[: 2 * each],
        "damaged": content[:each] + b"\xff" * 512 + content[each + 512 :],
        "nothing": b"",
        "text": b"<html>not found</html>" * 100,
    }
    path.write_bytes(changed[cut])
    memory.pipe("/pets.tar", changed[cut])
    spec = "memory://pets.tar" if remote else path
    with pytest.raises(DataError, match="damaged or cut off") as caught:
        open_source(f"wds:{spec}", "all", options)
    assert "pets.tar" in caught.value.details["where"]
    assert "again" in caught.value.details["next"]
