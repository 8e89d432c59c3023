"""Random changes of training images, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.finetune import grammar


class Augmentation:
    """A chain of random transforms, drawn anew for every image.

    Parameters
    ----------
    specs : sequence of str
        ``"crop:4"``, ``"flip"``, ``"rotation:5"``, ``"cutout:16"``, applied in this order.
    preprocessing : Preprocessing
        Says how large prepared images are. Places without image get the mean colour of the
        training data of the weights, which normalising turns to zero.

    Raises
    ------
    UsageError
        If there is no such augmentation, or its amount is missing or not possible.
    """

    def __init__(self, specs: Sequence[str], preprocessing: Preprocessing) -> None:
        self.specs = tuple(specs)
        colour = [round(255 * mean) for mean in preprocessing.mean]
        transforms = (_transform(spec, preprocessing.crop, colour) for spec in specs)
        self._transforms = nn.Sequential(*transforms)

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images (n, 3, S, S), uint8; torch's generator decides how."""
        return torch.stack([self._transforms(image) for image in images])


def _transform(spec: str, side: int, colour: list[int]) -> v2.Transform:
    name, amount = grammar.augmentation(spec)
    most = {"crop": side // 2, "flip": 0, "rotation": 180, "cutout": side - 1}[name]
    if amount > most:
        raise UsageError(
            f"{spec!r} is too much for images of {side} × {side} pixels.",
            expected=f"up to {name}:{most}",
        )
    if name == "crop":  # pad, then cut at a random place
        return v2.RandomCrop(side, padding=int(amount), fill=colour)
    if name == "rotation":
        return v2.RandomRotation(amount, interpolation=v2.InterpolationMode.BILINEAR, fill=colour)
    if name == "cutout":  # a square is blanked (DeVries and Taylor 2017, arXiv:1708.04552)
        share = (amount / side) ** 2
        return v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=colour)
    return v2.RandomHorizontalFlip()
