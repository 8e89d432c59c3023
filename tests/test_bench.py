"""Measuring a machine: what is measured, what cannot be, and what is advised."""

from __future__ import annotations

from pathlib import Path

import pytest

from featpipe.backbones import PRECISIONS, RUNTIMES
from featpipe.bench import measure
from featpipe.errors import UnknownNameError


def test_everything_that_runs_here_has_a_rate_and_the_rest_a_reason(tmp_path: Path) -> None:
    rows, taken = measure("glyphnet", "cpu", tmp_path, seconds=0.01)
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(row["what"], []).append(row)
    assert {"decode and resize", "write and sync"} < set(by_name)
    for kind in (kind for kind in RUNTIMES if "cpu" in kind.suits):
        for precision in (one for one in PRECISIONS if one in kind.precisions):
            found = by_name[f"{kind.name} {precision}"]
            if len(found) == 1:  # it cannot run here
                assert found[0]["rate"] is None
                assert len(found[0]["unit"].split()) > 2
            else:
                assert [row["batch"] for row in found] == [1, 8, 32]
                assert all(row["rate"] > 0 for row in found)
    assert len(by_name["torch float32"]) == 3
    assert taken.startswith("--runtime auto takes torch for glyphnet on cpu")  # tiny images
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="resnet51"):
        measure("resnet51", "cpu", tmp_path)
