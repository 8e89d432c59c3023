"""Where things are stored, and files that are either the old ones or the new ones."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError, UsageError
from featpipe.workspace import (
    Workspace,
    atomic_write,
    is_locked,
    lock,
    neutralise_cell,
    neutralised,
    refuse_foreign,
    remove_leftovers,
    restore_cell,
    user_path,
)

posix = pytest.mark.skipif(os.name != "posix", reason="locks and permissions are those of POSIX")


def test_everything_is_below_the_root(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    for place in (work.raw, work.features, work.results, work.models, work.reports, work.hashes):
        assert tmp_path in place.parents
    assert list(tmp_path.iterdir()) == []


def test_option_then_variable_then_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATPIPE_WORKSPACE", "/variable")
    assert Workspace.find("/option").root == Path("/option")
    assert Workspace.find().root == Path("/variable")
    monkeypatch.delenv("FEATPIPE_WORKSPACE")
    assert Workspace.find().root == Path()


def test_home_is_expanded_and_an_unknown_one_refused() -> None:
    assert user_path("~/x") == Path.home() / "x"
    with pytest.raises(UsageError, match="nobody-of-this-name"):
        user_path("~nobody-of-this-name/x")


def test_a_new_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@posix
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("shared with the group")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@posix
def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from featpipe.workspace import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.txt.")
    (tmp_path / ".mine.tmp").write_text("mine")
    with atomic_write(tmp_path / "live.txt") as live:
        assert is_locked(live)
        live.write_text("live")
        with atomic_write(tmp_path / "b.txt") as temporary:
            assert not left.exists()
            temporary.write_text("new")
        remove_leftovers(tmp_path)
        assert live.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "live.txt", "b.txt"}


@posix
def test_a_lock_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        lock(file)
        assert is_locked(path)
    assert not is_locked(path)
    assert is_locked(tmp_path / "none")


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "featpipe clean"), (errno.EDQUOT, "free some"), (errno.EROFS, "another")],
)
def test_a_disk_that_takes_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    (tmp_path / "a.txt").write_text("old")

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)

    def write() -> None:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")

    with pytest.raises(FeatpipeError, match=os.strerror(number)) as caught:
        write()
    assert caught.value.details["where"] == str(tmp_path / "a.txt")
    assert advice in caught.value.details["next"]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_only_files_with_the_mark_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    refuse_foreign(path, b"mark", force=False)
    for content in (b"mark at the beginning", b"x" * 9_000_000 + b"at the end: mark"):
        path.write_bytes(content)
        refuse_foreign(path, b"mark", force=False)
    path.write_bytes(b"my own work")
    with pytest.raises(UsageError, match="did not write") as caught:
        refuse_foreign(path, b"mark", force=False)
    assert "--force" in caught.value.details["next"]
    refuse_foreign(path, b"mark", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="did not write"):
        refuse_foreign(tmp_path / "link", b"mark", force=False)
    with pytest.raises(UsageError, match="folder"):
        refuse_foreign(tmp_path, b"mark", force=True)


@posix
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="did not write"):
        refuse_foreign(tmp_path / "pipe", b"mark", force=False)
    assert is_locked(tmp_path / "pipe")


@given(st.text() | st.text("'=+-@\t\rx1", max_size=5))
def test_a_cell_comes_back_and_is_no_formula(text: str) -> None:
    cell = neutralise_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert restore_cell(cell) == text


def test_tables_are_neutralised_but_for_their_numbers() -> None:
    table = pd.DataFrame({"=id": ["=1+1", "cat", None], "n": [-1, -2, -3], "x": [-0.5, None, 2.0]})
    safe = neutralised(table)
    assert list(safe.columns) == ["'=id", "n", "x"]
    assert safe["'=id"].tolist()[:2] == ["'=1+1", "cat"]
    assert safe["'=id"].isna().tolist() == [False, False, True]
    pd.testing.assert_frame_equal(safe[["n", "x"]], table[["n", "x"]])


def test_values_of_a_mixed_column_stay_what_they_are() -> None:
    mixed = [1, True, 1.0, ["=x"], None, "=x", "=x"]
    safe = list(neutralised(pd.DataFrame({"a": pd.Series(mixed, dtype=object)})).a)
    assert safe == [1, True, 1.0, ["=x"], None, "'=x", "'=x"]
    assert [type(value) for value in safe[:3]] == [int, bool, float]
