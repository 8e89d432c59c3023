"""A command that is stopped before any of its file operations, and run again, is as if it were not.

The same command ends well, in the state of an undisturbed run, and leaves no file more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that counts file operations; made by the C compiler."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("library") / "operations.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-D_FORTIFY_SOURCE=0", "-o", library]
    subprocess.run([*command, HERE / "operations.c", "-ldl"], check=True)
    return library


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", ["extract", "svm", "finetune", "report", "run"])
def test_every_file_operation(operations: Path, tmp_path: Path, command: str) -> None:
    ended = subprocess.run(
        [sys.executable, HERE / "crash.py", tmp_path, command, "1", "1"],
        env={**os.environ, "LD_PRELOAD": str(operations), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["stopped"] > 40
