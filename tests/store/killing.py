"""Kill a writer again and again; run as a script, so that only this process is ever forked.

Usage: python killing.py FOLDER KILLS SEED. Prints one JSON line: what the kills met. Exits with
a traceback as soon as a promised row is wrong or an unfinished store is taken for a sealed one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import featpipe.store.writer as writing
from featpipe.errors import StoreError
from featpipe.store import FeatureStore, StoreWriter
from featpipe.store.journal import Journal
from tests import making

CONTENT = making.content(n=200, dims=64, n_logits=7)
ARRAYS = making.features(CONTENT)
SKIPPED = {row: f"image {row} is damaged" for row in (3, 77, 199)}


def write(path: Path) -> None:
    """Write the store ten rows at a time, promising each time, and seal it."""
    writing._JOURNAL_SECONDS = 0.0
    with StoreWriter(path, CONTENT) as writer:
        while writer.rows < len(CONTENT.labels):
            rows = range(writer.rows, writer.rows + 10)
            writer.append(
                {name: values[rows.start : rows.stop] for name, values in ARRAYS.items()},
                {row: why for row, why in SKIPPED.items() if row in rows},
            )
        writer.seal(making.RUN)


def check_rows(arrays: dict[str, np.ndarray], n: int) -> None:
    """Compare the first rows with what was written; skipped ones are zero."""
    for name, values in arrays.items():
        wanted = ARRAYS[name].copy()
        wanted[list(SKIPPED)] = 0
        np.testing.assert_array_equal(values[:n], wanted[:n])


def check(path: Path) -> str:
    """Check what a kill left behind and say what it was."""
    if path.exists():
        store = FeatureStore(path)
        store.verify()
        check_rows({"avgpool": store.features(), "logits": store.logits}, len(store))
        assert store.skipped == SKIPPED
        return "sealed"
    try:
        FeatureStore(path)
    except StoreError:
        pass
    else:
        raise AssertionError("an unfinished store was opened")
    journal = Journal.read(path)
    if journal is None or not journal.rows:
        return "nothing promised"
    with StoreWriter(path, CONTENT) as writer:
        assert writer.rows >= journal.rows, (writer.rows, journal.rows)
        check_rows(
            {
                name: writer._file[f"{group}{name}"][()]
                for name, group in (("avgpool", "features/"), ("logits", ""))
            },
            writer.rows,
        )
    return "sealing" if journal.rows == len(CONTENT.labels) else "rows promised"


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill at moments spread evenly over the time that one undisturbed run takes."""
    start = time.perf_counter()
    write(folder / "whole.h5")
    whole = time.perf_counter() - start
    rng = np.random.default_rng(seed)
    met: Counter[str] = Counter()
    for number in range(kills):
        path = folder / f"{number}.h5"
        child = os.fork()
        if child == 0:
            write(path)
            os._exit(0)
        # Half of the kills fall into the last third, where sealing happens.
        time.sleep(rng.uniform(0 if number % 2 else 0.65 * whole, whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        met[check(path)] += 1
        write(path)
        assert check(path) == "sealed"
        left = sorted(
            p.name for p in folder.iterdir() if p.name.lstrip(".").startswith(f"{number}.")
        )
        assert left == [path.name], left
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
