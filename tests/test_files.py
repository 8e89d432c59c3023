"""Files at paths from outside: regular ones are read, nothing else is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featpipe import files
from featpipe.files import open_regular, read_regular
from featpipe.fingerprint import of_file


def test_a_regular_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"content"
        assert read_regular(tmp_path / name, 7) == b"content"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [open_regular, of_file, lambda path: read_regular(path, 9)])
def test_nothing_waits_for_a_fifo_or_reads_a_device(read: object, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "FIFO"), (Path("/dev/zero"), "device")):
        with pytest.raises(OSError, match=f"a {kind}, not a regular file"):
            read(path)  # type: ignore[operator]


@pytest.mark.timeout(20)
def test_a_fifo_that_takes_the_place_of_a_file_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.touch()
    seen = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(files.os, "stat", lambda _: seen)
    with pytest.raises(OSError, match="FIFO"):
        open_regular(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_the_size_is_known_before_there_is_memory_for_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError, match="at most 1000 are read"):
        read_regular(path, 1000)
