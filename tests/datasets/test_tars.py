"""Tar files: which members are images, where their bytes are, and what of an archive is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib

import numpy as np
import pytest

from featpipe.datasets.dataset import open_source
from featpipe.datasets.remote import RemoteFolder, as_listed
from featpipe.datasets.tars import Shard, read_index
from featpipe.errors import DataError, ImageError
from tests.datasets.conftest import pictures, png, write_shard

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
def test_a_compressed_archive_is_told_by_its_first_bytes(tmp_path, kind, beginning):
    path = tmp_path / "x.tar"
    path.write_bytes(beginning.ljust(1024, b"\0"))
    with pytest.raises(DataError, match="compressed") as caught:
        index_of(path)
    assert caught.value.details["got"] == kind
    assert caught.value.details["where"] == str(path)


@pytest.mark.parametrize("label", [b"two\nlines", b"\xff\xfe", b"x" * 5000])
def test_what_is_no_label(tmp_path, options, label):
    write_shard(tmp_path / "x.tar", {"a.png": IMAGE, "a.cls": label})
    with pytest.raises(DataError, match="not a label"):
        open_source(f"wds:{tmp_path / 'x.tar'}", "all", options)


def test_what_is_no_image_is_left_out(shard, options):
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
