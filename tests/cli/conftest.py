"""Command lines that are run in an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from featpipe.cli import main
from tests import images

REPOSITORY = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Ended]:
    """Return a function that runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATPIPE_WORKSPACE", raising=False)

    def call(line: str) -> Ended:
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(line))
        return Ended(int(caught.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def extract(run: Callable[[str], Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an extract command that works, and remembers even hashes of files just written."""
    monkeypatch.setattr("featpipe.fingerprint.CLOCK_TICK_NS", -(10**9))
    images.weights_file(tmp_path / "w.safetensors")
    images.photo_folder(tmp_path / "photos")
    return (
        f"extract --model {images.MODEL} --weights w.safetensors --dataset folder:photos"
        " --device cpu"
    )


def in_process(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def evaluated(run: Any, extract: str) -> Path:
    """The path of a result of a small dataset, in the current folder."""
    run(extract)
    return Path(run("centroid --protocol holdout:0.5 --json").events[-1]["paths"][0])
