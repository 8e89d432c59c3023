"""What a Ray cluster costs, and how it scales, on the cores of this machine.

A Ray cluster of one node, these two cores, embeds 2000 images of STL-10 with ResNet-18: beside
the local engine on the same cores (the overhead), and two actors beside two independent processes
with a thread each (the scaling). All rates are those of warm processes; on the cluster they
include opening, sealing and handing out shards. Runs alternate; the medians of the ratios in each
round count.

    python benchmarks/cluster.py --out benchmarks/results/cluster.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from featpipe.provenance import environment, package_version  # noqa: E402
from featpipe.store import FeatureStore  # noqa: E402
from tests.cluster.nodes import cluster  # noqa: E402

IMAGES = 2000


def extract(shared: Path, workspace: Path, *options: str, threads: int = 2) -> subprocess.Popen:
    """Start an extraction as a process of its own."""
    command = [sys.executable, "-m", "featpipe", "extract", "--dataset", "stl10", "--quiet"]
    command += ["--split", "train", "--data", str(shared / "data"), "--limit", str(IMAGES)]
    command += ["--model", "resnet18", "--workspace", str(workspace), *options]
    command += ["--weights", str(shared / "weights" / "resnet18-imagenet-pqf.safetensors")]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def local_rate(process: subprocess.Popen, workspace: Path) -> float:
    """Return the images per second of an extraction, once the network is loaded."""
    assert process.wait() == 0
    return IMAGES / sum(store_of(workspace).run["shares"].values())


def warm_rate(process: subprocess.Popen, workspace: Path, actors: int) -> float:
    """Return the images per second of all actors together, after the first shard of each.

    Up to that the network is loaded. It takes from the mean time at which the first shards were
    sealed to the mean time at which the last ones were.
    """
    assert process.wait() == 0
    shards = [FeatureStore(path) for path in store_of(workspace).shards]
    shards.sort(key=lambda shard: shard.path.stat().st_mtime)
    sealed = [shard.path.stat().st_mtime for shard in shards]
    seconds = statistics.mean(sealed[-actors:]) - statistics.mean(sealed[:actors])
    return sum(len(shard) for shard in shards[actors:]) / seconds


def store_of(workspace: Path) -> FeatureStore:
    """Return the store in a workspace."""
    (path,) = (workspace / "data" / "features").glob("*/*/train-*.h5")
    return FeatureStore(path)


def measure(shared: Path, rounds: int) -> dict[str, Any]:
    """Measure by turns."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(round(value, 2))
        print(name, found[name], flush=True)

    with tempfile.TemporaryDirectory() as temporary, cluster(0, head_cores=2) as nodes:
        there = ["--engine", "ray", "--address", nodes.address]
        for number in range(rounds):
            folder = Path(temporary) / str(number)
            work = folder / "local"
            add("local, 2 threads", local_rate(extract(shared, work), work))
            for actors in (1, 2):
                work = folder / f"ray-{actors}"
                process = extract(shared, work, *there, "--actors", str(actors))
                add(f"cluster, {actors} actors", warm_rate(process, work, actors))
            works = [folder / f"alone-{one}" for one in range(2)]
            processes = [extract(shared, work, threads=1) for work in works]
            pairs = zip(processes, works, strict=True)
            add("2 processes, 1 thread each", sum(local_rate(p, w) for p, w in pairs))
    return {"images": IMAGES, "images_per_s": found, **ratios(found)}


def ratios(found: dict[str, list[float]]) -> dict[str, float]:
    """Return medians of the ratios in each round: this machine is slower at some times."""
    two = found["cluster, 2 actors"]

    def of(name: str) -> float:
        pairs = zip(two, found[name], strict=True)
        return round(statistics.median(ours / other for ours, other in pairs), 3)

    return {
        "of_local": of("local, 2 threads"),
        "of_two_processes": of("2 processes, 1 thread each"),
        "two_actors_of_one": of("cluster, 1 actors"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print or write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    found = measure(given.shared.resolve(), given.rounds)
    found = {"environment": environment(), "ray": package_version("ray"), **found}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
