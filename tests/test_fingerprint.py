"""Equal content, equal fingerprint; and no remembered hash outlives a change of the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe import fingerprint
from featpipe.fingerprint import FileHashes, of_bytes, of_file, of_mapping
from tests.damage import NAMES, VARIANTS, damaged

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


def test_names_that_are_not_utf_8_are_remembered(
    tmp_path: Path, let_files_settle: Callable[[], None]
) -> None:
    files = [
        Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/\xe4", b"/z", b"/\xff")
    ]
    try:
        for number, file in enumerate(files):
            file.write_text(str(number))
    except OSError:
        pytest.skip("this file system has no such names")
    let_files_settle()
    cache = tmp_path / "h.sqlite"
    assert (reads(FileHashes(cache), *files), reads(FileHashes(cache), *files)) == (3, 0)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_damaged_memory_is_replaced(hashed: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "h.sqlite"
    cache.write_bytes(content)
    assert reads(FileHashes(cache), hashed) == 1
    assert reads(FileHashes(cache), hashed) == 0


def test_a_memory_of_other_columns_is_left_alone(hashed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "h.sqlite"
    with sqlite3.connect(cache) as connection:
        connection.execute("create table hashes (path text)")
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


# -- sealed files ----------------------------------------------------------------------------------


def test_sealed_content_comes_back_and_a_change_is_noticed() -> None:
    content = {"b": [1, 2.5, None], "a": {"ä": (1, 2)}}
    text = fingerprint.sealed_json(content)
    assert fingerprint.unsealed(json.loads(text)) == {"b": [1, 2.5, None], "a": {"ä": [1, 2]}}
    assert fingerprint.unsealed(json.loads(json.dumps(json.loads(text), indent=8)))  # same content
    for odd in (text.replace("2.5", "5.2"), "[]", "null", "{}", text.replace("digest", "digezt")):
        with pytest.raises(ValueError, match=r"digest|changed|mapping"):
            fingerprint.unsealed(json.loads(odd))
    with pytest.raises(ValueError, match="JSON"):
        fingerprint.sealed_json({"a": math.nan})


def test_a_sealed_archive_is_an_archive_that_knows_when_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"content")
    with pytest.raises(ValueError, match="does not end"):
        fingerprint.check_archive(path)
    fingerprint.seal_archive(path)
    fingerprint.check_archive(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a") == b"content"
        assert archive.testzip() is None
    content = path.read_bytes()
    for variant in VARIANTS:
        path.write_bytes(damaged(content, variant))
        with pytest.raises(ValueError, match=r"changed|does not end"):
            fingerprint.check_archive(path)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_a_damaged_database_remembers_no_wrong_hash(
    remembered: tuple[bytes, list[Path], list[str]], tmp_path: Path, variant: Any
) -> None:
    content, files, digests = remembered
    (tmp_path / "hashes.sqlite").write_bytes(damaged(content, variant))
    hashes = FileHashes(tmp_path / "hashes.sqlite")
    assert hashes.many(files) == digests
    assert hashes.many(files) == digests  # what it was replaced by, too


def test_a_remembered_hash_with_swapped_digits_is_computed_again(
    remembered: tuple[bytes, list[Path], list[str]], tmp_path: Path
) -> None:
    content, files, digests = remembered
    for digest in digests:
        place = content.index(digest.encode())
        swapped = content[:place] + digest[::-1].encode() + content[place + 64 :]
        (tmp_path / "hashes.sqlite").write_bytes(swapped)
        read = Mock()
        assert FileHashes(tmp_path / "hashes.sqlite").many(files, on_hashed=read) == digests
        assert read.call_count == 1


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Path], list[str]]:
    """A database of twenty files, the files, and their digests."""
    folder = tmp_path_factory.mktemp("remembered")
    files = [folder / f"{number}.bin" for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 99)
    time.sleep(0.1)  # what has only just changed is not remembered
    digests = FileHashes(folder / "hashes.sqlite").many(files)
    return (folder / "hashes.sqlite").read_bytes(), files, digests


def test_a_text_is_made_once_for_a_content(tmp_path):
    made = []

    def make():
        made.append(len(made))
        return f"text {len(made)}"

    for cache in (tmp_path / "hashes.sqlite", None):
        hashes, before = FileHashes(cache), len(made)
        texts = [
            hashes.recall(*key, make) for key in (("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"))
        ]
        assert len(made) - before == (3 if cache else 4)
        assert (texts[0] == texts[1]) == bool(cache)
        assert len(set(texts[1:])) == 3
