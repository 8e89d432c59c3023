"""torchvision's ResNets with its published ImageNet weights."""

from __future__ import annotations

from typing import Any

from torchvision import models

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


def _published(weights: Any) -> PublishedWeights:
    transforms = weights.transforms()
    return PublishedWeights(
        weights.name,
        weights.url,
        Preprocessing(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        ),
        lambda: SourceClasses.load("imagenet"),
        accuracy=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
    )


def _register(name: str, features: int) -> None:
    enum: Any = models.get_model_weights(name)
    # __members__ lists aliases too: DEFAULT is torchvision's own choice among the others.
    published = {member: _published(enum[member]) for member in enum.__members__}
    first = published.get("IMAGENET1K_V1", published["DEFAULT"])
    MODELS.register(
        Architecture(
            name=name,
            summary=f"torchvision, ImageNet, {features} features",
            build=lambda num_classes: models.get_model(name, weights=None, num_classes=num_classes),
            classifier="fc",
            published={"DEFAULT": published["DEFAULT"], **published},
            # The recipe that nearly all ImageNet checkpoints follow: 256 pixels, centre 224.
            file_preprocessing=first.preprocessing,
        )
    )


for _name in ("resnet18", "resnet34"):
    _register(_name, 512)
for _name in (
    *("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
):
    _register(_name, 2048)
