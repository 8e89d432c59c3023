"""Random changes of training images, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.finetune import AUGMENTATIONS
from featpipe.steps import grammar


@dataclass(frozen=True)
class Canvas:
    """What the images are: their side in pixels, and the colour of places without image.

    That colour is the mean of the training data of the weights, which normalising turns to zero.
    """

    side: int
    colour: tuple[int, ...]

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> Canvas:
        """Return the canvas of prepared images."""
        return cls(preprocessing.crop, tuple(round(255 * mean) for mean in preprocessing.mean))


def crop(amount: float, canvas: Canvas) -> v2.Transform:
    """Pad by some pixels and cut at a random place."""
    return v2.RandomCrop(canvas.side, padding=int(amount), fill=list(canvas.colour))


def flip(amount: float, canvas: Canvas) -> v2.Transform:
    """Mirror left to right, half of the time."""
    return v2.RandomHorizontalFlip()


def rotation(amount: float, canvas: Canvas) -> v2.Transform:
    """Turn by up to ± some degrees."""
    return v2.RandomRotation(
        amount, interpolation=v2.InterpolationMode.BILINEAR, fill=list(canvas.colour)
    )


def cutout(amount: float, canvas: Canvas) -> v2.Transform:
    """Blank a square at a random place (DeVries and Taylor 2017, arXiv:1708.04552)."""
    share = (amount / canvas.side) ** 2
    return v2.RandomErasing(
        p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=list(canvas.colour)
    )


# The largest amount that makes sense for a side in pixels.
_MOST: dict[str, Callable[[int], float]] = {
    "crop": lambda side: side // 2,
    "rotation": lambda side: 180,
    "cutout": lambda side: side - 1,
    "flip": lambda side: 0,
}


class Augmentation:
    """A chain of random transforms, drawn anew for every image.

    Parameters
    ----------
    specs : sequence of str
        ``"crop:4"``, ``"flip"``, ``"rotation:5"``, ``"cutout:16"``, applied in this order.
    canvas : Canvas

    Raises
    ------
    UnknownNameError
        If there is no such augmentation.
    UsageError
        If an amount is missing or not possible.
    """

    def __init__(self, specs: Sequence[str], canvas: Canvas) -> None:
        self.specs = tuple(specs)
        self._transforms = nn.Sequential(*(_transform(spec, canvas) for spec in specs))

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images (n, 3, S, S), uint8; torch's generator decides how."""
        return torch.stack([self._transforms(image) for image in images])


def _transform(spec: str, canvas: Canvas) -> v2.Transform:
    entry = AUGMENTATIONS.entry(spec.partition(":")[0])
    name, amount = grammar.augmentation(spec)
    most = _MOST[entry.name](canvas.side)
    if amount > most:
        raise UsageError(
            f"{spec!r} is too much for images of {canvas.side} × {canvas.side} pixels.",
            expected=f"up to {name}:{most:g}",
        )
    transform: v2.Transform = entry.load()(amount, canvas)
    return transform
