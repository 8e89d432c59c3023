"""What a model's name means: the network and its published weights. torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from featpipe.backbones import MODELS, TORCHVISION
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published for an architecture.

    Parameters
    ----------
    name : str
        How the user asks for them (``"IMAGENET1K_V2"``).
    location : str or Path
        Address to download them from, or a file shipped with a package.
    preprocessing : Preprocessing
        How images were prepared when they were trained.
    source_classes : callable
        Returns the classes of their logits.
    """

    name: str
    location: str | Path
    preprocessing: Preprocessing
    source_classes: Callable[[], SourceClasses]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that can be built, and its published weights.

    Parameters
    ----------
    name : str
    summary : str
        One line for ``featpipe models``.
    build : callable
        ``build(num_classes)`` returns the untrained network.
    classifier : str
        Name of the last linear layer.
    file_preprocessing : Preprocessing
        Used for weights that come from a file, which cannot say how they were trained.
    published : mapping of str to PublishedWeights
        By upper-case name, ``"DEFAULT"`` among them; empty where there are none.
    default_layer : str
        Layer whose activations are the features unless another one is asked for.
    """

    name: str
    summary: str
    build: Callable[[int], nn.Module]
    classifier: str
    file_preprocessing: Preprocessing
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    default_layer: str = "avgpool"

    def on_meta(self, num_classes: int) -> nn.Module:
        """Return the network in evaluation mode without memory or values: shapes only."""
        with torch.device("meta"):
            return self.build(num_classes).eval()


def _register_torchvision(name: str, features: int) -> None:
    published = {}
    enum: Any = models.get_model_weights(name)
    # DEFAULT is another name for one of the others, which only __members__ lists.
    for member, weights in enum.__members__.items():
        transforms = weights.transforms()
        preprocessing = Preprocessing(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )
        published[member] = PublishedWeights(
            weights.name, weights.url, preprocessing, lambda: SourceClasses.load("imagenet")
        )
    default = published["DEFAULT"]
    architecture = Architecture(
        name=name,
        summary=f"torchvision, ImageNet, {features} features",
        build=lambda num_classes: models.get_model(name, weights=None, num_classes=num_classes),
        classifier="fc",
        published={"DEFAULT": default, **published},
        # The recipe that nearly all ImageNet checkpoints follow: 256 pixels, centre 224.
        file_preprocessing=published.get("IMAGENET1K_V1", default).preprocessing,
    )
    MODELS.register(architecture)


for _name in TORCHVISION:
    _register_torchvision(_name, 512 if _name in ("resnet18", "resnet34") else 2048)
