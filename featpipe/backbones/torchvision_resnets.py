"""torchvision's ResNets with its published ImageNet weights."""

from __future__ import annotations

from typing import Any

from torchvision import models

from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


def _imagenet_classes() -> SourceClasses:
    return SourceClasses.load("imagenet")


def _architecture(name: str) -> Architecture:
    enum: Any = models.get_model_weights(name)
    # __members__ lists aliases too: DEFAULT is torchvision's own choice among the others.
    published = {member: _published(enum[member]) for member in enum.__members__}
    first = published.get("IMAGENET1K_V1", published["DEFAULT"])
    return Architecture(
        name,
        build=lambda num_classes: models.get_model(name, weights=None, num_classes=num_classes),
        classifier="fc",
        published={"DEFAULT": published["DEFAULT"], **published},
        # The recipe that nearly all ImageNet checkpoints follow: 256 pixels, centre 224.
        file_preprocessing=first.preprocessing,
    )


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
        _imagenet_classes,
        accuracy=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
    )


resnet18 = _architecture("resnet18")
resnet34 = _architecture("resnet34")
resnet50 = _architecture("resnet50")
resnet101 = _architecture("resnet101")
resnet152 = _architecture("resnet152")
wide_resnet50_2 = _architecture("wide_resnet50_2")
wide_resnet101_2 = _architecture("wide_resnet101_2")
resnext50_32x4d = _architecture("resnext50_32x4d")
resnext101_32x8d = _architecture("resnext101_32x8d")
resnext101_64x4d = _architecture("resnext101_64x4d")
