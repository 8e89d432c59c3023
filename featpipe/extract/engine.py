"""Embed images: read (threads) → embed (any embedder) → append (store), a timer for each."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe import fingerprint
from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import SourceRequest as SourceRequest  # noqa: PLC0414 - for steps
from featpipe.datasets.dataset import splits_of
from featpipe.datasets.source import ImageSource
from featpipe.errors import ImageError, StoreError
from featpipe.extract.step import EXTRACTION_VERSION
from featpipe.progress import SILENT, Progress
from featpipe.provenance import environment, now
from featpipe.steps import Context
from featpipe.store import LOGITS, FeatureStore, StoreContent, StoreWriter, scan_stores

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.backbones.base import Embedder
    from featpipe.backbones.preprocessing import Preprocessing

_PREFETCH_BATCHES = 3


@dataclass(frozen=True)
class ExtractOptions:
    """How to embed; only layers and ``dtype`` change what is stored."""

    layers: tuple[str, ...] = ()  # empty: the embedder's default layer
    dtype: str = "float32"  # or "float16", "uint8"
    batch_size: int | None = None  # images per forward pass; None: chosen for the device
    on_error: str = "fail"  # or "skip": an image that cannot be read
    workers: int | None = None  # reading threads; None: one per core


@dataclass
class Extraction:
    """The sealed stores of some splits: found where they were made before, made where not.

    Extraction and fine-tuning get their stores here. The embedder is opened only when a store
    has to be made, or cannot be recognised by ``request``.

    Parameters
    ----------
    images : SourceRequest
    splits : sequence of str or None
        ``None``: every labelled one.
    folder : Path
        Where the stores of this dataset and embedder are kept.
    open_embedder : callable
        Returns the :class:`~featpipe.backbones.base.Embedder`.
    options : ExtractOptions
    context : Context
    request : mapping, optional
        Identity of what is asked for, as far as it is known without torch: a store with the same
        request and images is taken as it is.
    record : mapping
        Further facts for the stores' run record, which is no part of the fingerprint.
    download : bool
        Whether missing images may be fetched.

    Attributes
    ----------
    fresh : int
        How many stores :meth:`stores` had to make.
    """

    images: SourceRequest
    splits: Sequence[str] | None
    folder: Path
    open_embedder: Callable[[], Embedder]
    options: ExtractOptions
    context: Context
    request: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    download: bool = True
    fresh: int = field(default=0, init=False)

    @cached_property
    def sources(self) -> list[ImageSource]:
        """The images of each split."""
        options = self.images.options(self.context, download=self.download)
        splits = self.splits or splits_of(self.images.dataset, options)
        return [self.images.open(split, options) for split in splits]

    @cached_property
    def embedder(self) -> Embedder:
        """What embeds them."""
        return self.open_embedder()

    def identity(self, source: ImageSource) -> dict[str, Any]:
        """Return request and images: equal exactly when the store would be the same."""
        return {"request": self.request, "dataset": dataset_identity(source)}

    def contents(self) -> list[StoreContent]:
        """Return what the store of each split holds; nothing is embedded for it."""
        return [content_of(source, self.embedder, self.options) for source in self.sources]

    def stores(self) -> list[FeatureStore]:
        """Return the sealed store of each split; unfinished ones are continued.

        Raises
        ------
        ImageError
            If an image cannot be read, or was skipped before, and ``on_error`` is ``"fail"``.
        StoreError
            If a store is damaged or cannot be written.
        """
        stores = []
        for source in self.sources:
            found = self.find(source)
            store = self._make(source) if found is None else found
            if self.options.on_error == "fail":
                refuse_skipped(store.ids, store.skipped)
            stores.append(store)
        return stores

    def find(self, source: ImageSource) -> FeatureStore | None:
        """Return the store that the same request made from the same images; torch is not needed."""
        if self.request is None:
            return None
        for path in sorted(self.folder.glob(f"{slug(source.split)}-*.h5")):
            try:
                store = FeatureStore(path)
            except StoreError:
                continue  # perhaps of other options; if it is ours, its name says so later
            same_images = store.manifest["dataset"] == dataset_identity(source)
            if same_images and store.run.get("request") == self.request:
                return store
        return None

    def _make(self, source: ImageSource) -> FeatureStore:
        made_from = content_of(source, self.embedder, self.options)
        path = self.folder / f"{slug(source.split)}-{made_from.fingerprint[:12]}.h5"
        if path.exists():
            return FeatureStore(path)
        record = {
            **({} if self.request is None else {"request": self.request}),
            "command": self.context.command,
            "source": self.images.as_dict(),
            **self.record,
        }
        store = extract_source(
            source, self.embedder, path, self.options, record, self.context.progress
        )
        self.fresh += 1
        return store

    def unfinished(self, sources: Sequence[ImageSource]) -> bool:
        """Whether there is an unfinished store of one of these splits."""
        names = [f"{slug(source.split)}-*.h5.partial" for source in sources]
        return any(found for name in names for found in self.folder.glob(name))

    def earlier_speed(self) -> tuple[float, float] | None:
        """Return images per second and bytes per image of the last extraction like this one."""

        def kind(request: Mapping[str, Any]) -> tuple[Any, ...]:
            options = {key: v for key, v in request.get("options", {}).items() if key != "fit"}
            return request.get("inputs", {}).get("model"), options

        stores, _ = scan_stores(self.context.workspace.features)
        wanted = kind(self.request or {})
        alike = [s for s in stores if len(s) and kind(s.run.get("request", {})) == wanted]
        if not alike:
            return None
        last = max(alike, key=lambda store: store.run["created"])
        return last.run["images_per_s"], last.n_bytes / len(last)


def extract_source(
    source: ImageSource,
    embedder: Embedder,
    path: Path,
    options: ExtractOptions | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> FeatureStore:
    """Embed all images of a source into a sealed store at ``path``, or continue an unfinished one.

    ``record`` holds further facts for the store's run record, which is not part of its fingerprint.

    Raises
    ------
    ImageError
        If an image cannot be read and ``on_error`` is ``"fail"``; the rows so far are kept.
    StoreError
        If the store cannot be written.
    """
    options = options or ExtractOptions()
    with StoreWriter(path, content_of(source, embedder, options)) as writer:
        if options.on_error == "fail":
            refuse_skipped(source.ids, writer.skipped)
        if writer.note:
            progress.note(writer.note)
        first = writer.rows
        label = f"{source.name} {source.split} · {embedder.name}"
        batches = read_batches(source, embedder.preprocessing, options, embedder.batch_size, first)
        watch = Stopwatch()
        with closing(batches), progress.task(label, len(source), first) as task:
            for batch in batches:
                watch.lap("read")
                # Rows without an image stay zero and are marked as skipped.
                arrays = {
                    name: np.zeros((len(batch), *shape), np.float32)
                    for name, shape in writer.content.shapes.items()
                }
                if batch.images is not None:
                    places = [row - batch.rows.start for row in batch.read]
                    for name, values in embedder.embed(batch.images, tuple(arrays)).items():
                        arrays[name][places] = values
                watch.lap("compute")
                writer.append(arrays, batch.skipped)
                watch.lap("write")
                for row, reason in batch.skipped.items():
                    progress.note(f"skipped {source.ids[row]}: {reason}")
                total = sum(watch.seconds.values())
                shares = [f"{part} {spent / total:.0%}" for part, spent in watch.seconds.items()]
                rate = f"{(writer.rows - first) / total:.1f} images/s"
                task.advance(len(batch), rate=rate, shares=" · ".join(shares))
        run = {
            "created": now(),
            "seconds": round(writer.seconds, 3),
            "images_per_s": round(len(source) / max(writer.seconds, 1e-9), 2),
            "shares": {part: round(spent, 3) for part, spent in watch.seconds.items()},
            "device": str(embedder.device),
            "batch_size": options.batch_size or embedder.batch_size,
            "environment": environment(),
        }
        return writer.seal({**run, **(record or {})})


class Stopwatch:
    """Seconds that the main loop spent waiting for images, in the network, and writing."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def content_of(source: ImageSource, embedder: Embedder, options: ExtractOptions) -> StoreContent:
    """Return what the store of these images and this embedder will hold."""
    layers = dict.fromkeys(options.layers or (embedder.default_layer,))  # each once, in order
    shapes = {layer: tuple(embedder.dim(layer)) for layer in layers}
    named = embedder.source_classes
    if named is not None:
        shapes[LOGITS] = (len(named.ids),)
    manifest = {
        "extraction": EXTRACTION_VERSION,
        "dataset": dataset_identity(source),
        "backbone": embedder.describe(),
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
        # Where a folder is does not change the numbers; what is in it has the fingerprint.
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


class Images(Protocol):
    """What batches are read from: a dataset's split, or some files."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return one image (height, width, 3); may raise ImageError."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows: those that could be read, prepared, and why the others could not."""

    rows: range
    read: list[int]
    images: Tensor | None  # (len(read), 3, S, S), uint8; None where no row could be read
    skipped: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)


