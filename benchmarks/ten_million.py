"""Ten million rows on one machine: planned, written in shards, resumed, read by a probe.

Features are made when they are read, 2048 in float16, and go through the plan, the writer, the
seals and the manifest of an extraction in shards (what embedding takes is measured in
``extraction_memory.py``). It is killed (SIGKILL) in its fourth shard and started again; shards
that were sealed must stay as they are. Then ``featpipe svm`` trains on all rows and tests on
10,000 others. Each command has a process of its own, whose peak memory counts. It takes 42 GB of
disk.

    python benchmarks/ten_million.py --out benchmarks/results/ten-million.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.datasets.selection import Subset
from featpipe.datasets.source import Identity, ImageSource, row_ids
from featpipe.extraction.engine import dataset_identity
from featpipe.extraction.shards import Listen, Shard, Sharding, extract_shards
from featpipe.progress import Event, Progress
from featpipe.provenance import environment, now
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.workspace import Workspace

FEATURES, TEST, KILLED_AFTER, BLOCK = 2048, 10_000, 3, 4096
CLASSES = tuple(f"class {n}" for n in range(10))
CENTRES = np.random.default_rng(0).standard_normal((10, FEATURES), np.float32) / 8


class Made(ImageSource):
    """Rows whose features are made when they are asked for."""

    def read(self, row: int) -> np.ndarray:
        """There are no images."""
        raise NotImplementedError

    def features(self, rows: range) -> np.ndarray:
        """Return features that depend on the rows alone: a centre for each class, and noise."""
        rng = np.random.default_rng([len(self.split), rows.start])
        return rng.standard_normal((len(rows), FEATURES), np.float32) + CENTRES[self.labels[rows]]


def opened(rows: int, split: str) -> Made:
    """Return the rows of a split."""
    n = rows if split == "train" else TEST
    labels = np.random.default_rng(n).integers(0, len(CLASSES), n)
    identity = Identity(f"made-{rows}", split, CLASSES, row_ids(split, n), labels)
    return Made(identity, [rows, split], "made")


def content_of(source: ImageSource) -> StoreContent:
    """Return what the store of some rows holds."""
    return StoreContent(
        ids=source.ids,
        labels=source.labels,
        classes=source.classes,
        shapes={"avgpool": (FEATURES,)},
        dtype="float16",
        manifest={
            "extraction": 2,
            "dataset": dataset_identity(source),
            "backbone": {"model": "none"},
            "layers": ["avgpool"],
            "dtype": "float16",
        },
    )


def write(rows: int, folder: Path) -> None:
    """Write the stores of both splits, or what is missing of them."""
    sources = {split: opened(rows, split) for split in ("train", "test")}
    stores = Workspace(folder).features / f"made-{rows}" / "none"

    def make(shards: Sequence[Shard], listen: Listen) -> dict[str, Any]:
        for shard in shards:
            source = sources[shard.split]
            with StoreWriter(shard.path, content_of(Subset(source, shard.rows))) as writer:
                while writer.rows < len(shard.rows):
                    block = shard.rows[writer.rows : writer.rows + BLOCK]
                    writer.append({"avgpool": source.features(block)})
                    listen(shard.label, Event("progress", done=writer.rows))
                seconds = {"seconds": writer.seconds, "images_per_s": 0.0, "shares": {"write": 0.0}}
                writer.seal({"created": now(), **seconds})
        return {}

    wanted = []
    for split, source in sources.items():
        content = content_of(source)
        path = stores / f"{split}-{content.fingerprint[:12]}.h5"
        if not path.exists():
            wanted.append((path, content, source))
        else:
            print(f"{split}: {len(FeatureStore(path))} rows are there")
    progress = Progress(lambda event: print(event.message, event.done, flush=True), 60.0)
    extract_shards(wanted, Sharding(), make, record={}, label="rows", progress=progress)


def measured(command: list[str], folder: Path, kill_after: int | None = None) -> dict[str, Any]:
    """Run a command in a process of its own, perhaps killed when so many shards are there."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=folder)
    if kill_after is not None:
        while len(sealed(folder)) < kill_after and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == (0 if kill_after is None else signal.SIGKILL), command
    seconds = round(time.perf_counter() - began, 1)
    found = {"seconds": seconds, "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2)}
    print(found, flush=True)
    return found


def sealed(folder: Path) -> dict[str, int]:
    """Return the shards of the training rows that are sealed, with the time of each."""
    shards = folder.rglob("train-*.shards/*.h5")
    return {path.name: path.stat().st_mtime_ns for path in shards}


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Plan, write, kill, resume, look and train."""
    content = content_of(opened(rows, "train"))
    found: dict[str, Any] = {
        "rows": rows,
        "features": FEATURES,
        "dtype": "float16",
        "plan": {
            "shards": len(Sharding().ranges(rows)),
            "gb": round(content.sealed_bytes / 1e9, 1),
        },
    }
    del content
    command = [__file__, "--rows", str(rows), "--write", str(folder)]
    found["killed"] = measured(command, folder, KILLED_AFTER)
    before = sealed(folder)
    found["killed"]["shards_sealed"] = len(before)
    found["resumed"] = measured(command, folder)
    after = sealed(folder)
    assert before.items() <= after.items(), "a sealed shard was made again"
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found["store"] = {
        "shards": len(after),
        "gb": round(sum(sizes.values()) / 1e9, 2),
        "manifest_mb": round(
            max(n for p, n in sizes.items() if p.parent.suffix != ".shards") / 1e6
        ),
        "files": len(sizes),
    }
    found["up_to_date"] = measured(command, folder)
    svm = ["-m", "featpipe", "svm", "--workspace", ".", "--solver", "batched", "--c", "1e-6"]
    found["svm"] = measured(svm, folder)
    (path,) = (folder / "data" / "results").glob("*.json")
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    found["svm"]["accuracy"] = summary["accuracy"]["value"]
    return found


def main() -> None:
    """Measure, and print or write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="with room for it; default: a temporary one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.rows, given.write)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        found = {"environment": environment(), **measure(given.rows, Path(temporary))}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
