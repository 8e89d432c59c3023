"""``timm:NAME``: every network of timm, with timm's preprocessing and weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from timm.models.resnetv2 import ResNetV2
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import (
    EMBEDDING,
    Architecture,
    Family,
    PublishedWeights,
    WeightsInfo,
    cached_file,
    load_network,
    load_state_dict,
)
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets import IMAGENET
from featpipe.errors import UnknownNameError, UsageError
from featpipe.labelmap import SourceClasses
from featpipe.steps.grammar import LOGITS

_IMAGENET_CLASSES = 1000  # no other dataset of timm's weights has this number


def _architecture(name: str, download: bool) -> Architecture:
    family, _, tag = name.partition(".")
    if not timm.is_model(family):
        what = f"timm has no model named {name!r}."
        example = "a name such as timm:vit_base_patch16_224"
        raise UnknownNameError(what, family, timm.list_models(), expected=example)
    tags = timm.list_pretrained(f"{family}.*")
    if tag and name not in tags:
        raise UnknownNameError(f"timm has no weights {tag!r} for {family}.", name, tags)
    config: Any = timm.get_pretrained_cfg(name)
    last = config.classifier if isinstance(config.classifier, str) and config.num_classes else ""
    # Several classifiers share an embedding: the network's output without any.
    names = {EMBEDDING: (f"{last}:input",), LOGITS: ("",)} if last else {EMBEDDING: ("",)}
    prepared = _preprocessing(config)

    def weights_file(download: bool) -> Path:
        """Return the weights file in timm's own cache."""
        given = config.hf_hub_filename
        files = (given,) if given else ("model.safetensors", "pytorch_model.bin")
        return cached_file(f"timm:{name}", config.hf_hub_id, files, download)

    where = weights_file if config.hf_hub_id else config.url
    classes = partial(_classes, config.num_classes)
    trained_on = IMAGENET if config.num_classes == _IMAGENET_CLASSES else ""
    published = PublishedWeights(tag or config.tag, where, prepared, classes, trained_on)

    def build(num_classes: int, **options: Any) -> nn.Module:
        with torch.device("cpu"):  # building some of them computes values
            return timm.create_model(name, num_classes=num_classes if last else 0, **options)

    def read(info: WeightsInfo) -> nn.Module:
        assert info.path is not None
        if info.published is None:
            return load_network(found, info.path)
        # timm translates the names.
        overlay = {"state_dict": load_state_dict(info.path), "custom_load": False}
        network = build(config.num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
        vars(network)["pretrained_cfg"].pop("state_dict")
        return network

    found = Architecture(
        name=f"timm:{name}",
        build=build,
        classifier=last,
        file_preprocessing=prepared,
        published={"DEFAULT": published, published.name.upper(): published} if where else {},
        layers=names,
        read=read,
        stages=big_transfer_stages,
    )
    return found


def _preprocessing(config: Any) -> Preprocessing:
    data: Any = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = data["input_size"]
    if channels != 3 or height != width or data["crop_mode"] not in ("center", "squash"):
        what = f"The images of {config.architecture} cannot be prepared."
        got = f"{data['input_size']}, {data['crop_mode']}"
        raise UsageError(what, expected="square RGB images, cropped or squashed", got=got)
    resize = max(height, math.floor(height / data["crop_pct"]))
    mean, std = tuple(data["mean"]), tuple(data["std"])
    fit = "squash" if data["crop_mode"] == "squash" else "crop"
    return Preprocessing(resize, height, mean, std, data["interpolation"], fit)


def _classes(number: int) -> SourceClasses | None:
    if number == _IMAGENET_CLASSES:
        return SourceClasses.load("imagenet")
    subset = timm.data.infer_imagenet_subset({"num_classes": number})
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return SourceClasses(
        tuple(info.label_names()), tuple(map(info.index_to_description, range(number)))
    )


def big_transfer_stages(network: nn.Module) -> nn.Sequential | None:
    """Return the stages of a Big Transfer network; of others, the order is unknown."""
    if not isinstance(network, ResNetV2):
        return None
    network.reset_classifier(0)
    layers = {f"layer{i}": stage for i, stage in enumerate(network.stages, start=1)}
    parts = {"stem": network.stem, **layers, "norm": network.norm, "pool": network.head}
    return nn.Sequential(OrderedDict(parts))


MODELS.register(Family("timm", _architecture))
