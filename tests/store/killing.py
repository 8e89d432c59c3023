"""Kill a writer again and again; run as a script, so that only this process is ever forked.

Usage: python killing.py FOLDER (random KILLS SEED | lines STEP). Kills at random moments, or at
every STEP-th line that the store's own modules execute. Prints one JSON line: what the kills met.
Exits with a traceback as soon as a kept row is wrong, an unfinished store is taken for a sealed
one, or a run that continues does not end in the very bytes of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import featpipe.store
from featpipe.errors import StoreError
from featpipe.store import FeatureStore, StoreWriter
from featpipe.store.layout import partial_path
from featpipe.store.writer import read_blocks
from tests import stores

CONTENT = stores.content(n=200, dims=64, n_logits=7)
ARRAYS = stores.features(CONTENT)
SKIPPED = {row: f"image {row} is damaged" for row in (3, 77, 199)}
STORE_MODULES = str(Path(featpipe.store.__file__).parent)


def write(path: Path, step: int = 10) -> None:
    """Write the store some rows at a time, waiting for the disk each time, and seal it."""
    with StoreWriter(path, CONTENT) as writer:
        while writer.rows < len(CONTENT.labels):
            rows = range(writer.rows, min(writer.rows + step, len(CONTENT.labels)))
            writer.append(
                {name: values[rows.start : rows.stop] for name, values in ARRAYS.items()},
                {row: why for row, why in SKIPPED.items() if row in rows},
            )
            writer.sync()
        writer.seal(stores.RUN)


def check_rows(arrays: dict[str, np.ndarray], n: int) -> None:
    """Compare the first rows with what was written; skipped ones are zero."""
    for name, values in arrays.items():
        wanted = ARRAYS[name].copy()
        wanted[list(SKIPPED)] = 0
        np.testing.assert_array_equal(values, wanted[:n])


def check(path: Path) -> str:
    """Check what a kill left behind and say what it was."""
    partial = partial_path(path)
    if path.exists():
        store = FeatureStore(path)
        store.verify()
        check_rows({"avgpool": store.features(), "logits": store.logits}, len(store))
        assert store.skipped == SKIPPED
        assert not partial.exists()
        return "sealed"
    try:
        FeatureStore(path)
    except StoreError:
        pass
    else:
        raise AssertionError("an unfinished store was opened")
    if not partial.exists():
        return "nothing kept"
    blocks = [np.frombuffer(rows, CONTENT.row_dtype) for _, rows, _ in read_blocks(partial)]
    kept = np.concatenate([np.empty(0, CONTENT.row_dtype), *blocks])
    check_rows({name: kept[f"features/{name}"] for name in ARRAYS}, len(kept))
    sealed = partial.read_bytes().startswith(b"\x89HDF")
    with StoreWriter(path, CONTENT) as writer:
        assert writer.rows == (len(CONTENT.labels) if sealed else len(kept))
        assert writer.skipped == {row: why for row, why in SKIPPED.items() if row < writer.rows}
    if sealed:
        return "sealed without its name"
    if len(kept) == len(CONTENT.labels):
        return "sealing"
    return "rows kept" if len(kept) else "nothing kept"


def kill_and_continue(path: Path, child: Callable[[], Any], seconds: float | None) -> str:
    """Run a child that is killed after some seconds, or kills itself, and repair what it left."""
    process = os.fork()
    if process == 0:
        child()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    met = check(path)
    if met != "sealed":
        write(path)
    assert check(path) == "sealed"
    assert path.read_bytes() == path.with_name("whole.h5").read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, "whole.h5"]
    path.unlink()
    return met


def at_line(target: int, work: Callable[[], Any]) -> int:
    """Do some work, killed at the ``target``-th line of the store's modules; return the lines."""
    lines = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(STORE_MODULES):
            return None
        if event == "line":
            lines += 1
            if lines == target:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)
    return lines


def main(folder: Path, mode: str, number: int, seed: int = 0) -> None:
    """Kill at moments spread over the time, or at lines spread over the work, of one run."""
    start = time.perf_counter()
    write(folder / "whole.h5")
    whole = time.perf_counter() - start
    path = folder / "a.h5"
    met: Counter[str] = Counter()
    if mode == "random":
        rng = np.random.default_rng(seed)
        for kill in range(number):
            # Half of the kills fall into the last third, where sealing happens.
            seconds = rng.uniform(0 if kill % 2 else 0.65 * whole, whole)
            met[kill_and_continue(path, lambda: write(path), seconds)] += 1
    else:
        lines = at_line(0, lambda: write(path, step=100))
        path.unlink()
        for line in range(1, lines + 1, number):
            child = lambda line=line: at_line(line, lambda: write(path, step=100))  # noqa: E731
            met[kill_and_continue(path, child, None)] += 1
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
