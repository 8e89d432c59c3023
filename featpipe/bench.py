"""How fast this machine is: decoding, each runtime with each precision, the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featpipe.backbones import PRECISIONS, RUNTIMES, architecture_of
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.runtime import Calibration, Execution, choose, choose_device
from featpipe.datasets.images import read_image
from featpipe.errors import FeatpipeError
from featpipe.progress import SILENT, Progress

_BATCHES = (1, 8, 32)
_WRITTEN_BYTES = 1 << 26


def measure(
    model: str, device: str, folder: Path, progress: Progress = SILENT, *, seconds: float = 2.0
) -> tuple[list[dict[str, Any]], str]:
    """Measure how fast images are decoded and embedded, and how fast ``folder`` is written to.

    The weights are random, and so are the images, except for one JPEG of 500 x 375 pixels. Each
    measurement takes some ``seconds``, after a call that is not counted.

    Returns rows (what was measured, with its ``rate`` and ``unit``, or why it could not be), and
    which runtime ``--runtime auto`` takes here and why.
    """
    where, architecture = choose_device(device), architecture_of(model)
    prepared, side = architecture.file_preprocessing, architecture.file_preprocessing.crop
    rows: list[dict[str, Any]] = []

    def row(what: str, batch: int | None, rate: float | None, unit: str = "images/s") -> None:
        rows.append({"what": what, "batch": batch, "rate": rate and round(rate, 1), "unit": unit})

    def calls_per_s(call: Callable[[], Any], threads: int) -> float:
        """Return the calls per second that several threads make together."""
        call()
        with ThreadPoolExecutor(threads) as pool:
            started, calls = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                calls += len(list(pool.map(lambda _: call(), range(2 * threads))))
            return calls / (time.perf_counter() - started)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        photo, scratch = Path(temporary) / "photo.jpg", Path(temporary) / "scratch"
        coarse = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(photo, quality=90)
        decode = calls_per_s(lambda: prepared.prepare(read_image(photo)), torch.get_num_threads())
        row("decode and resize", None, decode)
        started = time.perf_counter()
        with scratch.open("wb") as stream:
            stream.write(os.urandom(_WRITTEN_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        row("write and sync", None, _WRITTEN_BYTES / 1e6 / (time.perf_counter() - started), "MB/s")
        suited = [kind for kind in RUNTIMES if where.type in kind.suits]
        kinds = [(p, kind) for p in PRECISIONS for kind in suited if p in kind.precisions]
        images = torch.randint(0, 256, (max(_BATCHES), 3, side, side), dtype=torch.uint8)
        seen = Calibration(lambda _: images, "noise")
        with progress.task("measuring", len(kinds)) as task:
            for precision, kind in kinds:
                name = f"{kind.name} {precision}"
                how = Execution(kind.name, precision, seen, cache=Path(temporary))
                about = architecture.name, architecture.untrained(), prepared, where, how
                try:
                    frozen = FrozenNetwork(*about, architecture.layers)
                    frozen.default_layer = architecture.default_layer
                    for n in _BATCHES:
                        rate = calls_per_s(partial(frozen.embed, images[:n]), frozen.parallel)
                        row(name, n, n * rate)
                except FeatpipeError as error:
                    row(name, None, None, error.what)
                task.advance()
    runtime, why = choose("float32", where, side)
    return rows, f"--runtime auto takes {runtime} for {model} on {where}: {why}"
