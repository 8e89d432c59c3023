"""Rows of a store as batches for training: augmented at random, some held out by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import FitError, UsageError
from featpipe.finetune.step import parse_augmentation


class Augmentation:
    """Random transforms such as ``"crop:4"`` and ``"flip"``, drawn for every image.

    Places without image get the mean colour of the training data of the weights, which normalising
    turns to zero. An amount that is too large for the images is a ``UsageError``.
    """

    def __init__(self, specs: Sequence[str], preprocessing: Preprocessing) -> None:
        side, colour = preprocessing.crop, [round(255 * mean) for mean in preprocessing.mean]
        largest = {"crop": side // 2, "flip": 0, "rotation": 180, "cutout": side - 1}
        self._transforms = nn.Sequential()
        for spec in specs:
            name, amount = parse_augmentation(spec)
            if amount > largest[name]:
                raise UsageError(
                    f"{spec!r} is too much for images of {side} × {side} pixels.",
                    expected=f"up to {name}:{largest[name]}",
                )
            transform: v2.Transform = v2.RandomHorizontalFlip()
            if name == "crop":  # pad, then cut at a random place
                transform = v2.RandomCrop(side, padding=int(amount), fill=colour)
            elif name == "rotation":
                bilinear = v2.InterpolationMode.BILINEAR
                transform = v2.RandomRotation(amount, interpolation=bilinear, fill=colour)
            elif name == "cutout":  # blanks a square (DeVries and Taylor 2017, arXiv:1708.04552)
                share = (amount / side) ** 2
                transform = v2.RandomErasing(1.0, (share, share), ratio=(1.0, 1.0), value=colour)
            self._transforms.append(transform)

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images (n, 3, S, S), uint8; torch's generator decides how."""
        return torch.stack([self._transforms(image) for image in images])


@dataclass(frozen=True, eq=False)
class RowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of an array of activations or uint8 images, which may be memory-mapped.

    Where ``training`` is set, ``augment`` changes batches of images at random.
    """

    X: Any
    y: NDArray[np.int64]
    rows: NDArray[np.int64]
    augment: Callable[[Tensor], Tensor] | None = None
    training: bool = False

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the rows, of shape (m,)."""
        return self.y[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch at once: one look into the store instead of one per row."""
        rows = self.rows[indices]
        batch = torch.from_numpy(np.asarray(self.X[rows]))
        if self.training and self.augment is not None:
            batch = self.augment(batch)
        return batch, torch.from_numpy(self.y[rows])


def hold_out(rows: RowBatches, share: float, seed: int) -> tuple[RowBatches, RowBatches]:
    """Split rows into those that train and the share of every class that chooses the epoch."""
    labels = rows.labels
    counts = np.unique(labels, return_counts=True)[1]
    n_valid = max(round(share * len(labels)), len(counts))
    if counts.min() < 2 or len(labels) - n_valid < len(counts):
        raise FitError(
            "There are too few training rows to hold some out for validation.",
            got=f"{len(labels)} rows, {counts.min()} of the rarest class",
            next_step="train a fixed number of epochs: --validation 0",
        )
    splitter = StratifiedShuffleSplit(1, test_size=n_valid, random_state=seed)
    train, valid = (
        replace(rows, rows=rows.rows[np.sort(part)])
        for part in next(splitter.split(labels, labels))
    )
    return train, valid
