"""The embedded backbone: a small CIFAR-style ResNet, trained on drawn glyphs, always there."""

from __future__ import annotations

from featpipe.backbones import GLYPHNET, MODELS
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.backbones.cifar_resnet import CifarResNet
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.labelmap import SourceClasses

NUM_CLASSES = 62
PREPROCESSING = Preprocessing(resize=32, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def build(num_classes: int = NUM_CLASSES) -> CifarResNet:
    """Return the network, untrained: 14 layers, 128 features, 692,702 parameters.

    Its first convolution has stride 2. Glyphs are seen from 8 x 8 pixels up, enlarged to 32: at
    full resolution the network took 1.8 times as long with a quarter of the parameters.
    """
    return CifarResNet(blocks=2, num_classes=num_classes, width=32, stem_stride=2)


_weights = PublishedWeights(
    "GLYPHS_V1", GLYPHNET, PREPROCESSING, lambda: SourceClasses.load("glyphs")
)
MODELS.register(
    Architecture(
        name="glyphnet",
        summary="the embedded one: letters and digits, 128 features, always there",
        build=build,
        classifier="linear",
        published={"DEFAULT": _weights, "GLYPHS_V1": _weights},
        file_preprocessing=PREPROCESSING,
    )
)
