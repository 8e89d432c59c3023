"""Small residual networks for 32 x 32 images (He et al. 2015, section 4.2), glyphnet among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, conv3x3

from featpipe.backbones import CIFAR_RESNETS, GLYPHNET, MODELS
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


class _PadShortcut(nn.Module):
    """Shortcut "option A": every second pixel, new channels filled with zeros, no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` subsampled and padded, half of the zeros before and half after."""
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


def cifar_resnet(
    blocks: int, num_classes: int = 10, width: int = 16, stem_stride: int = 1
) -> nn.Sequential:
    """Build a CIFAR ResNet of depth ``6 * blocks + 2`` (He et al., arXiv:1512.03385).

    It has ``blocks`` residual blocks in each of three stages. The first stage has ``width``
    channels, and each further one twice as many as the one before. A ``stem_stride`` of 2 makes it
    four times cheaper. Layers are named as in the published checkpoints
    (github.com/akamaster/pytorch_resnet_cifar10).

    Examples
    --------
    >>> sum(p.numel() for p in cifar_resnet(3).parameters())  # "0.27M" in the paper's table 6
    269722
    """

    def stage(before: int, channels: int) -> nn.Sequential:
        stride = channels // before
        shortcut = None if stride == 1 else _PadShortcut(channels - before, stride)
        rest = [BasicBlock(channels, channels) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(before, channels, stride, shortcut), *rest)

    network = nn.Sequential(
        OrderedDict(
            conv1=conv3x3(3, width, stem_stride),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
            layer1=stage(width, width),
            layer2=stage(width, 2 * width),
            layer3=stage(2 * width, 4 * width),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(4 * width, num_classes),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def _register(
    name: str,
    build: Callable[[int], nn.Module],
    location: str | Path,
    source_classes: Callable[[], SourceClasses],
    **scaling: Any,  # mean and std where they are not those of ImageNet
) -> None:
    known = CIFAR_RESNETS[name]
    prepared = Preprocessing(resize=known.image_size, crop=known.image_size, **scaling)
    weights = PublishedWeights(known.weights, location, prepared, source_classes, known.trained_on)
    MODELS.register(
        Architecture(
            name=name,
            build=build,
            classifier="linear",
            published={"DEFAULT": weights, weights.name: weights},
            file_preprocessing=prepared,
            default_layer="avgpool",
        )
    )


_ADDRESS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# First digits of the SHA-256, which are part of the file names.
_SHA256 = {20: "12fca82f", 32: "d509ac18", 44: "014dd654", 56: "4bfd9763", 110: "1d1ed7c2"}
_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

# As published with the checkpoints: ImageNet's mean and standard deviation, no resizing.
for _depth, _digits in _SHA256.items():
    _register(
        f"cifar_resnet{_depth}",
        partial(cifar_resnet, (_depth - 2) // 6),
        f"{_ADDRESS}resnet{_depth}-{_digits}.th",
        lambda: SourceClasses(ids=_CLASSES, names=_CLASSES),
    )

# 14 layers, 692,702 parameters. The first convolution has stride 2 because glyphs of 8 x 8 pixels
# and more are enlarged to 32; at full resolution the network took 1.8 times as long with a quarter
# of the parameters.
_register(
    "glyphnet",
    partial(cifar_resnet, 2, width=32, stem_stride=2),
    GLYPHNET,
    lambda: SourceClasses.load("glyphs"),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)
