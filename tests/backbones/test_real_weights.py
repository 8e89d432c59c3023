"""Published weights on real images; docs/backbones.md says how to check all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.backbones import MODELS, load_backbone
from featpipe.errors import WeightsError

pytestmark = pytest.mark.real


def test_a_cifar_resnet_knows_the_images_it_was_trained_on(shared: Path) -> None:
    backbone = load_backbone("resnet20", str(shared / "weights" / "resnet20-cifar10.th"), "cpu")
    data = np.load(shared / "data" / "cifar10" / "train_first4000.npz", allow_pickle=False)
    images = [backbone.preprocessing.prepare(image) for image in data["images"][:1000]]
    logits = backbone.embed(torch.stack(images), ("logits",))["logits"]
    assert backbone.source_classes is not None
    assert list(backbone.source_classes.names) == data["classes"].tolist()
    assert (logits.argmax(1) == data["labels"][:1000]).mean() >= 0.99


@pytest.mark.parametrize("depth", [20, 56])
def test_the_published_files_carry_the_hash_that_is_expected_of_them(
    shared: Path, depth: int
) -> None:
    weights = str(shared / "weights" / f"resnet{depth}-cifar10.th")
    backbone = load_backbone(f"cifar_resnet{depth}", weights, "cpu")
    address = str(MODELS.get(backbone.name).published["DEFAULT"].location)
    assert address.endswith(f"resnet{depth}-{backbone.weights.sha256[:8]}.th")


def test_resnet18_recognises_imagenet_photographs(shared: Path) -> None:
    # 66.2 % on all 500; among 100 of them chance alone moves that by 5 points either way.
    weights = str(shared / "weights" / "resnet18-imagenet-pqf.safetensors")
    backbone = load_backbone("resnet18", weights, "cpu")
    files = sorted((shared / "data" / "imagenette-val500").glob("*/*.JPEG"))[::5]
    assert len(files) == 100
    images = [
        backbone.preprocessing.prepare(np.asarray(Image.open(file).convert("RGB")))
        for file in files
    ]
    logits = backbone.embed(torch.stack(images), ("logits",))["logits"]
    assert backbone.source_classes is not None
    guessed = [backbone.source_classes.ids[column] for column in logits.argmax(1)]
    right = np.mean([guess == file.parent.name for guess, file in zip(guessed, files, strict=True)])
    assert 0.55 <= right <= 0.78


def test_a_batch_of_64_photographs_gives_what_each_gives_alone(shared: Path) -> None:
    weights = str(shared / "weights" / "resnet18-imagenet-pqf.safetensors")
    backbone = load_backbone("resnet18", weights, "cpu", image_size=96)
    planes = np.fromfile(shared / "data" / "stl10_binary" / "train_X.bin", np.uint8, 64 * 27648)
    photographs = planes.reshape(64, 3, 96, 96).transpose(0, 3, 2, 1)
    images = torch.stack([backbone.preprocessing.prepare(image) for image in photographs])
    together = backbone.embed(images)["avgpool"]
    alone = np.concatenate([backbone.embed(image[None])["avgpool"] for image in images[::8]])
    assert np.abs(together[::8] - alone).max() < 1e-4 * np.abs(together).max()


def test_the_wrong_model_for_real_weights_is_refused(shared: Path) -> None:
    weights = str(shared / "weights" / "resnet18-imagenet-pqf.safetensors")
    with pytest.raises(WeightsError, match="weights are not for resnet50"):
        load_backbone("resnet50", weights, "cpu")
