"""Embed images: read (threads) → embed (any embedder) → append (store), a timer for each."""

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
from featpipe.datasets.dataset import SourceRequest as SourceRequest  # noqa: PLC0414 - for steps
from featpipe.datasets.selection import Subset
from featpipe.datasets.source import ImageSource
from featpipe.errors import ImageError, StoreError
from featpipe.extraction.batches import SKIP_HINT, Batch, ExtractOptions, work_on_images
from featpipe.extraction.precision import cost_of_precision
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
    from featpipe.backbones.base import FrozenNetwork


@dataclass
class Extraction:
    """The sealed stores of some splits: found where they were made before, made where not.

    Extraction and fine-tuning get their stores here. The embedder is opened only when a store
    has to be made, or cannot be recognised by ``request``: the identity of what is asked for, as
    far as it is known without torch.
    """

    images: SourceRequest
    sources: Sequence[ImageSource]  # of each split, as the request opened them
    folder: Path  # of the stores of this dataset and embedder
    open_embedder: Callable[[], FrozenNetwork]
    options: ExtractOptions
    context: Context
    request: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # for the stores' run record
    sharding: Sharding | None = None  # None: rows are in the stores themselves
    fresh: int = field(default=0, init=False)  # stores that had to be made

    @cached_property
    def embedder(self) -> FrozenNetwork:
        """What embeds them."""
        return self.open_embedder()

    def content(self, source: ImageSource) -> StoreContent:
        """Return what the store of a split holds; nothing is embedded for it."""
        return content_of(source, self.embedder, self.options)

    def contents(self) -> list[StoreContent]:
        """Return what the store of each split holds."""
        return [self.content(source) for source in self.sources]

    def stores(self) -> list[FeatureStore]:
        """Return the sealed store of each split; unfinished ones are continued."""
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
        for store in self._made(missing) if missing else ():
            _refuse_skipped(self.options, store.ids, store.skipped)
            stores[store.manifest["dataset"]["split"]] = store
            self.fresh += 1
        return [stores[source.split] for source in self.sources]

    def _made(
        self, missing: Iterable[tuple[Path, StoreContent, ImageSource]]
    ) -> Iterable[FeatureStore]:
        """Embed splits into stores, given path and content of each, or what these lack."""
        record, progress = self.run_record, self.context.progress
        if self.sharding is None:
            how = (self.options, record, progress)
            return (extract_source(images, self.embedder, at, *how) for at, _, images in missing)
        label = f"{short_name(self.images.dataset)} · {self.folder.name}"
        return extract_shards(
            missing, self.sharding, self.make_shards, record=record, label=label, progress=progress
        )

    def make_shards(self, shards: Iterable[Shard], listen: Listen) -> dict[str, Any]:
        """Embed the rows of some shards, and seal each."""
        sources = {source.split: source for source in self.sources}
        for shard in shards:
            progress = Progress(partial(listen, shard.label), seconds_between=1.0)
            if not shard.path.exists():  # else it was not put where it belongs
                how = (self.embedder, shard.path, self.options, self.run_record, progress)
                extract_source(Subset(sources[shard.split], shard.rows), *how)
            shard.deliver()
        return {}

    @property
    def run_record(self) -> dict[str, Any]:
        """What asked for the stores, for their run record."""
        record: dict[str, Any] = {"request": self.request} if self.request else {}
        record |= {"command": self.context.command, "source": self.images.as_dict()}
        return record | dict(self.record)

    def find(self, source: ImageSource) -> FeatureStore | None:
        """Return the store that the same request made from the same images; torch is not needed."""
        identity = dataset_identity(source)
        for _, store in self._opened(source) if self.request is not None else ():
            if isinstance(store, StoreError):  # perhaps of other options; if ours, its name tells
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
        """Return which stores exist and, if a similar one was made, what the others will take."""
        datasets = [dataset_identity(source) for source in self.sources]
        key = of_mapping([{"request": self.request, "dataset": one} for one in datasets])[:8]
        found = [(source, self.find(source)) for source in self.sources]
        missing = [source for source, store in found if store is None]
        if not missing:
            paths = tuple(store.path for _, store in found if store is not None)
            return Status(True, "stores are there", key, paths)
        why = ", ".join(f"{len(source)} of {source.split}" for source in missing) + " to embed"
        opened = (one for source in missing for one in self._opened(source))
        if damaged := [f"{p.name}: {e.what}" for p, e in opened if isinstance(e, StoreError)]:
            why += f"; cannot be used: {', '.join(damaged)}"
        for source in missing:
            for path in self.folder.glob(f"{slug(source.split)}-*.h5.partial"):
                if sharding := self.sharding:
                    sealed = sharding.sealed(path.with_suffix(""))
                    n_shards = len(sharding.ranges(len(source)))
                    why += f"; {len(sealed)} of {n_shards} shards are there"
                elif not path.with_suffix(JOURNAL).exists():
                    why += "; continues an unfinished store"

        def kind(request: Mapping[str, Any]) -> tuple[Any, ...]:
            return request.get("inputs", {}).get("model"), request.get("options")

        wanted = kind(self.request or {})
        stores, _ = scan_stores(self.context.workspace.features)
        alike = [s for s in stores if len(s) and kind(s.run.get("request", {})) == wanted]
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

    ``record`` adds facts to the store's run record, which is not part of its fingerprint. The rows
    before an image that cannot be read are kept.
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
        looks: dict[int, dict[str, Any]] = {}  # of the rows that were read and not yet written

        def read_and_look(row: int, side: int | None) -> NDArray[np.uint8]:
            image = source.read_scaled(row, side)
            looks[row] = look_at(image)
            return image

        seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
        last = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal last
            began, last = last, time.perf_counter()
            seconds[part] += last - began

        def embed(batch: Batch) -> dict[str, NDArray[np.float32]]:
            return batch.embed(embedder, content.shapes)

        rows = range(first, len(source))
        batches = work_on_images(read_and_look, rows, embedder, embed, options, lap)
        label = f"{short_name(source.name)} {source.split} · {embedder.name}"
        with closing(batches), progress.task(label, len(source), first) as task:
            for batch, arrays in batches:
                writer.append(arrays, batch.skipped, _stacked(looks, batch))
                lap("write")
                for row, reason in batch.skipped.items():
                    progress.note(f"skipped {source.ids[row]}: {reason}")
                total = sum(seconds.values())
                shares = [f"{part} {spent / total:.0%}" for part, spent in seconds.items()]
                rate = f"{(writer.rows - first) / total:.1f} images/s"
                task.advance(len(batch.rows), rate=rate, shares=" · ".join(shares))
        run = {
            "created": now(),
            "seconds": round(writer.seconds, 3),
            "images_per_s": round(len(source) / max(writer.seconds, 1e-9), 2),
            "shares": {part: round(spent, 3) for part, spent in seconds.items()},
            "device": str(embedder.device),
            "batch_size": options.batch_size or embedder.batch_size,
            **how,
            "environment": environment(),
        }
        return writer.seal({**run, **(record or {})})


