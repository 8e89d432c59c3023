"""A small convolutional net without shortcuts: what optimisers are compared on."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )


def convnet(num_classes: int = 2) -> nn.Sequential:
    """Build three blocks of convolution, ReLU and pooling, and two linear layers.

    There is no normalisation on purpose: it would hide the differences between optimisers.

    Examples
    --------
    >>> sum(p.numel() for p in convnet().parameters())
    355778
    """
    return nn.Sequential(
        OrderedDict(
            conv1=_block(3, 32),
            conv2=_block(32, 64),
            conv3=_block(64, 128),
            pool=nn.AdaptiveAvgPool2d(4),
            flatten=nn.Flatten(),
            hidden=nn.Sequential(nn.Linear(128 * 16, 128), nn.ReLU()),
            fc=nn.Linear(128, num_classes),
        )
    )


architecture = Architecture(
    "convnet",
    build=convnet,
    classifier="fc",
    published={},
    file_preprocessing=Preprocessing(resize=64, crop=64),
    default_layer="hidden",
)
