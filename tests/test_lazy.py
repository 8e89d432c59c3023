"""Packages that are imported when they are first used."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

from featpipe.errors import MissingExtraError
from featpipe.lazy import Lazy, check_installed


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "imported_late.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)
    return "imported_late"


def test_a_module_is_imported_when_a_name_is_asked_for(package: str) -> None:
    lazy = Lazy(package)
    assert copy.copy(lazy) is not lazy  # what asks for names of any object imports nothing
    assert not hasattr(lazy, "__wrapped__")
    assert package not in sys.modules
    assert lazy.answer == 42
    assert package in sys.modules
    with pytest.raises(AttributeError, match="question"):
        _ = lazy.question
    with pytest.raises(AttributeError, match="answer"):
        lazy.answer = 43


def test_a_package_that_is_missing_is_told_with_its_extra(package: str) -> None:
    check_installed(package, "late")
    assert package not in sys.modules
    with pytest.raises(MissingExtraError, match="'not_there'") as raised:
        check_installed("not_there", "late")
    assert raised.value.details["next"] == 'pip install "featpipe[late]"'
