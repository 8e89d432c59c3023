"""A module of the user's: what its features depend on, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from featpipe.api import evaluate, extract
from featpipe.backbones import load_backbone
from featpipe.backbones.module import register_module
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.prediction import open_predictor, predict
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests.images import photo_folder

SIDE = 16


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*layers, nn.Flatten())


def prepare(side: int = SIDE) -> v2.Compose:
    scaled = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.ToImage(), scaled])


@pytest.fixture
def embed(tmp_path: Path) -> Any:
    """Return a function that embeds twelve photographs with a module."""
    folder = photo_folder(tmp_path / "photos")

    def run(**how: Any) -> FeatureStore:
        given = {"backbone": network(), "transform": prepare(), "name": "mine", **how}
        (store,) = extract(f"folder:{folder}", workspace=tmp_path, **given)
        return store

    return run


def test_its_output_is_stored_and_it_is_left_alone(embed: Any, tmp_path: Path) -> None:
    module = network().train()
    store = embed(backbone=module)
    assert module.training
    assert all(value.requires_grad for value in module.parameters())
    picture = Image.open(tmp_path / "photos" / store.ids[0]).convert("RGB")
    with torch.inference_mode():
        wanted = module.eval()(prepare()(picture)[None]).numpy()[0]
    np.testing.assert_allclose(store.features()[0], wanted, rtol=1e-4, atol=1e-5)
    assert (store.layers, store.manifest["backbone"]["model"]) == (("output",), "mine")


def test_the_store_is_made_again_only_where_something_changed(embed: Any) -> None:
    first = embed().path
    assert embed().path == first
    changes = [
        {"backbone": network(1)},
        {"transform": prepare(20)},
        {"fingerprint": "version 2"},
        {"layer": "2"},
    ]
    paths = [embed(**change).path for change in changes]
    assert len({first, *paths}) == 1 + len(changes)


def test_a_preprocessing_serves_as_transform(embed: Any) -> None:
    store = embed(transform=Preprocessing(resize=SIDE, crop=SIDE))
    assert store.manifest["backbone"]["preprocessing"]["resize"] == SIDE


def test_a_probe_of_it_answers_while_the_module_is_there(embed: Any, tmp_path: Path) -> None:
    result = evaluate("centroid", embed(), workspace=tmp_path, protocol="holdout:0.5")
    (answer,) = predict(
        open_predictor(Workspace(tmp_path), result.name), [tmp_path / "photos" / "ant" / "0.png"]
    )
    assert answer.label in ("ant", "bee", "cät")


def test_openvino_makes_way_for_a_transform_and_says_so() -> None:
    pytest.importorskip("openvino")
    register_module(network(), prepare(96), "mine")
    backbone = load_backbone("mine", device="cpu")
    assert backbone.runtime.name == "openvino"
    facts = backbone.prepare(("output",))
    assert facts["runtime"] == "torch"
    assert "transform" in facts["runtime_because"]


def test_a_transform_that_does_not_describe_itself_needs_a_fingerprint(embed: Any) -> None:
    def plain(image: Image.Image) -> torch.Tensor:
        return prepare()(image)

    with pytest.raises(UsageError, match="does not describe itself") as caught:
        embed(transform=plain)
    assert "fingerprint=" in str(caught.value)
    assert embed(transform=plain, fingerprint="one").layers == ("output",)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (v2.Compose([v2.ToImage()]), "floating-point tensor"),
        (v2.Compose([v2.Resize(SIDE), v2.PILToTensor()]), "floating-point tensor"),
        (v2.Compose([v2.Resize(SIDE)]), "floating-point tensor"),
    ],
)
def test_what_a_network_cannot_take_is_refused(embed: Any, transform: Any, says: str) -> None:
    with pytest.raises(UsageError, match="does not return a valid input") as caught:
        embed(transform=transform)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "timm", "my:own"])
def test_a_name_that_is_taken_is_refused(embed: Any, name: str) -> None:
    with pytest.raises(UsageError, match="cannot have the name"):
        embed(name=name)


@pytest.mark.parametrize("how", [{"transform": None}, {"model": "resnet18"}, {"image_size": 32}])
def test_half_a_module_is_refused(embed: Any, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        embed(**how)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda images: images.sum(), "Odd has no pooled output"),
        (lambda images: images.sum(dim=(1, 2, 3)), "a single number per image"),
        (lambda images: "no tensor", "Odd has no pooled output"),
        (lambda images: images[:, None], "not clear how to pool"),
    ],
)
def test_what_is_no_vector_tokens_or_map_is_refused(embed: Any, made: Any, says: str) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return made(images)

    with pytest.raises(UsageError, match=says) as caught:
        embed(backbone=Odd(), name="Odd")
    assert "layer" in caught.value.details["next"]


def test_the_network_is_traced_before_threads_call_the_transform(
    embed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is traced, the modules of other threads are, too: those of a transform."""
    steps: list[str] = []

    class Told(nn.Module):
        def forward(self, image: Image.Image) -> torch.Tensor:
            steps.append("transform")
            return torch.as_tensor(prepare()(image))

    def fold(module: nn.Module) -> nn.Module:
        steps.append("trace")
        return module

    monkeypatch.setattr("featpipe.backbones.runtime.fold_batch_norm", fold)
    transform = Told()
    embed(transform=transform, runtime="torch")
    tried = steps.index("trace")
    assert steps.count("trace") == 1
    assert steps[:tried] == ["transform"] * tried
    assert len(steps) == tried + 1 + 12, "no image is read before"


def test_a_network_that_fails_says_how(embed: Any) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            raise ValueError("odd")

    with pytest.raises(UsageError, match="failed on an image of 16 × 16") as caught:
        embed(backbone=Odd(), name="Odd")
    assert "ValueError: odd" in str(caught.value)


def test_a_random_transform_is_refused(embed: Any) -> None:
    scaled = v2.ToDtype(torch.float32, scale=True)
    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.ToImage(), scaled])
    with pytest.raises(UsageError, match="transform is random"):
        embed(transform=transform)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"backbone": "resnet18"}, "is not a torch.nn.Module"),
        ({"backbone": nn.Identity}, "the class Identity"),
        ({"transform": "resize"}, "cannot be called"),
    ],
)
def test_what_is_no_module_or_transform_is_named(embed: Any, how: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        embed(**how)
