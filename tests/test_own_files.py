"""A FIFO in the place of a file that featpipe wrote is answered at once, never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featpipe.errors import FeatpipeError
from featpipe.evaluation.result import Result, scan_results
from featpipe.finetuning.explain import Explanation
from featpipe.finetuning.saved import load_head
from featpipe.reporting.page import head_of, write_index

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs"),
    pytest.mark.timeout(30),
]


@pytest.mark.parametrize("read", [Result.load, load_head])
def test_results_and_heads(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(FeatpipeError, match="FIFO"):
        read(tmp_path / ("x.json" if read == Result.load else "x.safetensors"))


def test_a_folder_of_results(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    results, errors = scan_results(tmp_path)
    assert (len(results), len(errors)) == (0, 1)


def test_an_explanation_is_made_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "explanation.json")
    assert Explanation.read(tmp_path) is None


def test_a_page_is_left_out_of_the_index(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.html")
    assert "page.html" not in write_index(tmp_path).read_text("utf-8")
    with pytest.raises(OSError, match="FIFO"):
        head_of(tmp_path / "page.html")
