"""What a fine-tuning works with: a network cut at its frozen boundary, and what is stored there.

A frozen stage gives the same activations in every epoch. They are written once into a sealed
store, and the epochs run on the rest of the network only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe.backbones.base import Embedder, FrozenNetwork
from featpipe.datasets import slug
from featpipe.datasets.dataset import SourceRequest, splits_of
from featpipe.errors import UsageError
from featpipe.evaluation.protocol import RowSet, resolve
from featpipe.extract.engine import Extraction, ExtractOptions
from featpipe.finetune import grammar
from featpipe.finetune.augment import Augmentation
from featpipe.finetune.network import Cut, Trunk, cut_of, load_trunk, part
from featpipe.finetune.rows import RowBatches
from featpipe.finetune.training import HeadClassifier
from featpipe.fingerprint import FileHashes
from featpipe.labelmap import SourceClasses
from featpipe.provenance import package_version
from featpipe.steps import Context
from featpipe.workspace import IMAGE_LAYER, user_path

if TYPE_CHECKING:
    from featpipe.finetune.step import Finetune

# Options that are handed on under their own names.
_OF_TRUNK = ("model", "weights", "norm", "image_size", "fit", "device", "seed")
_OF_TRAINING = (
    *("label_smoothing", "schedule", "validation", "patience", "shuffle", "head_init"),
    *("gradient_flow", "seed", "lr", "batch_size"),
)
_OF_OPTIMIZER = ("momentum", "betas", "eps", "weight_decay")


class Prefix(FrozenNetwork):
    """The stages in front of a frozen boundary, as an :class:`~featpipe.backbones.base.Embedder`.

    Parameters
    ----------
    trunk : Trunk
    cut : Cut
        Its frozen stages are run; there is at least one.

    Attributes
    ----------
    default_layer : str
        Name of the boundary: ``"layer3:map"``, ``"avgpool"``.
    """

    source_classes: SourceClasses | None = None  # no logits come out in front of a boundary

    def __init__(self, trunk: Trunk, cut: Cut) -> None:
        stages = part(trunk.stages, cut.frozen)
        super().__init__(trunk.name, stages, trunk.preprocessing, trunk.device)
        self._description = trunk.description
        last = cut.frozen[-1]
        named = [n for n in cut.frozen if not isinstance(stages.get_submodule(n), nn.Flatten)][-1]
        if len(self.dim(f"{last}:map")) == 3:
            self.default_layer = f"{last}:map"
        else:  # after flattening a map of 1 × 1, which the name of the pooling tells better
            self.default_layer = named if self.dim(named) == self.dim(last) else last

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the activations, as JSON-like values."""
        return self._description


class PreparedImages:
    """Images as they are before the network, for training all of it; also an ``Embedder``.

    Every network of the same preprocessing shares them.

    Parameters
    ----------
    trunk : Trunk
    """

    name = "prepared"
    default_layer = IMAGE_LAYER
    source_classes: SourceClasses | None = None

    def __init__(self, trunk: Trunk) -> None:
        self.preprocessing = trunk.preprocessing
        self.device = torch.device("cpu")
        self.batch_size = 32

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image."""
        return (3, self.preprocessing.crop, self.preprocessing.crop)

    def embed(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
        """Return prepared images (b, 3, S, S), uint8, as they are."""
        return dict.fromkeys(layers, images.numpy())

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the images, as JSON-like values."""
        return {"model": self.name, "preprocessing": self.preprocessing.as_dict()}


