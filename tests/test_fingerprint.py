"""Equal content, equal fingerprint; and no remembered hash outlives a change of the file."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.fingerprint import FileHashes, of_bytes, of_file, of_mapping

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_order_of_keys_does_not_matter(values: dict[str, object]) -> None:
    assert of_mapping(values) == of_mapping(dict(reversed(values.items())))


@given(JSON, JSON)
def test_other_values_have_another_fingerprint(one: object, two: object) -> None:
    if repr(one) != repr(two):
        same = of_mapping(one) == of_mapping(two)
        assert not same or isinstance(one, dict | list)  # the same, but for the order of keys
    else:
        assert of_mapping(one) == of_mapping(two)


def test_files_and_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert of_file(tmp_path / "a") == of_bytes(content[:7], content[7:])
    assert of_file(tmp_path / "a", "md5") == hashlib.md5(content).hexdigest()


@pytest.fixture
def hashed(tmp_path: Path, let_files_settle: Callable[[], None]) -> Path:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    let_files_settle()
    return file


def reads(hashes: FileHashes, *files: Path) -> int:
    """Return how many of the files had to be read."""
    read: list[None] = []
    digests = hashes.many(files, on_hashed=lambda: read.append(None))
    assert digests == [of_file(file) for file in files]
    return len(read)


def test_an_unchanged_file_is_read_once(hashed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "data" / "hashes.sqlite"
    assert reads(FileHashes(cache), hashed) == 1
    assert reads(FileHashes(cache), hashed) == 0
    assert FileHashes(cache).one(hashed, "md5") == of_file(hashed, "md5")


def test_without_a_memory_every_look_reads(hashed: Path) -> None:
    hashes = FileHashes()
    assert (reads(hashes, hashed), reads(hashes, hashed)) == (1, 1)


def test_a_change_of_equal_size_and_time_is_seen(hashed: Path, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "h.sqlite")
    reads(hashes, hashed)
    stat = hashed.stat()
    hashed.write_bytes(b"two")
    os.utime(hashed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert reads(hashes, hashed) == 1


def test_changes_within_one_tick_of_the_clock_are_seen(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "h.sqlite")
    file = tmp_path / "a.bin"
    for number in range(30):
        file.write_bytes(b"%03d" % number)
        assert hashes.one(file) == of_file(file)


def test_a_link_and_its_file_are_one(hashed: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    hashes = FileHashes(tmp_path / "h.sqlite")
    reads(hashes, hashed)
    assert reads(hashes, tmp_path / "link" / "a.bin") == 0


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_damaged_memory_is_replaced(hashed: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "h.sqlite"
    cache.write_bytes(content)
    assert reads(FileHashes(cache), hashed) == 1
    assert reads(FileHashes(cache), hashed) == 0


def test_a_memory_of_other_columns_is_left_alone(hashed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "h.sqlite"
    with sqlite3.connect(cache) as connection:
        connection.execute("create table stamps (path text)")
    connection.close()
    assert reads(FileHashes(cache), hashed) == 1


def test_a_memory_that_cannot_be_written_costs_time_only(hashed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    hashes = FileHashes(tmp_path / "file" / "h.sqlite")
    assert (reads(hashes, hashed), reads(hashes, hashed)) == (1, 1)


def test_an_interruption_keeps_what_was_hashed(
    tmp_path: Path, let_files_settle: Callable[[], None]
) -> None:
    files = [tmp_path / f"{number}" for number in range(3)]
    for file in files:
        file.write_bytes(file.name.encode())
    let_files_settle()
    hashes = FileHashes(tmp_path / "h.sqlite")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hashes.many(files, on_hashed=interrupt)
    assert reads(hashes, *files) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        FileHashes(tmp_path / "h.sqlite").one(tmp_path / "nothing")
    assert "nothing" in str(caught.value)
