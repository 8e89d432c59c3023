from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.backbones.base import Backbone
from featpipe.errors import UnknownNameError, UsageError
from featpipe.fingerprint import of_mapping
from featpipe.progress import Event, Progress
from tests.images import random_backbone, random_images


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return random_backbone("resnet18", tmp_path_factory.mktemp("weights"), 1000, image_size=64)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return random_backbone("cifar_resnet20", tmp_path_factory.mktemp("weights"))


def out_of_place(backbone: Backbone, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """All activations of a ResNet-18, computed by hand without a layer that works in place."""
    net = backbone.network
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        seen["conv1"] = net.conv1(backbone.preprocessing.normalise(images))
        seen["bn1"] = net.bn1(seen["conv1"])
        x = net.maxpool(torch.relu(seen["bn1"]))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for number, block in enumerate(net.get_submodule(stage)):
                before = block.downsample(x) if block.downsample else x
                inner = torch.relu(block.bn1(block.conv1(x)))
                seen[f"{stage}.{number}.conv2"] = block.conv2(inner)
                seen[f"{stage}.{number}.bn2"] = block.bn2(seen[f"{stage}.{number}.conv2"])
                x = torch.relu(seen[f"{stage}.{number}.bn2"] + before)
                seen[f"{stage}.{number}.relu"] = seen[f"{stage}.{number}"] = x
            seen[stage] = x
        seen["avgpool"] = net.avgpool(x)
        seen["logits"] = net.fc(seen["avgpool"].flatten(1))
    return seen


@pytest.mark.parametrize("convolutions", [False, True])
def test_every_layer_gives_what_the_network_computes_there(
    resnet18: Backbone, convolutions: bool
) -> None:
    # torchvision's activations work in place and would overwrite what a hook only refers to; and
    # what a convolution gives must not be mixed up with what its folded batch norm gives.
    images = random_images(2, 64)
    expected = {
        name: value
        for name, value in out_of_place(resnet18, images).items()
        if convolutions or "conv" not in name
    }
    maps = tuple(f"{name}:map" for name, value in expected.items() if value.ndim == 4)
    features = resnet18.embed(images, (*expected, *maps))
    for name, value in expected.items():
        whole = value.numpy()
        mean = whole.mean(axis=(2, 3)) if value.ndim == 4 else whole
        scale = np.abs(whole).max()
        np.testing.assert_allclose(features[name], mean, rtol=1e-4, atol=1e-5 * scale)
        if value.ndim == 4:
            np.testing.assert_allclose(features[f"{name}:map"], whole, rtol=1e-4, atol=1e-5 * scale)


def test_maps_keep_their_shape(resnet18: Backbone) -> None:
    assert resnet18.dim("layer3:map") == (256, 4, 4)
    assert resnet18.dim("layer3") == (256,)
    assert resnet18.embed(random_images(1, 64), ("layer3:map",))["layer3:map"].shape == (
        1,
        256,
        4,
        4,
    )


@pytest.mark.parametrize("count", [2, 7, 64])
def test_features_do_not_depend_on_the_batch_size(resnet18: Backbone, count: int) -> None:
    images = random_images(count, 64)
    together = resnet18.embed(images, ("layer2", "avgpool", "logits"))
    alone = [resnet18.embed(image[None], tuple(together)) for image in images]
    for layer, features in together.items():
        one_by_one = np.concatenate([embedded[layer] for embedded in alone])
        difference = np.abs(features - one_by_one).max() / np.abs(features).max()
        assert difference < 1e-4, layer


def test_batch_norm_does_not_see_the_other_images(small: Backbone) -> None:
    image = random_images(1, 32)
    among_dark = torch.cat([image, torch.zeros(7, 3, 32, 32, dtype=torch.uint8)])
    alone, among = small.embed(image)["avgpool"][0], small.embed(among_dark)["avgpool"][0]
    np.testing.assert_allclose(alone, among, rtol=1e-4, atol=1e-6)


def test_the_network_is_frozen(small: Backbone) -> None:
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    small.embed(random_images(8, 32), ("avgpool", "logits"))
    assert not any(module.training for module in small.network.modules())
    assert not any(value.requires_grad for value in small.network.parameters())
    after = small.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_nothing_stays_hooked_after_an_error(small: Backbone) -> None:
    with pytest.raises(UnknownNameError):
        small.embed(random_images(2, 32), ("avgpool", "layer9"))
    small.embed(random_images(2, 32), ("layer1",))
    # A hook that stayed would end the pass after its layer.
    assert small.network(torch.zeros(2, 3, 32, 32)).shape == (2, small.num_classes)


def test_what_lies_behind_the_last_layer_is_not_run(resnet18: Backbone) -> None:
    ran: list[str] = []
    handles = [
        resnet18.network.get_submodule(name).register_forward_pre_hook(
            lambda _m, _i, name=name: ran.append(name)
        )
        for name in ("layer1", "layer2", "layer3", "layer4", "fc")
    ]
    try:
        # With a convolution asked for the network itself runs, not its folded copy.
        resnet18.embed(random_images(2, 64), ("layer2", "layer1.0.conv1"))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["layer1", "layer2"]


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("avgpol", "avgpool"), ("layer4.1.conv3", "layer4.1.conv"), ("logit", "logits")],
)
def test_an_unknown_layer_is_answered_with_the_nearest(
    resnet18: Backbone, layer: str, nearest: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}") as caught:
        resnet18.dim(layer)
    assert "layer1, layer2, layer3, layer4, avgpool" in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
    ],
)
def test_images_that_were_not_prepared_are_refused(small: Backbone, images: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"\(b, 3, 32, 32\)"):
        small.embed(images)


