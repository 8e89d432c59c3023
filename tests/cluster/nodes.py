"""A real Ray cluster on this machine's loopback: several ``ray start``, each a process group."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
START = "from ray.scripts.scripts import main; main()"
DEADLINE = 120.0


class Cluster:
    """Nodes with one core each; the first one is the head, which by default has none to give."""

    def __init__(self, folder: Path, environment: dict[str, str], head_cores: int = 0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._folder, self._environment = folder, environment
        port = self.address.partition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
        head += ["--node-ip-address=127.0.0.1"]
        self.nodes = [self._start("head", f"--num-cpus={head_cores}", *head)]

    def add(self, cores: int = 1) -> int:
        """Start a node; return its number."""
        name = f"node{len(self.nodes)}"
        self.nodes.append(self._start(name, f"--address={self.address}", f"--num-cpus={cores}"))
        return len(self.nodes) - 1

    def kill(self, number: int) -> None:
        """Kill a node, with all its processes, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.nodes[number].pid, signal.SIGKILL)
        self.nodes[number].wait()

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", START, "start", "--block", "--disable-usage-stats"]
        command += ["--object-store-memory=200000000", *options]
        path = self._folder / f"{name}.log"
        with path.open("wb") as log:
            node = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,  # so that a node can be killed as a whole
            )
        # One after the other: nodes that start at once on one machine take each other's ports.
        wait(lambda: b"Ray runtime started" in path.read_bytes(), name)
        return node


def wait(condition: object, what: str) -> None:
    """Wait until something holds, however long that takes, within reason."""
    until = time.monotonic() + DEADLINE
    while True:
        with suppress(OSError):
            if condition():  # type: ignore[operator]
                return
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: nothing after {DEADLINE:.0f} s")
        time.sleep(0.1)


@contextmanager
def cluster(nodes: int = 2, head_cores: int = 0, **environment: str) -> Iterator[Cluster]:
    """Yield a cluster with some nodes besides its head; afterwards nothing of it is left."""
    # Sockets have short names, so pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="fp-ray-"))
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A dead node is noticed in ten seconds; one that is only slow, after ten times ten.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "10",
        **environment,
    }
    made = Cluster(folder, variables, head_cores)
    try:
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        for number in reversed(range(len(made.nodes))):
            made.kill(number)
        shutil.rmtree(folder, ignore_errors=True)
