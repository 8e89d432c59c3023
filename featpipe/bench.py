"""What this machine does: decoding, each runtime with each precision, the disk."""

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

    The weights are random, and so are the images, but for one JPEG of 500 x 375 pixels. Each
    measurement takes some ``seconds``, after a call that is not counted.

    Returns
    -------
    rows : list of dict
        What was measured, its ``rate`` and ``unit``; or why it could not be.
    taken : str
        What ``--runtime auto`` takes here, and why.
    """
    where = choose_device(device)
    architecture = architecture_of(model)
    prepared, layers = architecture.file_preprocessing, (architecture.default_layer,)
    side = prepared.crop
    rows: list[dict[str, Any]] = []

    def row(what: str, batch: int | None, rate: float | None, unit: str) -> None:
        rows.append({"what": what, "batch": batch, "rate": rate, "unit": unit})

    def measured(
        what: str, images: int, call: Callable[[int], Any], threads: int, batch: int | None
    ) -> None:
        """Add a row: how many images a second are done where some threads call at once."""
        call(0)
        with ThreadPoolExecutor(threads) as pool:
            began, calls = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                calls += len(list(pool.map(call, range(2 * threads))))
            rate = calls * images / (time.perf_counter() - began)
        row(what, batch, round(rate, 1), "images/s")

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        photo, scratch = Path(temporary) / "photo.jpg", Path(temporary) / "scratch"
        coarse = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(photo, quality=90)
        cores = torch.get_num_threads()
        measured("decode and resize", 1, lambda _: prepared.prepare(read_image(photo)), cores, None)
        began = time.perf_counter()
        with scratch.open("wb") as stream:
            stream.write(os.urandom(_WRITTEN_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        rate = _WRITTEN_BYTES / 1e6 / (time.perf_counter() - began)
        row("write and sync", None, round(rate, 1), "MB/s")
        kinds = [(p, kind) for p in PRECISIONS for kind in RUNTIMES if p in kind.precisions]
        images = torch.randint(0, 256, (max(_BATCHES), 3, side, side), dtype=torch.uint8)
        seen = Calibration(lambda _: images, "noise")
        with progress.task("measuring", len(kinds)) as task:
            for precision, kind in kinds:
                name = f"{kind.name} {precision}"
                how = Execution(kind.name, precision, seen, cache=Path(temporary))
                try:
                    frozen = FrozenNetwork(
                        *(architecture.name, architecture.untrained(), prepared, where, how),
                        architecture.layers,
                    )
                    for n in _BATCHES:
                        embed = partial(_embed, frozen, images[:n], layers)
                        measured(name, n, embed, frozen.parallel, n)
                except FeatpipeError as error:
                    row(name, None, None, error.what)
                task.advance()
    runtime, why = choose("float32", where, side)
    return rows, f"--runtime auto takes {runtime} for {model} on {where}: {why}"


def _embed(frozen: FrozenNetwork, images: torch.Tensor, layers: tuple[str, ...], _: int) -> None:
    frozen.embed(images, layers)
