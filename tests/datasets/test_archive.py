"""Archives: what is wanted comes out whole, what is unsafe or damaged does not."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile

import pytest

from featpipe.datasets.archive import extract_folder, extract_members
from featpipe.errors import DataError

FILES = {"set/a.bin": b"a" * 5000, "set/b.bin": os.urandom(300_000), "set/c.txt": b"c"}


@pytest.fixture
def tar(tmp_path):
    """Write a gzipped tar file of names and contents; a TarInfo stands for itself."""

    def write(entries=FILES):
        path = tmp_path / "some.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in entries.items():
                info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
                body = b"" if isinstance(content, tarfile.TarInfo) else content
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return path

    return write


@pytest.fixture
def zipped(tmp_path):
    def write(entries, attributes=None):
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (attributes or {}).get(name, 0)
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        return path

    return write


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


class TestTar:
    def test_only_the_named_members_come_out(self, tar, tmp_path, listener):
        target = tmp_path / "out" / "renamed.bin"
        archive = tar()
        extract_members(archive, {"set/b.bin": target}, listener)
        assert target.read_bytes() == FILES["set/b.bin"]
        assert os.listdir(tmp_path / "out") == ["renamed.bin"]
        assert 0 < listener.steps <= archive.stat().st_size

    def test_a_leading_dot_is_the_same_name(self, tar, tmp_path):
        archive = tar({f"./{name}": content for name, content in FILES.items()})
        extract_members(archive, {"set/c.txt": tmp_path / "c"})
        assert (tmp_path / "c").read_bytes() == b"c"

    def test_a_missing_member_is_named(self, tar, tmp_path):
        with pytest.raises(DataError, match="does not hold") as caught:
            extract_members(tar(), {"set/a.bin": tmp_path / "a", "set/z.bin": tmp_path / "z"})
        assert "no set/z.bin" in str(caught.value)

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
    def test_a_member_that_is_no_plain_file(self, tar, tmp_path, kind):
        archive = tar({"x": special("set/a.bin", kind, "/etc/passwd")})
        with pytest.raises(DataError, match="unsafe"):
            extract_members(archive, {"set/a.bin": tmp_path / "a"})
        assert not (tmp_path / "a").exists()

    def test_members_cannot_choose_their_place(self, tar, tmp_path):
        archive = tar({"../../evil": b"evil", "/tmp/evil": b"evil", **FILES})
        (tmp_path / "deep" / "er").mkdir(parents=True)
        extract_members(archive, {"set/a.bin": tmp_path / "deep" / "er" / "a"})
        assert not list(tmp_path.rglob("evil"))

    def test_more_bytes_than_allowed(self, tar, tmp_path):
        with pytest.raises(DataError, match="at most 10 are allowed"):
            extract_members(tar(), {"set/a.bin": tmp_path / "a"}, max_bytes=10)

    def test_the_limit_is_for_all_together(self, tar, tmp_path):
        members = {name: tmp_path / name[-5:] for name in FILES}
        with pytest.raises(DataError, match="at most"):
            extract_members(tar(), members, max_bytes=300_100)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
    def test_half_an_archive(self, tar, tmp_path, share):
        archive = tar()
        whole = archive.read_bytes()
        archive.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match="damaged") as caught:
            extract_members(archive, {"set/b.bin": tmp_path / "b"})
        assert str(archive) in str(caught.value)
        assert not (tmp_path / "b").exists(), "complete or not at all"

    def test_something_else(self, tmp_path):
        archive = tmp_path / "page.tar.gz"
        archive.write_bytes(b"<html>not found</html>" * 100)
        with pytest.raises(DataError, match="damaged"):
            extract_members(archive, {"a": tmp_path / "a"})


class TestZip:
    def test_the_folder_comes_out(self, zipped, tmp_path, listener):
        entries = {"set/": b"", "set/x/1.txt": b"1", "set/test/2.txt": b"2", "readme": b"r"}
        extract_folder(
            zipped(entries), "set", tmp_path / "out", leave_out="test", progress=listener
        )
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert files == [tmp_path / "out" / "x" / "1.txt"]
        assert files[0].read_bytes() == b"1"
        assert listener.steps == 1

    @pytest.mark.parametrize(
        "name", ["set/../../evil", "/set/evil", "set\\..\\evil", "../evil", "set/c:evil"]
    )
    def test_an_entry_that_climbs_out(self, zipped, tmp_path, name):
        archive = zipped({"set/good": b"good", name: b"evil"})
        with pytest.raises(DataError, match="unsafe"):
            extract_folder(archive, "set", tmp_path / "in" / "out")
        assert not list(tmp_path.rglob("*good")), "refused as a whole, before anything is written"
        assert not list(tmp_path.rglob("*evil"))

    def test_a_link(self, zipped, tmp_path):
        link = (stat.S_IFLNK | 0o777) << 16
        archive = zipped({"set/link": b"/etc/passwd"}, {"set/link": link})
        with pytest.raises(DataError, match="it is a link"):
            extract_folder(archive, "set", tmp_path / "out")

    def test_a_bomb(self, zipped, tmp_path):
        archive = zipped({"set/zeros": bytes(5_000_000)})
        assert archive.stat().st_size < 10_000
        with pytest.raises(DataError, match="at most 1000000 are allowed"):
            extract_folder(archive, "set", tmp_path / "out", max_bytes=1_000_000)
        assert not (tmp_path / "out").exists()

    def test_no_such_folder(self, zipped, tmp_path):
        with pytest.raises(DataError, match="does not hold"):
            extract_folder(zipped({"other/a": b"a"}), "set", tmp_path / "out")

    def test_something_in_the_way(self, zipped, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(DataError, match="in the way"):
            extract_folder(zipped({"set/a": b"a"}), "set", tmp_path / "out")

    def test_what_an_interrupted_run_left_does_not_matter(self, zipped, tmp_path):
        left = tmp_path / ".out.partial"
        left.mkdir()
        (left / "old").write_bytes(b"old")
        extract_folder(zipped({"set/a": b"a"}), "set", tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["a"]
        assert not left.exists()

    def test_a_damaged_entry(self, zipped, tmp_path):
        archive = zipped({"set/a": os.urandom(1000)})
        content = bytearray(archive.read_bytes())
        content[200] ^= 255
        archive.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            extract_folder(archive, "set", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_something_else(self, tmp_path):
        (tmp_path / "page.zip").write_bytes(b"<html>" * 100)
        with pytest.raises(DataError, match="damaged"):
            extract_folder(tmp_path / "page.zip", "set", tmp_path / "out")
