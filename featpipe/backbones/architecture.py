"""What a model's name means: the network and its published weights. torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from featpipe.backbones import MODELS, TORCHVISION, Automatic
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights of an architecture."""

    name: str  # as the user gives it: "IMAGENET1K_V2"
    location: str | Path  # address to download them from, or a file shipped with a package
    preprocessing: Preprocessing  # how images were prepared in their training
    source_classes: Callable[[], SourceClasses]  # returns the classes of their logits


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that can be built, and its published weights."""

    name: str
    summary: str  # one line for ``featpipe models``
    build: Callable[[int], nn.Module]  # build(num_classes) returns the untrained network
    classifier: str  # name of the last linear layer
    file_preprocessing: Preprocessing  # for weights from a file, which does not say theirs
    # By upper-case name, "DEFAULT" among them; empty if there are none.
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    default_layer: str = "avgpool"  # its activations are the features unless others are named

    def automatic(self, weights: str) -> Automatic:
        """Return what is chosen for this model and these weights where the user says nothing."""
        default, chosen = (self.published.get(key) for key in ("DEFAULT", weights.upper()))
        prepared = chosen.preprocessing if chosen else self.file_preprocessing
        return Automatic(
            weights=default.name if default else "DEFAULT",
            image_size=prepared.crop,
            margin=prepared.resize > prepared.crop,
            layer=self.default_layer,
        )

    def on_meta(self, num_classes: int) -> nn.Module:
        """Return the network in evaluation mode without memory or values: shapes only."""
        with torch.device("meta"):
            return self.build(num_classes).eval()


def _register_torchvision(name: str, features: int) -> None:
    published = {}
    for weights in models.get_model_weights(name):
        transforms = weights.transforms()
        preprocessing = Preprocessing(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )
        published[weights.name] = PublishedWeights(
            weights.name, weights.url, preprocessing, lambda: SourceClasses.load("imagenet")
        )
    default = published[TORCHVISION[name].weights]
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
