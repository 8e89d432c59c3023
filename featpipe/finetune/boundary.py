"""Activations at the frozen boundary: computed once, by the machinery that makes feature stores.

A frozen stage gives the same activations in every epoch. They are written once into a sealed
store, and the epochs run on the rest of the network only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe.backbones import MODELS
from featpipe.backbones.folding import fold_batch_norm
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.finetune.augment import Augmentation, Canvas
from featpipe.finetune.seeding import derived_seed
from featpipe.finetune.stages import Cut, part
from featpipe.finetune.trunk import Trunk
from featpipe.workspace import IMAGE_LAYER

if TYPE_CHECKING:
    from featpipe.labelmap import SourceClasses

PREPARED = "prepared"


@dataclass(frozen=True)
class Views:
    """Augmented views that are stored beside each image as it is.

    Parameters
    ----------
    count : int
    augment : tuple of str
    seed : int
    """

    count: int = 0
    augment: tuple[str, ...] = ()
    seed: int = 0


class Prefix:
    """The frozen stages in front of a boundary, as extraction wants a backbone.

    Parameters
    ----------
    trunk : Trunk
    cut : Cut
        Its frozen stages are run; without any the images themselves are stored, as uint8.
    views : Views, optional
        With K views one image gives K + 1 activations, the first of the image as it is.

    Attributes
    ----------
    name : str
        That of the network; ``"prepared"`` where only prepared images are stored, which every
        network of the same preprocessing can share.
    default_layer : str
        Name of the boundary: ``"image"``, ``"layer3:map"``, ``"avgpool"``.
    """

    source_classes: SourceClasses | None = None  # no logits come out in front of a boundary

    def __init__(self, trunk: Trunk, cut: Cut, views: Views | None = None) -> None:
        self.trunk = trunk
        self.name = trunk.name if cut.frozen else PREPARED
        self.device = trunk.device
        self.preprocessing: Preprocessing = trunk.preprocessing
        self.views = views or Views()
        self.batch_size = max(1, (32 if self.device.type == "cpu" else 256) // self._copies)
        frozen = part(trunk.stages, cut.frozen)
        # The same function in a fifth less time (measured in runtime.py); timm hides its graph.
        self.network = (fold_batch_norm(frozen) if trunk.name in MODELS else frozen).to(self.device)
        self.network.to(memory_format=torch.channels_last)
        self._augment = Augmentation(self.views.augment, Canvas.of(self.preprocessing))
        side = self.preprocessing.crop
        self._shape = tuple(self._run(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1:])
        self.default_layer = self._boundary(cut)

    @property
    def _copies(self) -> int:
        return self.views.count + 1

    def _boundary(self, cut: Cut) -> str:
        if not cut.frozen:
            return IMAGE_LAYER
        named = [n for n in cut.frozen if not isinstance(self.network.get_submodule(n), nn.Flatten)]
        return f"{named[-1]}:map" if len(self._shape) == 3 else named[-1]

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image's activations; the first axis counts views, if any."""
        return (self._copies, *self._shape) if self.views.count else self._shape

    def embed(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Return the activations of prepared images (b, 3, S, S), uint8."""
        copies = [images, *(self._view(images, number) for number in range(self.views.count))]
        activations = [self._run(copy).numpy() for copy in copies]
        values = np.stack(activations, axis=1) if self.views.count else activations[0]
        return dict.fromkeys(layers, values)

    def _run(self, images: Tensor) -> Tensor:
        if next(self.network.children(), None) is None:
            return images
        with torch.inference_mode():
            batch = self.preprocessing.normalise(images.to(self.device))
            return self.network(batch.contiguous(memory_format=torch.channels_last)).float().cpu()

    def _view(self, images: Tensor, number: int) -> Tensor:
        """Draw one view of each image.

        The draw follows from the image's own content, so a resumed run and another batch size
        give the same views.
        """
        views = []
        with torch.random.fork_rng(devices=[]):
            for image in images:
                content = zlib.crc32(image.numpy().tobytes())
                torch.manual_seed(derived_seed(self.views.seed, number, content))
                views.append(self._augment(image[None])[0])
        return torch.stack(views)

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the activations, as JSON-like values."""
        if self.default_layer == IMAGE_LAYER:
            return {"model": PREPARED, "preprocessing": self.preprocessing.as_dict()}
        if not self.views.count:
            return self.trunk.description
        views = {**self.views.__dict__, "augment": list(self.views.augment)}
        return {**self.trunk.description, "views": views}
