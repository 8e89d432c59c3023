"""Where things are stored, and files that are either the old ones or the new ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featpipe.errors import UsageError
from featpipe.workspace import Workspace, atomic_write, user_path


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


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("shared with the group")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