def content_of(
    source: ImageSource, embedder: FrozenNetwork, options: ExtractOptions
) -> StoreContent:
    """Return what the store of these images and this embedder will hold."""
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


def look_at(image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what identifies an upright RGB image: a value for each of ``store.layout.LOOKS``.

    Images whose pixels agree have one digest, whatever format their files are of. The thumbnail is
    squeezed to a square. A photo of 500 × 375 pixels takes 0.7 ms.
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


def _stacked(looks: dict[int, dict[str, Any]], batch: Batch) -> dict[str, NDArray[Any]]:
    """Return what the images of a batch look like; zeros where one was skipped."""
    n = len(batch.rows)
    arrays = {name: np.zeros((n, *shape), kind) for name, (kind, shape) in LOOKS.items()}
    for place, row in enumerate(batch.rows):
        seen = looks.pop(row, {})
        for name, value in seen.items() if row not in batch.skipped else ():
            arrays[name][place] = value
    return arrays


def dataset_identity(source: ImageSource) -> dict[str, Any]:
    """Return what identifies the images of a split in manifests."""
    return {
        # Where a folder is does not change the numbers; what is in it has the fingerprint.
        "name": short_name(source.name),
        "split": source.split,
        "images": len(source),
        "fingerprint": source.fingerprint,
        **({"grouped_by": source.grouped_by} if source.groups else {}),
    }


def _refuse_skipped(
    options: ExtractOptions, ids: Sequence[str], skipped: Mapping[int, str]
) -> None:
    """Raise ImageError if rows are skipped, by an earlier run perhaps, and may not be."""
    if skipped and options.on_error == "fail":
        row = min(skipped)
        what = f"{len(skipped)} of {len(ids)} images cannot be read."
        raise ImageError(what, where=ids[row], got=skipped[row], next_step=SKIP_HINT)