@dataclass
class FinetuneData:
    """Network and images of one fine-tuning; each part is made when it is asked for.

    Parameters
    ----------
    step : Finetune
    context : Context
    """

    step: Finetune
    context: Context

    @property
    def trunk_options(self) -> dict[str, Any]:
        """What :func:`load_trunk` is asked for, with which the network can be loaded again."""
        options = {name: getattr(self.step, name) for name in _OF_TRUNK}
        weights = user_path(self.step.weights)
        return options | ({"weights": str(weights.resolve())} if weights.is_file() else {})

    @cached_property
    def trunk(self) -> Trunk:
        """The network below the head."""
        hashes = FileHashes(self.context.workspace.hashes)
        return load_trunk(**self.trunk_options, hashes=hashes)

    @cached_property
    def unfreeze(self) -> str:
        """What learns; by default the head of a pretrained network, or all of another."""
        return self.step.unfreeze or ("none" if self.trunk.pretrained else "all")

    @cached_property
    def cut(self) -> Cut:
        """Which stages learn.

        Raises
        ------
        UsageError
            If stages of an untrained network would stay frozen.
        UnknownNameError
            If the network has no such stage.
        """
        cut = cut_of(self.trunk.stages, self.unfreeze)
        if not self.trunk.pretrained and (cut.frozen or cut.passed):
            raise UsageError(
                f"{self.trunk.name} is untrained: what stays frozen would stay random.",
                expected="--unfreeze all",
                got=f"--unfreeze {self.unfreeze}",
            )
        return cut

    @cached_property
    def augment(self) -> Augmentation | None:
        """What changes training images; amounts that are too much are refused."""
        specs = self.step.augment
        return Augmentation(specs, self.trunk.preprocessing) if specs else None

    @cached_property
    def embedder(self) -> Embedder:
        """What fills the stores: frozen stages, or nothing where images change or all learns."""
        if self.augment is not None or not self.cut.frozen:
            return PreparedImages(self.trunk)
        return Prefix(self.trunk, self.cut)

    @cached_property
    def extraction(self) -> Extraction:
        """The stores of all splits, found or made."""
        step, embedder = self.step, self.embedder
        images = SourceRequest.of(step)
        whole = embedder.default_layer == IMAGE_LAYER
        options = images.options(self.context, download=step.download)
        return Extraction(
            images,
            step.chosen_splits(step.split or splits_of(step.dataset, options)),
            self.context.workspace.activations / slug(step.dataset) / embedder.name,
            lambda: embedder,
            ExtractOptions(
                dtype="uint8" if whole else step.dtype,
                on_error=step.on_error,
                workers=step.workers,
            ),
            self.context,
            record={"weights": self.trunk_options["weights"]},
            download=step.download,
        )

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that the numbers follow from; nothing is trained for it."""
        stores = [content.fingerprint for content in self.extraction.contents()]
        tests: list[Any] = stores[1:] or [None]
        inputs = {
            "stores": stores,
            "network": self.trunk.description,  # image size and fit are part of it
            "device": self.trunk.device.type,
            "torch": package_version("torch"),
        }
        return self.step.key(
            inputs,
            unfreeze=self.unfreeze,
            precision=self.precision,
            batch_norm=self.batch_norm,
            protocol=resolve(self.step.protocol, tests[0])[0],
            image_size=None,
            fit="auto",
        )

    @property
    def precision(self) -> str:
        """``"mixed"`` or ``"float32"``."""
        automatic = "mixed" if self.trunk.device.type == "cuda" else "float32"
        return automatic if self.step.precision == "auto" else self.step.precision

    @property
    def batch_norm(self) -> str:
        """``"keep"`` or ``"update"``."""
        automatic = "keep" if self.trunk.pretrained else "update"
        return automatic if self.step.batch_norm == "auto" else self.step.batch_norm

    def batches(self, rows: RowSet) -> RowBatches:
        """Return rows of a store as batches."""
        return RowBatches(rows.store.features(), rows.store.labels, rows.rows, self.augment)

    def estimator(self, n_classes: int, **more: Any) -> HeadClassifier:
        """Return the estimator of the step; ``more`` are its parameters for one training."""
        step = self.step
        given = {name: getattr(step, name) for name in _OF_TRAINING}
        optimizer = {name: getattr(step, name) for name in _OF_OPTIMIZER}
        optimizer["nesterov"] = step.nesterov or None
        given |= {f"optimizer__{name}": v for name, v in optimizer.items() if v is not None}
        return HeadClassifier(
            module__trunk=self.trunk,
            module__cut=self.cut,
            module__head=step.head,
            module__n_classes=n_classes,
            module__seed=step.seed,
            module__from_store=isinstance(self.embedder, Prefix),
            module__freeze_statistics=self.batch_norm == "keep",
            losses=step.loss,
            augment=self.augment,
            precision=self.precision,
            max_epochs=step.epochs,
            optimizer=getattr(torch.optim, grammar.OPTIMIZERS[step.optimizer][0]),
            device=str(self.trunk.device),
            **{**given, **more},
        )
