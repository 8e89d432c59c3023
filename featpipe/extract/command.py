"""The command `featpipe extract`: what is up to date is not computed again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe import fingerprint
from featpipe.backbones import MODELS, weights_file
from featpipe.datasets import ImageSource, SourceRequest, short_name, slug, splits_of
from featpipe.errors import StoreError
from featpipe.extract.engine import (
    EXTRACTION_VERSION,
    ExtractOptions,
    content_of,
    dataset_identity,
    extract_source,
    refuse_skipped,
)
from featpipe.provenance import package_version
from featpipe.steps.old import Context, ExtractStep, Outcome
from featpipe.store import FeatureStore
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.backbones.base import Backbone


def run_extract(step: ExtractStep, context: Context) -> Outcome:
    """Embed every split that the step names; see :class:`featpipe.steps.ExtractStep`."""
    job = _Job(step, context)
    options = job.source.options(context, download=step.download)
    splits = step.split or splits_of(step.dataset, options)
    made = [job.extract(job.source.open(split, options)) for split in splits]
    stores = [store for store, _ in made]
    return _outcome(stores, fresh=sum(fresh for _, fresh in made))


@dataclass(frozen=True)
class SplitState:
    """What is known about one split before it is embedded.

    Attributes
    ----------
    name : str
    images : int
    identity : dict
        Request and images: equal exactly when the store would be the same.
    store : FeatureStore or None
        The sealed store, where it exists.
    unfinished : bool
        Whether there is an unfinished store of this dataset, model and split.
    """

    name: str
    images: int
    identity: dict[str, Any]
    store: FeatureStore | None
    unfinished: bool


def look_ahead(step: ExtractStep, context: Context) -> list[SplitState]:
    """Say what :func:`run_extract` would find and make; nothing is downloaded.

    Raises
    ------
    FeatpipeError
        If the dataset or the weights are not there.
    """
    job = _Job(step, context)
    options = job.source.options(context, download=False)
    states = []
    for split in step.split or splits_of(step.dataset, options):
        source = job.source.open(split, options)
        identity = {"request": job.request, "dataset": dataset_identity(source)}
        unfinished = any(job.folder.glob(f"{slug(split)}-*.h5.partial"))
        store = job.find_store(source)
        states.append(SplitState(split, len(source), identity, store, unfinished))
    return states


@dataclass
class _Job:
    """One run of the command: the backbone is loaded only when some split needs it."""

    step: ExtractStep
    context: Context

    @cached_property
    def hashes(self) -> fingerprint.FileHashes:
        return fingerprint.FileHashes(self.context.workspace.hashes)

    @cached_property
    def source(self) -> SourceRequest:
        return SourceRequest.of(self.step)

    @cached_property
    def backbone(self) -> Backbone:
        from featpipe.backbones import load_backbone  # noqa: PLC0415 - brings torch

        return load_backbone(
            self.step.model,
            weights=self.step.weights,
            device=self.step.device,
            image_size=self.step.image_size,
            fit=self.step.fit,
            hashes=self.hashes,
        )

    @cached_property
    def request(self) -> dict[str, Any]:
        """What was asked for, as far as it changes the numbers; known without torch."""
        step = self.step
        weights = weights_file(step.model, step.weights)
        return {
            "extraction": EXTRACTION_VERSION,
            "model": MODELS.entry(step.model).name,
            "weights": self.hashes.one(weights)
            if weights
            else f"{step.weights} of torchvision {package_version('torchvision')}",
            "layers": list(dict.fromkeys(step.layer or ())),
            "image_size": step.image_size,
            "fit": step.fit,
            "dtype": step.dtype,
        }

    @property
    def folder(self) -> Path:
        """Where the stores of this dataset and backbone lie."""
        dataset = slug(short_name(self.step.dataset))
        return self.context.workspace.features / dataset / self.request["model"]

    def extract(self, source: ImageSource) -> tuple[FeatureStore, bool]:
        """Return the sealed store of a source, and whether it had to be made."""
        if store := self.find_store(source):
            return self._accepted(store), False
        options = ExtractOptions(
            layers=self.step.layer or (),
            dtype=self.step.dtype,
            batch_size=self.step.batch_size,
            on_error=self.step.on_error,
            workers=self.step.workers,
            progress=self.context.progress,
        )
        made_from = content_of(source, self.backbone, options)
        path = self.folder / f"{slug(source.split)}-{made_from.fingerprint[:12]}.h5"
        if path.exists():
            return self._accepted(FeatureStore(path)), False
        given = user_path(self.step.weights)
        record = {
            "request": self.request,
            "command": self.context.command,
            "source": self.source.as_dict(),
            "weights": str(given.resolve()) if given.is_file() else self.step.weights,
        }
        return extract_source(source, self.backbone, path, options, record), True

    def find_store(self, source: ImageSource) -> FeatureStore | None:
        """Return the store that the same request made from the same images; torch is not needed."""
        for path in sorted(self.folder.glob(f"{slug(source.split)}-*.h5")):
            try:
                store = FeatureStore(path)
            except StoreError:
                continue  # perhaps of other options; if it is ours, its name says so later
            same_images = store.manifest["dataset"] == dataset_identity(source)
            if same_images and store.run.get("request") == self.request:
                return store
        return None

    def _accepted(self, store: FeatureStore) -> FeatureStore:
        if self.step.on_error == "fail":
            refuse_skipped(store.ids, store.skipped)
        return store


def _outcome(stores: list[FeatureStore], fresh: int) -> Outcome:
    skipped = sum(len(store.skipped) for store in stores)
    lines = []
    for store in stores:
        dataset = store.manifest["dataset"]
        speed = f", {store.run['images_per_s']} images/s" if fresh else ""
        left_out = f", {len(store.skipped)} skipped" if store.skipped else ""
        lines.append(
            f"{dataset['name']} {dataset['split']}: {len(store)} images{left_out}{speed}"
            f" → {store.path}"
        )
    status = "done" if fresh else "up to date"
    return Outcome(
        status,
        f"{status}\n" + "\n".join(lines),
        tuple(store.path for store in stores),
        {
            "stores": [
                {
                    "path": str(store.path),
                    "fingerprint": store.fingerprint,
                    "images": len(store),
                    "skipped": [store.ids[row] for row in sorted(store.skipped)],
                    "layers": {name: list(store.features(name).shape[1:]) for name in store.layers},
                    **{key: store.run[key] for key in ("seconds", "images_per_s", "shares")},
                }
                for store in stores
            ]
        },
        exit_code=1 if skipped else 0,
    )
