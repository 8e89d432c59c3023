"""From any upright RGB image to the numbers a network was trained on. It belongs to the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from featpipe.backbones import FITS, PREPROCESSING_VERSION, fit_identity, resolve_fit
from featpipe.errors import UsageError

_SMALLEST, _LARGEST = 8, 2048
# Beyond this ratio of the sides the ends of an image are cut off before it is resized: they are
# outside the centre crop anyway, and a line of 1 x 5000 pixels would grow to a gigabyte first.
_ELONGATED = 8
# Times the side that an image is resized to: what decoding at a reduced scale leaves at least. With
# 1 the features of camera photographs moved three to five times as far, for a sixth of the time.
_DECODED = 2


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized, cropped and normalised for one set of weights.

    There is one way of resizing in featpipe: torchvision's, on uint8, always antialiased. On 200
    photographs 0.17 % of the values differ from Pillow's, by 1 of 255 (torchvision on floats,
    rounded: 16 %), in half of the time; with ``fit="whole"`` 1.6 %; on 200 STL-10 images none.

    Parameters
    ----------
    resize : int
        Length in pixels that the shorter side gets before the crop.
    crop : int
        Side S in pixels of the square that the network sees.
    mean, std : tuple of float
        Mean and standard deviation per channel of images scaled to [0, 1]; default: ImageNet's.
    interpolation : {"bilinear", "bicubic"}
    fit : {"crop", "fill", "whole", "squash"}
        ``"crop"`` gives the shorter side ``resize`` pixels and keeps the centre, exactly as
        torchvision does. ``"fill"`` leaves no margin: the shorter side gets S pixels, and an image
        that is S x S is used as it is. ``"whole"`` squeezes the whole image into the square.
        ``"squash"`` gives both sides ``resize`` pixels and keeps the centre: how some networks of
        timm and transformers were tested.
    decode : {"full", "scaled"}
        ``"scaled"`` has JPEG files decoded at the least of 1/8, 1/4, 1/2 of their size that leaves
        :attr:`decoded_side` pixels.

    Notes
    -----
    ``--fit auto`` is decided once for a dataset, by :func:`featpipe.backbones.resolve_fit`: the
    weights' own ``crop``, but ``fill`` where all images have one size that is not larger than the
    network's input. The margin is for photographs: from a 96 x 96 image it takes the rim, and one
    of 224 x 224 it enlarges only to cut it. On STL-10 (ResNet-50, linear SVM, official fold 0)
    leaving it out is worth 0.9525 instead of 0.9470 accuracy.

    Examples
    --------
    >>> Preprocessing(resize=256, crop=224).adapted(112).resize
    128
    """

    dtype: ClassVar[torch.dtype] = torch.uint8  # of prepared images

    resize: int
    crop: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: str = "crop"
    decode: str = "full"

    def __post_init__(self) -> None:
        if not _SMALLEST <= self.crop <= _LARGEST:
            what = "The image size is not possible."
            raise UsageError(what, expected=f"{_SMALLEST} to {_LARGEST} pixels", got=self.crop)
        if self.resize < self.crop:
            what = "An image cannot be resized to less than is cropped from it."
            expected = f"resize of at least {self.crop} pixels"
            raise UsageError(what, expected=expected, got=self.resize)

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Return one image (height, width, 3), uint8, as (3, S, S); threads may call it at once."""
        height, width = image.shape[:2]
        # The array stays in its own memory order: torchvision's uint8 kernel is made for it.
        # Read-only arrays (memory-mapped data sets) are copied: torch cannot promise not to write.
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        size = square = [self.crop, self.crop]
        if self.fit != "whole":
            longest = _ELONGATED * min(height, width)
            if max(height, width) > longest:
                tensor = transforms.center_crop(tensor, [min(height, longest), min(width, longest)])
            size = [self.crop if self.fit == "fill" else self.resize]
            if self.fit == "squash":
                size *= 2
        how = InterpolationMode(self.interpolation)
        tensor = transforms.resize(tensor, size, interpolation=how, antialias=True)
        return transforms.center_crop(tensor, square)

    @property
    def decoded_side(self) -> int | None:
        """Pixels that the shorter side of an image keeps when it is decoded; None: all."""
        if self.decode == "full":
            return None
        return _DECODED * (self.resize if self.fit == "crop" else self.crop)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images (n, 3, S, S) as normalised float32, on the device they are on."""
        about = torch.tensor([self.mean, self.std], device=images.device)
        mean, std = about.view(2, 1, -1, 1, 1) * 255
        return (images.float() - mean) / std

    def adapted(
        self,
        image_size: int | None = None,
        fit: str = "auto",
        sizes: Iterable[tuple[int, int] | None] = (None,),
        decode: str = "full",
    ) -> Preprocessing:
        """Return the same for another input side, fit or way of decoding.

        The margin around the crop keeps its ratio. ``fit="auto"`` means what
        :func:`featpipe.backbones.resolve_fit` says of images of these ``sizes``.
        """
        if fit not in (*FITS, "fill", "squash"):
            raise UsageError("The fit is not known.", expected=", ".join(FITS), got=repr(fit))
        crop = self.crop if image_size is None else image_size
        resize = max(crop, round(crop * self.resize / self.crop))
        fit = resolve_fit(fit, crop, sizes, self.fit)
        return replace(self, resize=resize, crop=crop, fit=fit, decode=decode)

    def as_dict(self) -> dict[str, Any]:
        """Return everything that changes the numbers, as JSON-like values."""
        values = {"version": PREPROCESSING_VERSION, "antialias": True, **asdict(self)}
        if self.decode == "full":  # as before there was a choice
            del values["decode"]
        fit = fit_identity(self.fit, margin=self.resize > self.crop)
        return values | {"mean": list(self.mean), "std": list(self.std), "fit": fit}