def read_batches(
    images: Images,
    preprocessing: Preprocessing,
    options: ExtractOptions,
    batch_size: int,
    first: int = 0,
) -> Generator[Batch]:
    """Yield batches of rows from ``first`` on; threads decode and resize the next ones meanwhile.

    ``batch_size`` is used where the options leave it open.
    """
    import torch  # noqa: PLC0415 - "up to date" must be said without waiting for torch

    def prepare(row: int) -> Tensor:
        return preprocessing.prepare(images.read(row))

    size = options.batch_size or batch_size
    starts = iter(range(first, len(images), size))
    waiting: deque[tuple[range, list[Future[Tensor]]]] = deque()
    pool = ThreadPoolExecutor(options.workers or os.cpu_count() or 1)
    try:
        while True:
            for start in islice(starts, _PREFETCH_BATCHES - len(waiting)):
                rows = range(start, min(start + size, len(images)))
                waiting.append((rows, [pool.submit(prepare, row) for row in rows]))
            if not waiting:
                return
            rows, futures = waiting.popleft()
            prepared, skipped = {}, {}
            for row, future in zip(rows, futures, strict=True):
                try:
                    prepared[row] = future.result()
                except ImageError as error:
                    skipped[row] = _reason(error, options)
            stacked = torch.stack(list(prepared.values())) if prepared else None
            yield Batch(rows, list(prepared), stacked, skipped)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _reason(error: ImageError, options: ExtractOptions) -> str:
    """Return why an image is skipped, without its path: the store holds the id."""
    if options.on_error == "fail":
        error.details.setdefault(
            "next", "repair or remove it, or add --on-error skip; the run then continues"
        )
        raise error
    got = error.details.get("got")
    return " ".join(f"{error.what} ({got})".split()) if got else error.what
