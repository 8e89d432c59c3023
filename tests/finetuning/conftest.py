"""Tiny real material: images whose colour tells the class, a small network's weights, vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.evaluation.result import Result
from featpipe.finetuning.nets import Trunk
from featpipe.finetuning.step import Finetune
from featpipe.finetuning.training import HeadClassifier
from featpipe.steps import Context
from featpipe.workspace import Workspace

CLASSES = ("red", "green", "blue")
CLOCK = ("seconds", "images_per_s")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small residual network, as a pretrained one would have them."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MODELS.get("glyphnet").build(62)
        network.train()(torch.randn(8, 3, 32, 32))  # running statistics that are not the start's
    save_file({n: v.clone() for n, v in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of three classes, 32 × 32, in the test split every third one."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    pixels = rng.integers(0, 120, (30, 32, 32, 3))
    pixels[np.arange(30), :, :, labels] += 60
    path = tmp_path_factory.mktemp("images") / "colours.npz"
    split = np.where(np.arange(30) < 21, "train", "test")
    np.savez(path, images=pixels.astype(np.uint8), labels=labels, classes=CLASSES, split=split)
    return path


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(tmp_path / "workspace"))


@pytest.fixture
def make_step(weights: Path, images: Path) -> Callable[..., Finetune]:
    """Make the step for the tiny material; options replace the defaults."""

    def make(**options: Any) -> Finetune:
        settings = {
            "model": "glyphnet",
            "weights": str(weights),
            "dataset": f"npz:{images}",
            "epochs": 3,
            "batch_size": 8,
            "validation": 0.3,
            "device": "cpu",
        }
        return Finetune.from_mapping({**settings, **options})

    return make


@pytest.fixture
def finetune(context: Context, make_step: Callable[..., Finetune]) -> Callable[..., Result]:
    """Run the step on the tiny material."""
    return lambda **options: Result.load(make_step(**options).run(context).paths[0])


@pytest.fixture
def without_clock() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """A history without what the clock wrote into it."""
    return lambda lines: [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Sixty vectors of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    centres = rng.normal(size=(3, 8)) * 2
    return (centres[y] + rng.normal(size=(60, 8))).astype(np.float32), y


@pytest.fixture
def estimator() -> Callable[..., HeadClassifier]:
    """Make an estimator on vectors: the training loop without a network worth the name."""
    trunk = Trunk(
        "toy",
        nn.Sequential(),
        8,
        True,
        Preprocessing(resize=32, crop=32),
        {"model": "toy"},
        True,
        torch.device("cpu"),
    )

    def make(head: str = "linear", **settings: Any) -> HeadClassifier:
        defaults = {"max_epochs": 4, "batch_size": 16, "lr": 0.01, "validation": 0.2}
        network = {
            "module__trunk": trunk,
            "module__unfreeze": "all",
            "module__head": head,
            "module__n_classes": 3,
        }
        return HeadClassifier(**{**defaults, **network, **settings})

    return make
