"""``torchvision:NAME``: the classification networks of ``torchvision.models``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torchvision import models

from featpipe.backbones import MODELS, TORCHVISION
from featpipe.backbones.architecture import (
    Architecture,
    Family,
    PublishedWeights,
    WeightsInfo,
    load_network,
)
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets import IMAGENET
from featpipe.errors import UnknownNameError
from featpipe.labelmap import SourceClasses
from featpipe.steps.grammar import LOGITS

# The last layer with weights, by prefix of a network's name: building one to find it takes seconds.
_CLASSIFIERS = {
    **dict.fromkeys(("resne", "wide_resnet", "regnet", "shufflenet", "googlenet", "incep"), "fc"),
    **dict.fromkeys(("alexnet", "vgg"), "classifier.6"),
    **dict.fromkeys(("efficientnet", "mnasnet", "mobilenet_v2", "squeezenet"), "classifier.1"),
    "convnext": "classifier.2",
    "densenet": "classifier",
    "maxvit": "classifier.5",
    "mobilenet_v3": "classifier.3",
    "swin": "head",
    "vit": "heads.head",
}


def _build(name: str, num_classes: int, **options: Any) -> nn.Module:
    if name in ("googlenet", "inception_v3"):  # as with weights; initialising them takes minutes
        options |= {"transform_input": True, "init_weights": False}
    network = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if isinstance(network, models.VisionTransformer):
        network.num_prefix_tokens = 1  # the class token
    if isinstance(network, models.SwinTransformer):
        network.output_fmt = "NHWC"
    return network


def _architecture(name: str, download: bool = True) -> Architecture:
    known = models.list_models(module=models)
    if name not in known or not name.startswith(tuple(_CLASSIFIERS)):
        what = f"torchvision has no classification network named {name!r}."
        raise UnknownNameError(what, name, known, expected="one that torchvision.models lists")
    weights = models.get_model_weights(name)
    published, classes = {}, partial(SourceClasses.load, "imagenet")
    for one in weights:
        how = one.transforms()
        sides, scaling = (how.resize_size[0], how.crop_size[0]), (tuple(how.mean), tuple(how.std))
        prepared = Preprocessing(*sides, *scaling, how.interpolation.value)
        published[one.name] = PublishedWeights(one.name, one.url, prepared, classes, IMAGENET)
    published["DEFAULT"] = published[weights.DEFAULT.name]
    classifier = next(last for start, last in _CLASSIFIERS.items() if name.startswith(start))
    found = Architecture(
        name=f"torchvision:{name}",
        build=partial(_build, name),
        classifier=classifier,
        published=published,
        # That of nearly all ImageNet checkpoints: 256 pixels, centre crop of 224.
        file_preprocessing=published.get("IMAGENET1K_V1", published["DEFAULT"]).preprocessing,
        layers={LOGITS: ("",)},
    )

    def read(info: WeightsInfo) -> nn.Module:
        """Return the network for the image size of the weights' position embedding."""
        side = (info.published or published["DEFAULT"]).preprocessing.crop
        assert info.path is not None
        return load_network(replace(found, build=partial(_build, name, image_size=side)), info.path)

    return replace(found, read=read) if name.startswith("vit") else found


MODELS.register(Family("torchvision", _architecture))
for _name, _known in TORCHVISION.items():
    MODELS.register(replace(_architecture(_name), name=_name, default_layer=_known.layer))
