"""Embedding images into stores: read (threads), compute (any embedder), write; each is timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import SourceRequest, splits_of
from featpipe.datasets.selection import Subset, class_balanced_rows
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError, ImageError, StoreError
from featpipe.extraction.batches import (
    SKIP_HINT,
    Batch,
    ExtractOptions,
    Laps,
    read_batches,
    work_on_images,
)
from featpipe.extraction.shards import Listen, Shard, Sharding, extract_shards
from featpipe.extraction.step import EXTRACTION_VERSION
from featpipe.fingerprint import FileHashes, of_mapping
from featpipe.progress import SILENT, Progress
from featpipe.provenance import environment, now
from featpipe.steps import Context, Status
from featpipe.store import LOGITS, FeatureStore, StoreContent, StoreWriter, scan_stores
from featpipe.store.layout import JOURNAL, LOOKS
from featpipe.store.writer import remove_leftovers

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.backbones.base import FrozenNetwork
    from featpipe.backbones.preprocessing import Preprocessing
    from featpipe.backbones.runtime import Calibration

_CALIBRATION_IMAGES = 256
_COMPARED_IMAGES = 64


@dataclass
class Extraction:
    """The sealed stores of some splits: existing ones are found, missing ones are made.

    Extraction and fine-tuning get their stores here. The embedder is opened only when a store
    has to be made or does not match ``request``: what is asked for, as far as it is known
    without torch.
    """

    images: SourceRequest
    sources: Sequence[ImageSource]  # the opened splits of ``images``
    folder: Path  # of the stores of this dataset and embedder
    open_embedder: Callable[[], FrozenNetwork]
    options: ExtractOptions
    context: Context
    request: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # added to the stores' run records
    sharding: Sharding | None = None  # None: the stores themselves hold the rows
    fresh: int = field(default=0, init=False)  # number of stores that had to be made

    @cached_property
    def embedder(self) -> FrozenNetwork:
        """The opened embedder."""
        return self.open_embedder()

    def content(self, source: ImageSource) -> StoreContent:
        """Return the content of the store of a split; nothing is embedded for it."""
        return content_of(source, self.embedder, self.options)

    def contents(self) -> list[StoreContent]:
        """Return the content of the store of each split."""
        return [self.content(source) for source in self.sources]

    def stores(self) -> list[FeatureStore]:
        """Return the sealed store of each split; missing and unfinished ones are completed."""
        stores: dict[str, FeatureStore] = {}
        missing: list[tuple[Path, StoreContent, ImageSource]] = []
        for source in self.sources:
            store = self.find(source)
            if store is not None:
                remove_leftovers(store.path)
            else:
                content = self.content(source)
                path = self.folder / f"{slug(source.split)}-{content.fingerprint[:12]}.h5"
                if path.exists():
                    store = FeatureStore(path, FileHashes(self.context.workspace.hashes))
                if store is None or store.lost_shards:
                    missing.append((path, content, source))
                    continue
            _refuse_skipped(self.options, store.ids, store.skipped)
            stores[source.split] = store
        for store in self.make_stores(missing) if missing else ():
            _refuse_skipped(self.options, store.ids, store.skipped)
            stores[store.manifest["dataset"]["split"]] = store
            self.fresh += 1
        return [stores[source.split] for source in self.sources]

    def make_stores(
        self, missing: Iterable[tuple[Path, StoreContent, ImageSource]]
    ) -> Iterable[FeatureStore]:
        """Embed splits into their stores, given path, content and images of each."""
        if self.sharding is None:
            return (self._embed(images, path, self.context.progress) for path, _, images in missing)
        label = f"{short_name(self.images.dataset)} · {self.folder.name}"
        how = (self.make_shards, self.run_record, label, self.context.progress)
        return extract_shards(missing, self.sharding, *how)

    def make_shards(self, shards: Iterable[Shard], listen: Listen) -> dict[str, Any]:
        """Embed the rows of some shards, and seal each."""
        sources = {source.split: source for source in self.sources}
        for shard in shards:
            if not shard.path.exists():  # else it was sealed, but not yet delivered
                progress = Progress(partial(listen, shard.label), seconds_between=1.0)
                self._embed(Subset(sources[shard.split], shard.rows), shard.path, progress)
            shard.deliver()
        return {}

    def _embed(self, source: ImageSource, path: Path, progress: Progress) -> FeatureStore:
        how = (self.options, self.run_record, progress)
        return extract_source(source, self.embedder, path, *how)

    @property
    def run_record(self) -> dict[str, Any]:
        """What requested the stores, for their run records."""
        record: dict[str, Any] = {"request": self.request} if self.request else {}
        record |= {"command": self.context.command, "source": self.images.as_dict()}
        return record | dict(self.record)

    def find(self, source: ImageSource) -> FeatureStore | None:
        """Return the store that the same request made of the same images; torch is not needed."""
        identity = dataset_identity(source)
        for _, store in self._opened(source) if self.request is not None else ():
            if isinstance(store, StoreError):  # its options are unknown; stores() finds it by name
                continue
            same = store.manifest["dataset"] == identity and not store.lost_shards
            if same and store.run.get("request") == self.request:
                return store
        return None

    def _opened(self, source: ImageSource) -> Iterator[tuple[Path, FeatureStore | StoreError]]:
        """Yield the stores of a split, or why one of them cannot be opened."""
        for path in sorted(self.folder.glob(f"{slug(source.split)}-*.h5")):
            try:
                yield path, FeatureStore(path, FileHashes(self.context.workspace.hashes))
            except StoreError as error:
                yield path, error

    def status(self) -> Status:
        """Return which stores exist and, from a similar one, an estimate for the missing ones."""
        datasets = [dataset_identity(source) for source in self.sources]
        key = of_mapping([{"request": self.request, "dataset": one} for one in datasets])[:8]
        found = [(source, self.find(source)) for source in self.sources]
        missing = [source for source, store in found if store is None]
        if not missing:
            paths = tuple(store.path for _, store in found if store is not None)
            return Status(True, "stores exist", key, paths)
        why = ", ".join(f"{len(source)} of {source.split}" for source in missing) + " to embed"
        opened = (one for source in missing for one in self._opened(source))
        if damaged := [f"{p.name}: {e.what}" for p, e in opened if isinstance(e, StoreError)]:
            why += f"; cannot be used: {', '.join(damaged)}"
        for source in missing:
            for path in self.folder.glob(f"{slug(source.split)}-*.h5.partial"):
                if sharding := self.sharding:
                    sealed = sharding.sealed(path.with_suffix(""))
                    n_shards = len(sharding.ranges(len(source)))
                    why += f"; {len(sealed)} of {n_shards} shards exist"
                elif not path.with_suffix(JOURNAL).exists():
                    why += "; continues an unfinished store"

        def model_and_options(request: Mapping[str, Any]) -> tuple[Any, ...]:
            return request.get("inputs", {}).get("model"), request.get("options")

        wanted = model_and_options(self.request or {})
        stores = [store for store in scan_stores(self.context.workspace.features)[0] if len(store)]
        alike = [s for s in stores if model_and_options(s.run.get("request", {})) == wanted]
        last = max(alike, key=lambda store: store.run["created"], default=None)
        if last is None or not (per_s := last.run["images_per_s"]):
            return Status(False, why, key)
        images, basis = sum(map(len, missing)), f"(at {per_s:g} images/s, as before)"
        n_bytes = images * (last.n_bytes / len(last))
        return Status(False, why, key, (), images / per_s, n_bytes, basis)


def extract_source(
    source: ImageSource,
    embedder: FrozenNetwork,
    path: Path,
    options: ExtractOptions | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> FeatureStore:
    """Embed all images of a source into a sealed store at ``path``, or continue an unfinished one.

    ``record`` is added to the store's run record, which is not part of its fingerprint. The rows
    before an unreadable image are kept.
    """
    options = options or ExtractOptions()
    _refuse_skipped(options, source.ids, source.unreadable)
    content = content_of(source, embedder, options)
    with StoreWriter(path, content) as writer:
        _refuse_skipped(options, source.ids, writer.skipped)
        if writer.note:
            progress.note(writer.note)
        layers = tuple(content.shapes)
        how = dict(embedder.prepare(layers))
        if how.get("precision", "float32") != "float32":
            how["against_float32"] = cost_of_precision(source, embedder, layers)
            cosine = how["against_float32"]["cosine"][layers[0]]
            near = f"cosine {cosine['mean']:.4f} (mean), {cosine['min']:.4f} (least)"
            progress.note(f"{how['precision']} against float32, {layers[0]}: {near}")
        if first := writer.rows:
            progress.note(f"resuming: {first} of {len(source)} images already embedded")

        def embed(batch: Batch) -> dict[str, NDArray[np.float32]]:
            return batch.embed(embedder, content.shapes)

        looks, laps, rows = _Looks(source), Laps(), range(first, len(source))
        batches = work_on_images(looks.read, rows, embedder, embed, options, laps)
        label = f"{short_name(source.name)} {source.split} · {embedder.name}"
        with closing(batches), progress.task(label, len(source), first) as task:
            for batch, arrays in batches:
                writer.append(arrays, batch.skipped, looks.of(batch))
                laps.end("write")
                for row, reason in batch.skipped.items():
                    progress.note(f"skipped {source.ids[row]}: {reason}")
                rate = f"{(writer.rows - first) / sum(laps.seconds.values()):.1f} images/s"
                task.advance(len(batch.rows), rate=rate, shares=str(laps))
        run = {
            "created": now(),
            "seconds": round(writer.seconds, 3),
            "images_per_s": round(len(source) / max(writer.seconds, 1e-9), 2),
            "shares": {part: round(spent, 3) for part, spent in laps.seconds.items()},
            "device": str(embedder.device),
            "batch_size": options.batch_size or embedder.batch_size,
            **how,
            "environment": environment(),
        }
        return writer.seal({**run, **(record or {})})


def content_of(
    source: ImageSource, embedder: FrozenNetwork, options: ExtractOptions
) -> StoreContent:
    """Return the content of the store of these images and this embedder."""
    layers = list(dict.fromkeys(options.layers or (embedder.default_layer,)))
    shapes = {layer: tuple(embedder.dim(layer)) for layer in layers}
    if (named := embedder.source_classes) is not None:
        shapes[LOGITS] = (len(named.ids),)
    return StoreContent(
        ids=source.ids,
        labels=source.labels,
        classes=source.classes,
        folds=source.folds,
        groups=source.groups,
        shapes=shapes,
        dtype=options.dtype,
        manifest={
            "extraction": EXTRACTION_VERSION,
            "dataset": dataset_identity(source),
            "backbone": embedder.describe(),
            "layers": layers,
            "dtype": options.dtype,
        },
        source_classes=None if named is None else (named.ids, named.names),
        looks=True,
    )


class _Looks:
    """Digests, sizes and thumbnails of the images that were read and are not yet written."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._of: dict[int, dict[str, Any]] = {}

    def read(self, row: int, side: int | None) -> NDArray[np.uint8]:
        image = self._source.read_scaled(row, side)
        self._of[row] = look_at(image)
        return image

    def of(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Return the arrays of ``LOOKS`` for a batch; zeros where an image was skipped."""
        n = len(batch.rows)
        arrays = {name: np.zeros((n, *shape), kind) for name, (kind, shape) in LOOKS.items()}
        for row in batch.read:
            for name, value in self._of.pop(row).items():
                arrays[name][row - batch.rows.start] = value
        return arrays


def look_at(image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return digest, size and thumbnail of an upright RGB image, by name in ``store.layout.LOOKS``.

    Images with the same pixels have the same digest, whatever their file format. The thumbnail is
    square, whatever the aspect ratio. A photo of 500 × 375 pixels takes 0.7 ms.
    """
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(pixels.data)
    height, width = LOOKS["looks/thumbnail"][1]
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    return {
        "looks/digest": np.frombuffer(digest.digest()[:16], np.uint8),
        "looks/size": pixels.shape[:2],
        "looks/thumbnail": np.asarray(small.convert("L")),
    }


def dataset_identity(source: ImageSource) -> dict[str, Any]:
    """Return the identity of the images of a split, as in manifests."""
    return {
        # Without the location of a folder: the fingerprint identifies its content.
        "name": short_name(source.name),
        "split": source.split,
        "images": len(source),
        "fingerprint": source.fingerprint,
        **({"grouped_by": source.grouped_by} if source.groups else {}),
    }


def _refuse_skipped(
    options: ExtractOptions, ids: Sequence[str], skipped: Mapping[int, str]
) -> None:
    """Raise ImageError if rows were skipped, perhaps by an earlier run, and must not be."""
    if skipped and options.on_error == "fail":
        row = min(skipped)
        what = f"{len(skipped)} of {len(ids)} images cannot be read."
        raise ImageError(what, where=ids[row], got=skipped[row], next_step=SKIP_HINT)


def calibration(
    request: SourceRequest, sources: Sequence[ImageSource], context: Context, *, download: bool
) -> Calibration:
    """Return the images that int8 is calibrated on: some of every class in the training split."""
    from featpipe.backbones.runtime import Calibration  # noqa: PLC0415 - brings torch

    options = request.options(context, download=download)
    split = splits_of(request.dataset, options)[0]
    opened = {source.split: source for source in sources}
    source = opened.get(split) or request.open(split, options)
    return Calibration(
        images=lambda preprocessing: _sample(source, preprocessing, _CALIBRATION_IMAGES),
        fingerprint=of_mapping([source.fingerprint, _CALIBRATION_IMAGES]),
    )


def _sample(source: ImageSource, preprocessing: Preprocessing, n: int) -> Tensor:
    """Return prepared images of every class; unreadable ones are left out."""
    labelled = np.count_nonzero(source.labels >= 0) or len(source)
    rows = class_balanced_rows(source.labels, min(n, int(labelled)), 0)
    how = (preprocessing, len(rows), ExtractOptions(on_error="skip"))
    chosen = Subset(source, rows)
    parts = read_batches(chosen.read_scaled, range(len(rows)), *how)
    images = next(parts).images
    parts.close()
    if images is None:
        what = f"None of {len(rows)} images can be read; a lower precision needs some."
        raise DataError(what, where=source.name)
    return images


def cost_of_precision(
    source: ImageSource, embedder: FrozenNetwork, layers: tuple[str, ...]
) -> dict[str, Any]:
    """Return the cosines between features and PyTorch's float32 features of some images."""
    began = time.perf_counter()
    images = _sample(source, embedder.preprocessing, _COMPARED_IMAGES)
    lower, reference = embedder.embed(images, layers), embedder.reference(images, layers)
    cosines: dict[str, Any] = {}
    for layer in layers:
        a, b = (one[layer].reshape(len(images), -1) for one in (lower, reference))
        both = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        each = np.einsum("ij,ij->i", a, b) / np.maximum(both, 1e-30)
        cosines[layer] = {"mean": round(float(each.mean()), 5), "min": round(float(each.min()), 5)}
    seconds = round(time.perf_counter() - began, 3)
    return {"images": len(images), "cosine": cosines, "seconds": seconds}
