"""The input of a training: stages that run once, rows in batches, rows held out by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Execution
from featpipe.errors import FitError, UsageError
from featpipe.evaluation.protocol import cut, units_per_class
from featpipe.finetuning.nets import Trunk
from featpipe.finetuning.step import parse
from featpipe.workspace import IMAGE_LAYER


class Prefix(FrozenNetwork):
    """The stages before a frozen boundary, of which there is at least one.

    Its ``default_layer`` is the name of the boundary: ``"layer3:map"``, ``"avgpool"``.
    """

    def __init__(self, trunk: Trunk, n_frozen: int, how: Execution | None = None) -> None:
        stages = trunk.stages[:n_frozen]
        super().__init__(trunk.name, stages, trunk.preprocessing, trunk.device, how)
        self._description = trunk.description
        *_, (last, _) = stages.named_children()
        named = [n for n, stage in stages.named_children() if not isinstance(stage, nn.Flatten)][-1]
        if len(self.dim(f"{last}:map")) > 1:
            self.default_layer = f"{last}:map"
        else:  # after flattening a map of 1 × 1, for which the pooling is the better name
            self.default_layer = named if self.dim(named) == self.dim(last) else last

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the activations, as JSON-like values."""
        return {**self._description, **self.inexact()}


class PreparedImages(FrozenNetwork):
    """Images as the network gets them, for training all of it.

    Networks with the same preprocessing share them.
    """

    default_layer = IMAGE_LAYER

    def __init__(self, trunk: Trunk) -> None:
        cpu = torch.device("cpu")
        super().__init__("prepared", nn.Identity(), trunk.preprocessing, cpu, Execution("torch"))

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image."""
        return (3, self.preprocessing.crop, self.preprocessing.crop)

    def embed(
        self, images: Tensor, layers: tuple[str, ...] | None = None
    ) -> dict[str, NDArray[np.uint8]]:
        """Return prepared images (b, 3, S, S), uint8, as they are."""
        return dict.fromkeys(layers or (IMAGE_LAYER,), images.numpy())

    def prepare(self, layers: tuple[str, ...]) -> dict[str, Any]:
        """Return nothing: no network runs."""
        return {}


class Augmentation:
    """Random transforms such as ``"crop:4"`` and ``"flip"``, drawn for every image.

    Pixels outside of the image get the mean colour of the weights' training data, which becomes
    zero when normalised.
    """

    def __init__(self, specs: Sequence[str], preprocessing: Preprocessing) -> None:
        side, colour = preprocessing.crop, [round(255 * mean) for mean in preprocessing.mean]
        largest = {"crop": side // 2, "flip": 0, "rotation": 180, "cutout": side - 1}
        make: dict[str, Callable[[float], v2.Transform]] = {
            "flip": lambda _: v2.RandomHorizontalFlip(),
            # Pads, then cuts at a random place.
            "crop": lambda n: v2.RandomCrop(side, padding=int(n), fill=colour),
            "rotation": lambda n: v2.RandomRotation(n, v2.InterpolationMode.BILINEAR, fill=colour),
            # Blanks a square (DeVries and Taylor 2017, arXiv:1708.04552).
            "cutout": lambda n: v2.RandomErasing(1.0, [(n / side) ** 2] * 2, (1.0, 1.0), colour),
        }
        self._transforms = nn.Sequential()
        for spec in specs:
            name, numbers = parse("augmentation", spec)
            amount = sum(numbers)
            if amount > largest[name]:
                what = f"{spec!r} is too much for images of {side} × {side} pixels."
                raise UsageError(what, expected=f"up to {name}:{largest[name]}")
            self._transforms.append(make[name](amount))

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images (n, 3, S, S), uint8; torch's generator decides how."""
        return torch.stack([self._transforms(image) for image in images])


@dataclass(frozen=True, eq=False)
class RowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of an array of activations or uint8 images, which may be memory-mapped."""

    X: Any
    y: NDArray[np.int64]
    rows: NDArray[np.int64]
    augment: Callable[[Tensor], Tensor] | None = None  # changes batches of images at random
    groups: NDArray[np.int64] | None = None  # of these rows, (m,): none is split

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the rows, of shape (m,)."""
        return self.y[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch at once: one read from the store instead of one per row."""
        rows = self.rows[indices]
        batch = torch.from_numpy(np.asarray(self.X[rows]))
        if self.augment is not None:
            batch = self.augment(batch)
        return batch, torch.from_numpy(self.y[rows])


def hold_out(rows: RowBatches, share: float, seed: int) -> tuple[RowBatches, RowBatches]:
    """Split rows into those that train and the share of every class that chooses the epoch."""
    labels, groups = rows.labels, rows.groups
    counts = units_per_class(labels, groups)
    counts = counts[counts > 0]
    n_valid = max(round(share * len(labels)), len(counts))
    if counts.min() < 2 or len(labels) - n_valid < len(counts):
        units = "rows" if groups is None else "groups"
        what = f"There are too few training {units} to hold some out for validation."
        got = f"{len(labels)} rows, {counts.min()} {units} of the rarest class"
        raise FitError(what, got=got, next_step="train a fixed number of epochs: --validation 0")
    (parts,) = cut(f"holdout:{share}", labels, groups, seed)
    train, valid = (
        replace(rows, rows=rows.rows[part], groups=None if groups is None else groups[part])
        for part in map(np.sort, parts)
    )
    return train, valid
