"""Stop a command before its n-th file operation, for many n, and run it again.

Usage: LD_PRELOAD=operations.so python crash.py FOLDER COMMAND FIRST STEP. Every child is forked
from this process, so that what takes seconds to import is imported once. Prints one JSON line: how
many operations the command makes and how many times it was stopped. Exits with a traceback if a
second run does not end well, in the very state of a run that nobody stopped, with no file more.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import featpipe.evaluation.run
import featpipe.finetuning.explain
import featpipe.finetuning.run
import featpipe.probes.estimators
import featpipe.reporting.page
import featpipe.statistics.comparison
import featpipe.steps.runner
from featpipe.cli.main import main as featpipe_main
from featpipe.extraction import engine  # noqa: F401
from featpipe.store import FeatureStore
from featpipe.store.layout import LOOKS

IMAGES = "--model glyphnet --dataset digits --limit 20 --device cpu"
RECIPE = """
steps:
  - {step: extract, model: glyphnet, dataset: digits, limit: 20, device: cpu}
  - {step: centroid, save_model: false}
"""
# What has been done before, and the command that is stopped.
COMMANDS: dict[str, tuple[Sequence[str], str]] = {
    "extract": ((), f"extract {IMAGES} --batch-size 8"),
    "svm": ((f"extract {IMAGES}",), "svm --c 1 --jobs 1"),
    "finetune": ((), f"finetune {IMAGES} --epochs 2 --batch-size 8"),
    "report": ((f"extract {IMAGES}", "centroid", "knn --k 1"), "report --all"),
    "run": ((), "run RECIPE --jobs 1"),
}
# What differs between two runs of one command.
_OF_THE_RUN = re.compile("second|created|per_s|shares|digest|^run$|^cost$|^history$|^environment$")


class Harness:
    """Commands in a workspace, each in a forked child that can be stopped."""

    def __init__(self, folder: Path) -> None:
        self.work, self.base = folder / "work", folder / "base"
        self.log, self.recipe = folder / "log", folder / "recipe.yaml"
        self.imported = folder / "imported"
        self.recipe.write_text(RECIPE)
        self.operations = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.operations.operations.restype = ctypes.c_long
        torch.set_num_threads(1)
        # A worker that is forked holds its parent's end of the pipe open and has to be ended.
        featpipe.steps.runner.SHUTDOWN_TIMEOUT = 0.1
        context = multiprocessing.get_context
        multiprocessing.get_context = lambda name=None: context(  # type: ignore[assignment]
            "fork" if name == "spawn" else name
        )

    def run(self, command: str, stop_at: int = -1) -> tuple[int, int]:
        """Return how a command ended (minus the signal) and how many operations it made."""
        arguments = command.replace("RECIPE", str(self.recipe)).split()
        self.operations.watch(os.fsencode(self.work), ctypes.c_long(stop_at))
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # all its processes are stopped at once
            with self.log.open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                try:
                    featpipe_main([*arguments, "--workspace", str(self.work)])
                except SystemExit as ended:
                    sys.stdout.flush()
                    self.imported.write_text("\n".join(sys.modules))
                    os._exit(int(ended.code or 0))
                finally:
                    os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        made = self.operations.operations()
        self.operations.watch(b"", ctypes.c_long(-1))
        return code, made

    def import_once(self) -> None:
        """Import here what the last command imported, for all that follow."""
        for name in self.imported.read_text().splitlines():
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def begin(self) -> None:
        """Make the workspace as it was before the command."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.base, self.work)

    def finish(self, command: str) -> dict[str, Any]:
        """Run a command to its end and return the state of the workspace."""
        code, _ = self.run(command)
        assert code == 0, f"exit code {code}: {self.log.read_text()}"
        files = sorted(path for path in self.work.rglob("*") if path.is_file())
        return {str(path.relative_to(self.work)): content_of(path) for path in files}


def content_of(path: Path) -> Any:
    """Return what a file holds, without what every run measures anew."""
    if path.suffix == ".h5":
        store = FeatureStore(path)
        store.verify()
        names = ["labels", *(f"features/{name}" for name in store.shapes)]
        names += LOOKS if store.has_looks else ()
        arrays = {name: [one.sha256 for one in store.extents(name)] for name in names}
        return [store.manifest, store.ids, store.classes, sorted(store.skipped), arrays]
    if path.suffix == ".sqlite":
        return None  # it remembers what can be computed again
    if path.suffix == ".json":
        return lasting(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lasting(value: Any) -> Any:
    """Return a JSON value without what names or measures the run."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if not _OF_THE_RUN.search(k)}
    return [lasting(part) for part in value] if isinstance(value, list) else value


def main(folder: Path, name: str, first: int, step: int) -> None:
    """Stop one command at every ``step``-th operation."""
    harness = Harness(folder)
    before, command = COMMANDS[name]
    harness.base.mkdir()
    harness.begin()
    for each in before:
        harness.finish(each)
    shutil.rmtree(harness.base)
    shutil.copytree(harness.work, harness.base)
    code, operations = harness.run(command)
    assert code == 0, harness.log.read_text()
    harness.import_once()
    states = []
    for _ in range(2):
        harness.begin()
        states.append(harness.finish(command))
    wanted, other = states
    assert wanted.keys() == other.keys()
    same = {file for file in wanted if wanted[file] == other[file]}
    stopped = 0
    for operation in range(first, operations + 1, step):
        harness.begin()
        code, made = harness.run(command, operation)
        if code == 0:  # how many digests are remembered depends on the age of the files
            assert made < operation, f"operation {operation} of {made} did not stop the run"
            continue
        assert code == -signal.SIGKILL, f"operation {operation}: {harness.log.read_text()}"
        stopped += 1
        state = harness.finish(command)
        more, fewer = state.keys() - wanted.keys(), wanted.keys() - state.keys()
        assert not more | fewer, f"operation {operation}: {more} left, {fewer} missing"
        changed = [file for file in same if state[file] != wanted[file]]
        assert not changed, f"operation {operation}: {changed} changed"
    with contextlib.suppress(FileNotFoundError):
        harness.log.unlink()
    print(json.dumps({"operations": operations, "stopped": stopped, "files": len(wanted)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
