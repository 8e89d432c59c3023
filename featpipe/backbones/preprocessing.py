"""Preparing images for a network. How, is a property of its weights."""

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
# Images with a larger aspect ratio are cropped to it before resizing: the ends are outside of the
# centre crop anyway, and 1 x 5000 pixels would be resized to a gigabyte.
_ELONGATED = 8
# Decoding at a reduced scale leaves at least this multiple of the side that images are resized to.
# With 1, features of camera photographs moved three to five times as far, in a sixth of the time.
_DECODED = 2


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized, cropped and normalised for one set of weights.

    featpipe resizes in one way only: by torchvision, on uint8, always antialiased. On 200
    photographs 0.17 % of the values differ from Pillow's, by 1 of 255 (torchvision on floats,
    rounded: 16 %), in half of the time; with ``fit="whole"`` 1.6 %; on 200 STL-10 images none.

    Parameters
    ----------
    resize : int
        Length in pixels of the shorter side before the crop.
    crop : int
        Side S in pixels of the network's square input.
    mean, std : tuple of float
        Mean and standard deviation per channel of images scaled to [0, 1]; default: ImageNet's.
    interpolation : {"bilinear", "bicubic"}
    fit : {"crop", "fill", "whole", "squash"}
        ``"crop"`` resizes the shorter side to ``resize`` pixels and crops the centre, exactly as
        torchvision does. ``"fill"`` has no margin: the shorter side is resized to S pixels, and an
        image of S x S is used as it is. ``"whole"`` resizes the whole image to the square.
        ``"squash"`` resizes both sides to ``resize`` pixels and crops the centre, as some networks
        of timm and transformers were tested.
    decode : {"full", "scaled"}
        ``"scaled"`` decodes JPEG files at the smallest of 1/8, 1/4, 1/2 of their size that leaves
        :attr:`decoded_side` pixels.

    Notes
    -----
    ``--fit auto`` is decided once for a dataset, by :func:`featpipe.backbones.resolve_fit`: the
    weights' own ``crop``, but ``fill`` where all images have the same size, not larger than the
    network's input. The margin is for photographs: it cuts the border off an image of 96 x 96, and
    enlarges one of 224 x 224 only to crop it. On STL-10 (ResNet-50, linear SVM, official fold 0)
    accuracy without it is 0.9525 instead of 0.9470.

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
        """Return one image (height, width, 3), uint8, as (3, S, S); thread-safe."""
        height, width = image.shape[:2]
        # In its own memory order, for which torchvision has a uint8 kernel. Read-only arrays
        # (memory-mapped datasets) are copied, because torch cannot promise not to write.
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
        """Minimum length in pixels of the shorter side of a decoded image; None: full size."""
        if self.decode == "full":
            return None
        return _DECODED * (self.resize if self.fit == "crop" else self.crop)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images (n, 3, S, S) as normalised float32, on their device."""
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
        """Return a copy for another input side, fit or way of decoding.

        The margin around the crop keeps its ratio. ``fit="auto"`` is resolved by
        :func:`featpipe.backbones.resolve_fit` for images of these ``sizes``.
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
        if self.decode == "full":  # keeps the fingerprints of versions without this choice
            del values["decode"]
        fit = fit_identity(self.fit, margin=self.resize > self.crop)
        return values | {"mean": list(self.mean), "std": list(self.std), "fit": fit}
