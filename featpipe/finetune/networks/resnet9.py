"""ResNet-9: the small fast network of CIFAR-10 training contests."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing


def convolution(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """Return 3 × 3 convolution, batch norm, ReLU and, on request, 2 × 2 maximum pooling."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolutions and the shortcut around them, with dropout behind."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = convolution(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what the convolutions make of it."""
        return x + self.dropout(self.second(self.first(x)))


class Scale(nn.Module):
    """Multiplies by a constant.

    Maxima of 512 channels make logits of ±10 and more, on which no usual learning rate is stable;
    Page's network shrinks them by this factor. In front of a linear layer without bias it is the
    same.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller features."""
        return self.factor * x


def resnet9(num_classes: int = 10, dropout: float = 0.1) -> nn.Sequential:
    """Build ResNet-9 for 32 × 32 pixels.

    prep 64 → 128 + residual → 256 → 512 + residual → 4 × 4 maximum pooling → linear without bias,
    logits times ⅛, as in D. Page, *How to train your ResNet* (2018), with a batch norm of its own
    in prep.

    Parameters
    ----------
    num_classes : int
    dropout : float
        Share of activations dropped in the residual blocks.

    Examples
    --------
    >>> sum(p.numel() for p in resnet9().parameters())
    6573120
    """
    return nn.Sequential(
        OrderedDict(
            prep=convolution(3, 64),
            layer1=nn.Sequential(convolution(64, 128, pool=True), Residual(128, dropout)),
            layer2=convolution(128, 256, pool=True),
            layer3=nn.Sequential(convolution(256, 512, pool=True), Residual(512, dropout)),
            pool=nn.AdaptiveMaxPool2d(1),  # 4 × 4 for images of 32 × 32
            flatten=nn.Flatten(),
            scale=Scale(0.125),
            fc=nn.Linear(512, num_classes, bias=False),
        )
    )


architecture = Architecture(
    "resnet9",
    build=resnet9,
    classifier="fc",
    published={},
    file_preprocessing=Preprocessing(resize=32, crop=32),
    default_layer="pool",
)
