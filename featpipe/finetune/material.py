"""What a head is trained on: a network cut at its frozen boundary, and its stored activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

from featpipe.backbones.base import Backbone
from featpipe.datasets import slug
from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.source import ImageSource
from featpipe.extract.engine import (
    ExtractOptions,
    content_of,
    extract_source,
    refuse_skipped,
)
from featpipe.finetune.boundary import Prefix, Views
from featpipe.finetune.images import open_images
from featpipe.finetune.settings import resolve_cut, resolve_views, trunk_request
from featpipe.finetune.stages import Cut, cut_of
from featpipe.finetune.trunk import Trunk, load_trunk
from featpipe.fingerprint import FileHashes
from featpipe.workspace import IMAGE_LAYER
from featpipe.steps import Context, FinetuneStep
from featpipe.store import FeatureStore


@dataclass
class Material:
    """Network and images of one fine-tuning; each part is made when it is asked for.

    Parameters
    ----------
    step : FinetuneStep
    context : Context
    """

    step: FinetuneStep
    context: Context

    @cached_property
    def trunk(self) -> Trunk:
        """The network below the head."""
        return load_trunk(trunk_request(self.step), FileHashes(self.context.workspace.hashes))

    @cached_property
    def cut(self) -> Cut:
        """Which of its stages learn."""
        return resolve_cut(self.step, self.trunk)

    @cached_property
    def views(self) -> Views | None:
        """What is stored at the boundary; ``None``: images, and all is run in every epoch."""
        return resolve_views(self.step, self.cut)

    @cached_property
    def sources(self) -> list[ImageSource]:
        """Images of the training split and, where there is one, of the test split."""
        return open_images(self.step, self.context, download=self.step.download)

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints that the stores will have; nothing is computed for them."""
        return [
            content_of(source, cast(Backbone, prefix), self._options(prefix)).fingerprint
            for source, prefix in zip(self.sources, self._prefixes, strict=True)
        ]

    def stores(self) -> list[FeatureStore]:
        """Return the sealed stores of all splits; those that are not there are made."""
        return [
            self._store(source, prefix, name)
            for source, prefix, name in zip(
                self.sources, self._prefixes, self.fingerprints, strict=True
            )
        ]

    @cached_property
    def _prefixes(self) -> list[Prefix]:
        """What fills the store of each split: only rows of the first one are ever trained on."""
        if self.views is None:
            images = Prefix(self.trunk, cut_of(self.trunk.stages, "all"))
            return [images] * len(self.sources)
        kinds = [self.views, None][: len(self.sources)]
        return [Prefix(self.trunk, self.cut, views) for views in kinds]

    def _options(self, prefix: Prefix) -> ExtractOptions:
        dtype = "uint8" if prefix.default_layer == IMAGE_LAYER else self.step.dtype
        return ExtractOptions(
            dtype=dtype,
            on_error=self.step.on_error,
            workers=self.step.workers,
            progress=self.context.progress,
        )

    def _store(self, source: ImageSource, prefix: Prefix, name: str) -> FeatureStore:
        folder = self.context.workspace.activations / slug(self.step.dataset) / prefix.name
        path = folder / f"{source.split}-{name[:12]}.h5"
        if path.exists():
            store = FeatureStore(path)
            if self.step.on_error == "fail":
                refuse_skipped(store.ids, store.skipped)
            return store
        record = {
            "command": self.context.command,
            "source": SourceRequest.of(self.step).as_dict(),
            "weights": trunk_request(self.step).weights,
        }
        # A Prefix has everything of a Backbone that extraction uses.
        return extract_source(source, cast(Backbone, prefix), path, self._options(prefix), record)
