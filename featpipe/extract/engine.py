"""Embed a dataset: read (threads) → embed (backbone) → append (store), a timer for each."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe import fingerprint
from featpipe.datasets import ImageSource, short_name
from featpipe.errors import ImageError
from featpipe.progress import SILENT, Progress
from featpipe.provenance import environment, now
from featpipe.store import LOGITS, FeatureStore, StoreContent, StoreWriter

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.backbones.base import Backbone

EXTRACTION_VERSION = 1  # raised when the same options would give other numbers
_PREFETCH_BATCHES = 3


class Timings:
    """Seconds the main loop spent waiting for images, in the network, and writing."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time spent in the block to one part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return sum(self.seconds.values())

    def shares(self) -> str:
        """Return the three shares as text for the progress bar."""
        total = self.total or 1.0
        return " · ".join(f"{part} {spent / total:.0%}" for part, spent in self.seconds.items())


@dataclass(frozen=True)
class ExtractOptions:
    """How to embed, none of which changes a number but ``dtype``.

    Parameters
    ----------
    layers : tuple of str
        Layers to store; empty: the backbone's default layer.
    dtype : {"float32", "float16"}
        Precision of the stored features.
    batch_size : int or None
        Images per forward pass; ``None``: chosen for the device.
    on_error : {"fail", "skip"}
        What to do with an image that cannot be read.
    workers : int or None
        Reading threads; ``None``: one per core.
    progress : Progress
    """

    layers: tuple[str, ...] = ()
    dtype: str = "float32"
    batch_size: int | None = None
    on_error: str = "fail"
    workers: int | None = None
    progress: Progress = field(default=SILENT, repr=False)


def extract_source(
    source: ImageSource,
    backbone: Backbone,
    path: Path,
    options: ExtractOptions | None = None,
    record: Mapping[str, Any] | None = None,
) -> FeatureStore:
    """Embed all images of a source into a sealed store, or continue an unfinished one.

    Parameters
    ----------
    source : ImageSource
    backbone : Backbone
    path : Path
        The sealed store to make.
    options : ExtractOptions, optional
    record : mapping, optional
        Further facts for the store's run record, which is not part of its fingerprint.

    Returns
    -------
    store : FeatureStore

    Raises
    ------
    ImageError
        If an image cannot be read and ``on_error`` is ``"fail"``; the rows so far are kept.
    StoreError
        If the store cannot be written.
    """
    options = options or ExtractOptions()
    timings = Timings()
    with StoreWriter(path, content_of(source, backbone, options)) as writer:
        if options.on_error == "fail":
            refuse_skipped(source.ids, writer.journal.skipped)
        first = writer.rows
        label = f"{source.name} {source.split} · {backbone.name}"
        batches = _read_batches(source, backbone, first, options)
        with closing(batches), options.progress.task(label, len(source), first) as task:
            while True:
                with timings.measure("read"):
                    batch = next(batches, None)
                if batch is None:
                    break
                with timings.measure("compute"):
                    arrays = _embed(backbone, batch, writer.content)
                with timings.measure("write"):
                    writer.append(arrays, batch.skipped)
                for row, reason in batch.skipped.items():
                    options.progress.note(f"skipped {source.ids[row]}: {reason}")
                rate = (writer.rows - first) / timings.total
                task.advance(len(batch), rate=f"{rate:.1f} images/s", shares=timings.shares())
        run = {
            "created": now(),
            "seconds": round(writer.seconds, 3),
            "images_per_s": round(len(source) / max(writer.seconds, 1e-9), 2),
            "shares": {part: round(spent, 3) for part, spent in timings.seconds.items()},
            "device": str(backbone.device),
            "batch_size": options.batch_size or backbone.batch_size,
            "environment": environment(),
        }
        return writer.seal({**run, **(record or {})})


