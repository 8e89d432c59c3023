"""The user's own module as a model, with its current weights and its own transform."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture, PublishedWeights, WeightsInfo, digest_of
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.fingerprint import of_bytes

_SUMMARY = "a module of yours"
_TRIES = 8  # among which the results of a random transform differ


@dataclass(frozen=True)
class Transform(Preprocessing):
    """A callable that turns a PIL image (RGB) into the network's input: float (3, S, S)."""

    dtype: ClassVar[torch.dtype] = torch.float32

    apply: Callable[[Image.Image], Tensor] = field(kw_only=True)
    description: str = field(kw_only=True)  # changes when the transform does

    @classmethod
    def of(cls, apply: Callable[[Image.Image], Tensor], description: str) -> Transform:
        """Return the transform; its result for an example image gives the size."""
        ramp = np.linspace(0, 255, 400 * 300 * 3).reshape(300, 400, 3).astype(np.uint8)
        made, *again = (apply(Image.fromarray(ramp)) for _ in range(_TRIES))
        square = isinstance(made, Tensor) and made.ndim == 3 and made.shape[1] == made.shape[2]
        if not (square and made.shape[0] == 3 and made.is_floating_point()):
            what = "The transform does not return a valid input of a network."
            expected = "a floating-point tensor (3, S, S) of every image"
            got = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made)
            advice = "end it with CenterCrop, ToTensor and Normalize, for example"
            raise UsageError(what, expected=expected, got=got, next_step=advice)
        if not all(torch.equal(made, other) for other in again):
            what = "The transform is random, and features are stored once."
            expected = "the same tensor every time for the same image"
            got = description.replace("\n", " ")[:200]
            advice = "use the transform that the network is evaluated with"
            raise UsageError(what, expected=expected, got=got, next_step=advice)
        side = made.shape[1]
        return cls(resize=side, crop=side, fit="transform", apply=apply, description=description)

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Return the transform of one image (height, width, 3), uint8."""
        made, square = self.apply(Image.fromarray(image)), (3, self.crop, self.crop)
        if tuple(made.shape) != square:
            what, got = "The transform returns tensors of different sizes.", tuple(made.shape)
            raise UsageError(what, expected=square, got=got, next_step="let it crop")
        return made.float()

    def normalise(self, images: Tensor) -> Tensor:
        """Return the images, which the transform has normalised."""
        return images

    def adapted(
        self, image_size: Any = None, fit: str = "auto", sizes: Any = (), decode: str = "full"
    ) -> Preprocessing:
        """Return a copy; UsageError for another image size or fit."""
        asked = [] if image_size in (None, self.crop) else [f"image size {image_size}"]
        asked += [] if fit in ("auto", self.fit) else [f"fit {fit}"]
        if asked:
            raise UsageError("The images are prepared by your own transform.", got=", ".join(asked))
        return replace(self, decode=decode)

    def as_dict(self) -> dict[str, Any]:
        """Return everything that changes the numbers, as JSON-like values."""
        return {"transform": self.description, "crop": self.crop, "fit": self.fit}


def register_module(
    module: nn.Module,
    transform: Callable[[Image.Image], Tensor] | Preprocessing,
    name: str,
    fingerprint: str | None = None,
) -> str:
    """Register a module as a model, in this process; return the model's name.

    Parameters
    ----------
    module : nn.Module
        Takes images (n, 3, S, S). It is copied.
    transform : callable or Preprocessing
        Turns a PIL image in RGB into such an input, (3, S, S).
    name : str
        Part of the names of stores. Another module may be registered under it later.
    fingerprint : str, optional
        Changes when the features do. Default: of the module's state dict and text (``repr``), and
        of the transform's text, none of which shows a change of code alone.
    """
    if not isinstance(module, nn.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else repr(module)
        expected, hint = "an instance of torch.nn.Module", "extract(dataset, 'NAME') takes names"
        what = "The backbone is not a torch.nn.Module."
        raise UsageError(what, expected=expected, got=kind, next_step=hint)
    if not callable(transform) and not isinstance(transform, Preprocessing):
        expected = "a callable that makes a float tensor (3, S, S) of a PIL image"
        raise UsageError("The transform cannot be called.", expected=expected, got=repr(transform))
    if ":" in name or (name in MODELS and MODELS.summary(name) != _SUMMARY):
        what = f"A module cannot have the name {name!r}."
        expected = "one without a colon that no other model has"
        raise UsageError(what, expected=expected, next_step="name='…'")
    text = repr(transform)
    if fingerprint is None and " at 0x" in text:
        what = "The transform does not describe itself, so stale features could be reused."
        advice = "give fingerprint='…', a text of yours that changes when the features do; or"
        advice += " compose it of torchvision's transforms"
        raise UsageError(what, got=text[:200], next_step=advice)
    prepared = transform
    if not isinstance(prepared, Preprocessing):
        prepared = Transform.of(prepared, text if fingerprint is None else fingerprint)
    digest = fingerprint or of_bytes(repr(module).encode(), digest_of(module.state_dict()).encode())
    info = WeightsInfo(f"module {digest[:12]}", digest, None, None)
    published = PublishedWeights(info.name, info, prepared, lambda: None)
    MODELS.register(
        Architecture(
            name=name,
            summary=_SUMMARY,
            build=lambda num_classes: copy.deepcopy(module),
            classifier="",
            file_preprocessing=prepared,
            published={"DEFAULT": published},
            default_layer="output",
            layers={"output": ("",)},
            read=lambda found: copy.deepcopy(module),  # which is frozen and moved
        )
    )
    return name
