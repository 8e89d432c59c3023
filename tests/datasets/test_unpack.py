"""Archives: what is wanted comes out whole, what is unsafe or damaged does not."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile

import pytest

from featpipe.datasets import download
from featpipe.datasets.download import unpack
from featpipe.errors import DataError

FILES = {"set/a.bin": b"a" * 5000, "set/b.bin": os.urandom(300_000), "set/x/c.txt": b"c"}
LINK = object()


def write_tar(folder, entries):
    path = folder / "some.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if content is LINK:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(folder, entries):
    path = folder / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            if content is LINK:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            body = b"/etc/passwd" if content is LINK else content
            archive.writestr(info, body, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture(params=[write_tar, write_zip], ids=["tar", "zip"])
def write(request, tmp_path):
    """Write an archive of names and contents, in either format."""
    return lambda entries=FILES: request.param(tmp_path, entries)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "set"


def every(name):
    return True


def unpacked(target):
    return {
        path.relative_to(target.parent).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }


def refused(archive, target, match):
    """Unpacking fails with this message and leaves nothing."""
    with pytest.raises(DataError, match=match) as caught:
        unpack(archive, target, ["a.bin"], every)
    assert list(target.parent.glob("*")) == []
    assert str(archive) in str(caught.value)
    return str(caught.value)


def test_only_the_wanted_members_come_out(write, target, listener):
    archive = write({"set/": b"", **FILES, "set/test/d.txt": b"d", "readme": b"r"})
    unpack(archive, target, ["b.bin"], lambda name: name.startswith("x/"), listener)
    assert unpacked(target) == {name: FILES[name] for name in ("set/b.bin", "set/x/c.txt")}
    assert os.listdir(target.parent) == ["set"]
    assert 0 < listener.steps <= archive.stat().st_size


def test_what_is_there_already_stays(write, target):
    target.mkdir(parents=True)
    (target / "a.bin").write_bytes(b"mine")
    unpack(write(), target, ["a.bin", "b.bin"], every)
    assert unpacked(target) == {**FILES, "set/a.bin": b"mine"}
    assert os.listdir(target.parent) == ["set"]


def test_a_folder_in_the_way(write, target):
    (target / "x").mkdir(parents=True)
    (target / "x" / "mine").write_bytes(b"mine")
    with pytest.raises(DataError, match="cannot be unpacked") as caught:
        unpack(write(), target, ["a.bin"], every)
    assert str(target / "x") in str(caught.value)
    assert (target / "x" / "mine").read_bytes() == b"mine"


def test_a_leading_dot_is_the_same_name(tmp_path, target):
    archive = write_tar(tmp_path, {f"./{name}": content for name, content in FILES.items()})
    unpack(archive, target, ["x/c.txt"])
    assert unpacked(target) == {"set/x/c.txt": b"c"}


def test_a_missing_member_is_named(write, target):
    with pytest.raises(DataError, match="Files are missing") as caught:
        unpack(write(), target, ["a.bin", "z.bin"])
    assert "missing: z.bin" in str(caught.value)
    assert not target.exists()
    with pytest.raises(DataError, match="Files are missing"):
        unpack(write({"other/a.bin": b"a"}), target, ["a.bin"])


def test_a_folder_is_not_a_file(write, target):
    refused(write({"set/a.bin/": b""}), target, "Files are missing")


def test_a_link(write, target):
    refused(write({"set/a.bin": b"a", "set/link": LINK}), target, "it is not a plain file")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_special_file(tmp_path, target, kind):
    path = tmp_path / "some.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("set/a.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(path, target, "it is not a plain file")


@pytest.mark.parametrize(
    "name", ["set/../../evil", "/set/evil", "set\\..\\evil", "../evil", "set/c:evil", "/tmp/evil"]
)
def test_a_member_that_climbs_out(write, target, tmp_path, name):
    archive = write({"set/a.bin": b"good", name: b"evil"})
    refused(archive, target, "unsafe")
    assert not list(tmp_path.rglob("*evil"))


def test_more_bytes_than_allowed(write, target, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 1_000_000)
    archive = write({"set/a.bin": bytes(5_000_000)})
    assert archive.stat().st_size < 10_000
    refused(archive, target, "at most 1000000 are allowed")


def test_the_limit_is_for_all_together(write, target, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 300_100)
    refused(write(), target, "at most")


def test_what_a_killed_run_left_does_not_matter(write, target):
    left = target.parent / ".set.partial"
    left.mkdir(parents=True)
    (left / "old").write_bytes(b"old")
    unpack(write(), target, ["a.bin"])
    assert unpacked(target.parent) == {"out/set/a.bin": FILES["set/a.bin"]}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
def test_half_an_archive(write, target, share):
    archive = write()
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    refused(archive, target, "damaged")


def test_a_damaged_member(tmp_path, target):
    archive = write_zip(tmp_path, {"set/a.bin": os.urandom(1000)})
    content = bytearray(archive.read_bytes())
    content[200] ^= 255
    archive.write_bytes(content)
    refused(archive, target, "damaged")


@pytest.mark.parametrize("name", ["page.tar.gz", "page.zip"])
def test_something_else(tmp_path, target, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    refused(tmp_path / name, target, "damaged")
