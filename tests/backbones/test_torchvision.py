"""torchvision:NAME: its classification networks, their classifiers and published weights."""

from __future__ import annotations

import pytest
from torchvision import models

from featpipe.backbones import MODELS, TORCHVISION, architecture_of, load_backbone
from featpipe.errors import UnknownNameError, UsageError


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_default_is_ours(name: str) -> None:
    published = MODELS.get(name).published
    assert published["DEFAULT"].name == models.get_model_weights(name).DEFAULT.name
    assert set(published) == {"DEFAULT", *models.get_model_weights(name).__members__}


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet"),
        *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
        *("regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0"),
        *("swin_t", "vgg11", "vit_b_32", "wide_resnet50_2"),
    ],
)
def test_the_classifier_is_the_last_layer_with_weights(name: str) -> None:
    architecture = architecture_of(f"torchvision:{name}")
    network = architecture.on_meta(7)
    parts = network.named_modules()
    weighted = [part for part, module in parts if any(True for _ in module.parameters(False))]
    assert architecture.classifier == weighted[-1]
    assert network.get_submodule(architecture.classifier).weight.shape[0] == 7


@pytest.mark.parametrize(
    ("name", "weights", "resize", "crop", "interpolation"),
    [
        ("resnet50", "IMAGENET1K_V1", 256, 224, "bilinear"),
        ("resnet50", "DEFAULT", 232, 224, "bilinear"),
        ("inception_v3", "DEFAULT", 342, 299, "bilinear"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384, 384, "bicubic"),
    ],
)
def test_images_are_prepared_as_the_weights_ask(
    name: str, weights: str, resize: int, crop: int, interpolation: str
) -> None:
    published = architecture_of(f"torchvision:{name}").published[weights]
    how = published.preprocessing
    assert (how.resize, how.crop, how.interpolation) == (resize, crop, interpolation)
    assert published.trained_on == "ImageNet-1k"
    assert len(published.source_classes().ids) == 1000


def test_what_does_not_classify_is_no_model() -> None:
    with pytest.raises(UnknownNameError, match="no classification network"):
        architecture_of("torchvision:deeplabv3_resnet50")


def test_channels_that_come_last_are_kept() -> None:
    backbone = load_backbone("torchvision:swin_t", "none", "cpu", 64, runtime="torch")
    assert backbone.dim("features.1") == (96,)
    assert backbone.dim("features.1:map") == (16, 16, 96)
    with pytest.raises(UsageError, match="no class token"):
        backbone.dim("features.1:cls")
