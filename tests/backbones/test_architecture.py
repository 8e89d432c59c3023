"""What is known of a model without torch is what its architecture says."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torchvision import models

from featpipe.backbones import CIFAR_RESNETS, MODELS, TORCHVISION, automatic


@pytest.mark.parametrize("name", [*TORCHVISION, *CIFAR_RESNETS])
def test_automatic_choices_are_those_of_the_architecture(name: str) -> None:
    architecture = MODELS.get(name)
    for weights in [*architecture.published, "weights.safetensors"]:
        assert automatic(name, weights) == architecture.automatic(weights)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_default_is_ours(name: str) -> None:
    published = MODELS.get(name).published
    assert published["DEFAULT"].name == models.get_model_weights(name).DEFAULT.name
    assert set(published) == {"DEFAULT", *models.get_model_weights(name).__members__}


@pytest.mark.parametrize(
    ("model", "expected"), [("convnet", (64, "hidden")), ("resnet9", (32, "pool"))]
)
def test_a_model_without_published_weights_is_asked(model: str, expected: tuple[int, str]) -> None:
    chosen = automatic(model, "weights.pt")
    assert (chosen.image_size, chosen.layer, chosen.margin) == (*expected, False)


def test_automatic_choices_are_known_without_torch() -> None:
    code = (
        "import sys; from featpipe.backbones import automatic;"
        "automatic('resnet20'); automatic('resnet50'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