def content_of(source: ImageSource, backbone: Backbone, options: ExtractOptions) -> StoreContent:
    """Return what the store of these images and this backbone will hold."""
    layers = dict.fromkeys(options.layers or (backbone.default_layer,))  # each once, in order
    shapes = {layer: tuple(backbone.dim(layer)) for layer in layers}
    named = backbone.source_classes
    if named is not None:
        shapes[LOGITS] = (len(named.ids),)
    manifest = {
        "extraction": EXTRACTION_VERSION,
        "dataset": dataset_identity(source),
        "backbone": backbone.describe(),
        "layers": list(layers),
        "dtype": options.dtype,
    }
    return StoreContent(
        ids=source.ids,
        labels=source.labels,
        classes=source.classes,
        shapes=shapes,
        dtype=options.dtype,
        manifest=manifest,
        fingerprint=fingerprint.of_mapping(manifest),
        folds=source.folds,
        source_classes=None if named is None else (named.ids, named.names),
    )


def dataset_identity(source: ImageSource) -> dict[str, Any]:
    """Return what tells one set of images from another."""
    return {
        # Where a folder lies does not change the numbers; what is in it has the fingerprint.
        "name": short_name(source.name),
        "split": source.split,
        "images": len(source),
        "fingerprint": source.fingerprint,
    }


def refuse_skipped(ids: Sequence[str], skipped: Mapping[int, str]) -> None:
    """Raise ImageError if rows were skipped by an earlier run that was allowed to."""
    if skipped:
        row = min(skipped)
        raise ImageError(
            f"{len(skipped)} of {len(ids)} images could not be read.",
            where=ids[row],
            got=skipped[row],
            next_step="repair or remove them, or add --on-error skip",
        )


@dataclass(frozen=True)
class _Batch:
    """Consecutive rows: the images that could be read, and why the others could not."""

    rows: range
    images: dict[int, Tensor]
    skipped: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)


def _read_batches(
    source: ImageSource, backbone: Backbone, first: int, options: ExtractOptions
) -> Generator[_Batch]:
    """Yield batches in order of rows; threads decode and resize the next ones meanwhile."""

    def read(row: int) -> Tensor:
        return backbone.preprocessing.prepare(source.read(row))

    size = options.batch_size or backbone.batch_size
    starts = iter(range(first, len(source), size))
    waiting: deque[tuple[range, list[Future[Tensor]]]] = deque()
    pool = ThreadPoolExecutor(options.workers or os.cpu_count() or 1)
    try:
        while True:
            for start in islice(starts, _PREFETCH_BATCHES - len(waiting)):
                rows = range(start, min(start + size, len(source)))
                waiting.append((rows, [pool.submit(read, row) for row in rows]))
            if not waiting:
                return
            yield _collect(*waiting.popleft(), skip=options.on_error == "skip")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(rows: range, futures: list[Future[Tensor]], *, skip: bool) -> _Batch:
    batch = _Batch(rows, {}, {})
    for row, future in zip(rows, futures, strict=True):
        try:
            batch.images[row] = future.result()
        except ImageError as error:
            if not skip:
                error.details.setdefault(
                    "next", "repair or remove it, or add --on-error skip; the run then continues"
                )
                raise
            batch.skipped[row] = _reason(error)
    return batch


def _reason(error: ImageError) -> str:
    """Say why in one line, without the path: the store holds the id."""
    got = error.details.get("got")
    return " ".join(f"{error.what} ({got})".split()) if got else error.what


def _embed(backbone: Backbone, batch: _Batch, content: StoreContent) -> dict[str, NDArray[Any]]:
    """Embed what could be read; rows without an image stay zero and are marked as skipped."""
    import torch  # noqa: PLC0415 - "up to date" must be said without waiting for torch

    arrays = {
        name: np.zeros((len(batch), *shape), np.float32) for name, shape in content.shapes.items()
    }
    if batch.images:
        places = [row - batch.rows.start for row in batch.images]
        embedded = backbone.embed(torch.stack(list(batch.images.values())), tuple(content.shapes))
        for name, values in embedded.items():
            arrays[name][places] = values
    return arrays
