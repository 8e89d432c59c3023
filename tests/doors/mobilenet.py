"""MobileNetV3 for featpipe."""

from torchvision.models import mobilenet_v3_small

from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing

mobilenet = Architecture(
    name="mobilenet_v3_small",
    summary="Howard et al. 2019, 576 features",
    build=lambda num_classes: mobilenet_v3_small(num_classes=num_classes),
    classifier="classifier.3",
    file_preprocessing=Preprocessing(resize=36, crop=32),
    default_layer="avgpool",
)
