"""ResNet-18 for 32 × 32 pixels, with its variants of stem and pooling."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn
from torchvision.models import resnet18

from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing


def resnet18_32(
    num_classes: int = 10, *, stem_pool: bool = False, maximum: bool = False
) -> nn.Sequential:
    """Build the four stages of ResNet-18 behind a 3 × 3 stem.

    Parameters
    ----------
    num_classes : int
    stem_pool : bool
        Pool 2 × 2 after the stem, and thus 2 × 2 instead of 4 × 4 before the classifier.
    maximum : bool
        Maximum instead of average pooling at both places.

    References
    ----------
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18_32().parameters())
    11173962
    """
    stages = resnet18(weights=None)
    pool = nn.MaxPool2d if maximum else nn.AvgPool2d
    first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as the stages
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU()),
            stem_pool=pool(2) if stem_pool else nn.Identity(),
            layer1=stages.layer1,
            layer2=stages.layer2,
            layer3=stages.layer3,
            layer4=stages.layer4,
            pool=pool(2 if stem_pool else 4),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, num_classes),
        )
    )


def _architecture(name: str, *, stem_pool: bool, maximum: bool) -> Architecture:
    return Architecture(
        name,
        build=partial(resnet18_32, stem_pool=stem_pool, maximum=maximum),
        classifier="fc",
        published={},
        file_preprocessing=Preprocessing(resize=32, crop=32),
        default_layer="pool",
    )


plain = _architecture("resnet18_32", stem_pool=False, maximum=False)
plain_max = _architecture("resnet18_32_max", stem_pool=False, maximum=True)
stem = _architecture("resnet18_32_stem", stem_pool=True, maximum=False)
stem_max = _architecture("resnet18_32_stem_max", stem_pool=True, maximum=True)