def test_no_images_give_no_rows(small: Backbone) -> None:
    features = small.embed(random_images(0, 32), ("avgpool", "layer3:map"))
    assert features["avgpool"].shape == (0, 64)
    assert features["layer3:map"].shape == (0, 64, 8, 8)


def test_the_description_names_everything_that_changes_the_numbers(tmp_path: Path) -> None:
    def described(model: str = "cifar_resnet20", num_classes: int = 10, **options: object) -> str:
        backbone = random_backbone(model, tmp_path, num_classes, **options)
        return of_mapping(backbone.describe())

    plain = described()
    assert described() == plain
    others = [
        described(num_classes=11),
        described(image_size=48),
        described(fit="whole"),
        described("cifar_resnet32"),
    ]
    assert len({plain, *others}) == 5


def test_the_description_is_plain_json(small: Backbone) -> None:
    description = small.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["weights"]["name"] == "cifar_resnet20.safetensors"
    assert len(description["weights"]["sha256"]) == 64


def test_another_image_size_changes_the_maps_only(tmp_path: Path) -> None:
    backbone = random_backbone("cifar_resnet20", tmp_path, image_size=48)
    assert backbone.dim("layer3:map") == (64, 12, 12)
    assert backbone.embed(random_images(2, 48))["avgpool"].shape == (2, 64)


def test_modules_with_parameters_are_all_reachable(resnet18: Backbone) -> None:
    leaves = [
        name
        for name, module in resnet18.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
    ]
    assert len(leaves) == 41
    assert all(resnet18.dim(name) for name in leaves)


def test_of_several_calls_the_last_output_counts(resnet18: Backbone) -> None:
    # Alone: nothing later in the network keeps the forward pass going past the first call.
    images = random_images(2, 64)
    alone = resnet18.embed(images, ("layer1.0.relu",))["layer1.0.relu"]
    block = resnet18.embed(images, ("layer1.0",))["layer1.0"]
    assert np.array_equal(alone, block)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([(96, 96)], "the whole image, since all have the same size, no larger"),
        ([(300, 400), None], "the centre crop that the weights expect"),
    ],
)
def test_what_fit_auto_means_is_said_where_it_means_something(
    tmp_path: Path, sizes: list[Any], said: str
) -> None:
    def notes(model: str) -> list[str]:
        events: list[Event] = []
        how: dict[str, Any] = {"runtime": "torch", "progress": Progress(events.append)}
        random_backbone(model, tmp_path, sizes=sizes, **how)
        return [event.message for event in events if "--fit auto" in event.message]

    (note,) = notes("resnet18")
    assert said in note
    assert notes("cifar_resnet20") == [], "its images have no margin at all"
