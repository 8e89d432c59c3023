"""Small residual networks for 32 x 32 images (He et al. 2015, section 4.2)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses


class PadShortcut(nn.Module):
    """Shortcut "option A": every second pixel, new channels filled with zeros, no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` subsampled and padded, half of the zeros before and half behind."""
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and the shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else PadShortcut(out_channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of depth ``6 * blocks + 2``.

    The names of its layers are those of the published checkpoints
    (github.com/akamaster/pytorch_resnet_cifar10), so these load without translation.

    Parameters
    ----------
    blocks : int
        Residual blocks in each of the three stages: 3, 5, 7, 9, 18 for ResNet-20, 32, 44, 56, 110.
    num_classes : int
    width : int
        Channels of the first stage; each further stage doubles them.
    stem_stride : int
        Stride of the first convolution; 2 makes the network four times cheaper.

    References
    ----------
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385.

    Examples
    --------
    >>> sum(p.numel() for p in CifarResNet(3).parameters())  # "0.27M" in the paper's table 6
    269722
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, width: int = 16, stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, width, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, num_classes) for images of shape (n, 3, height, width)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


# As published with the checkpoints: ImageNet's mean and standard deviation, no resizing.
_PREPROCESSING = Preprocessing(resize=32, crop=32)
_ADDRESS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

# The digits in the files' names are the first of their SHA-256; the test errors in percent are
# those of the repository's table.
for _depth, _sha256, _error in (
    (20, "12fca82f", 8.27),
    (32, "d509ac18", 7.37),
    (44, "014dd654", 6.90),
    (56, "4bfd9763", 6.61),
    (110, "1d1ed7c2", 6.32),
):
    _weights = PublishedWeights(
        "CIFAR10_V1",
        f"{_ADDRESS}resnet{_depth}-{_sha256}.th",
        _PREPROCESSING,
        lambda: SourceClasses(ids=_CLASSES, names=_CLASSES),
        accuracy=100 - _error,
    )
    MODELS.register(
        Architecture(
            name=f"cifar_resnet{_depth}",
            summary="He et al. 2015 section 4.2, CIFAR-10, 32 x 32 pixels, 64 features",
            build=partial(CifarResNet, (_depth - 2) // 6),
            classifier="linear",
            published={"DEFAULT": _weights, "CIFAR10_V1": _weights},
            file_preprocessing=_PREPROCESSING,
        )
    )
