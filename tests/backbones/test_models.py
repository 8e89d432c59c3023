"""What every registered model promises; the registry is the list of tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from featpipe.backbones import GLYPHNET, MODELS, load_backbone, weights_file
from featpipe.backbones.base import layer_shapes
from featpipe.errors import UnknownNameError, WeightsError
from featpipe.labelmap import SourceClasses
from featpipe.registry import summary_of
from tests.images import random_backbone, random_images

# Those of at most 12 million parameters run for real; the others are looked at without memory.
SMALL = ("glyphnet", "resnet18", "cifar_resnet20", "cifar_resnet56")
BACKBONES = [name for name in MODELS.names() if getattr(MODELS.get(name), "published", None)]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_complete(name: str) -> None:
    architecture = MODELS.get(name)
    assert architecture.name == name
    assert "DEFAULT" in architecture.published
    for key, weights in architecture.published.items():
        assert key == key.upper()
        classes = weights.source_classes()
        assert len(set(classes.ids)) == len(classes.ids) == len(classes.names)
        assert weights.preprocessing.crop >= 32
    assert architecture.file_preprocessing.crop >= 32


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_are_known_without_running(name: str) -> None:
    architecture = MODELS.get(name)
    shapes = layer_shapes(architecture.on_meta(7), image_size=64)
    promised = re.search(r"(\d+) features", MODELS.summary(name))
    assert promised is not None
    assert shapes[architecture.default_layer][-1][0] == int(promised[1])
    assert shapes[architecture.classifier][-1] == (7,)
    stages = [shapes[stage][-1] for stage in ("layer1", "layer2", "layer3")]
    assert [b[0] / a[0] for a, b in pairwise(stages)] == [2, 2]
    assert [a[1] / b[1] for a, b in pairwise(stages)] == [2, 2]


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_is_registered_under_its_name_and_says_what_it_is(name: str) -> None:
    assert MODELS.get(name).name == name  # type: ignore[attr-defined]
    assert summary_of(MODELS.get(name))


@pytest.mark.parametrize("name", SMALL)
def test_embedding_keeps_its_promises(name: str, tmp_path: Path) -> None:
    backbone = random_backbone(name, tmp_path, num_classes=7, image_size=32)
    layers = ("conv1", "layer1", "layer2:map", "layer3", "avgpool", "logits")
    images = random_images(3, 32)
    features = backbone.embed(images, layers)
    assert tuple(features) == layers
    for layer, values in features.items():
        assert values.shape == (3, *backbone.dim(layer))
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.std() > 0
    again = backbone.embed(images, layers)
    assert all(np.array_equal(features[layer], again[layer]) for layer in layers)


def test_the_shipped_weights_are_small_and_say_what_they_know() -> None:
    assert GLYPHNET.stat().st_size <= 2_000_000
    with safe_open(GLYPHNET, "pt") as file:
        metadata = file.metadata()
    assert tuple(metadata["classes"]) == SourceClasses.load("glyphs").names
    assert json.loads(metadata["training"])["held_out_fonts_accuracy"] > 0.75


def test_names_are_listed_without_torch() -> None:
    code = (
        "import sys, featpipe.backbones as b; b.MODELS.names(); b.weights_file('glyphnet');"
        "heavy = {'torch', 'torchvision', 'sklearn', 'h5py', 'pandas'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnext50_32x4d'"):
        load_backbone("resnext50_32x4")


def test_published_and_embedded_weights_are_told_from_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.touch()
    assert weights_file("resnet18", str(file)) == file
    assert weights_file("resnet18", "IMAGENET1K_V1") is None
    assert weights_file("glyphnet", "default") == GLYPHNET


@pytest.mark.parametrize("missing", ["none.pth", "some/where", "some/where/weights.safetensors"])
def test_a_missing_weights_file_is_said(missing: str) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        load_backbone("resnet18", missing)


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a folder"):
        load_backbone("resnet18", str(tmp_path))
