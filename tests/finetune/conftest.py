"""Tiny real material: images whose colour tells the class, and a small network's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featpipe.backbones.glyphnet import build
from featpipe.evaluation.result import Result
from featpipe.steps.old import Context, FinetuneStep
from featpipe.workspace import Workspace

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small residual network, as a pretrained one would have them."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
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
def finetune(context: Context, weights: Path, images: Path) -> Callable[..., Result]:
    """Run the step on the tiny material; options replace the defaults."""

    def run(**options: Any) -> Result:
        settings = {
            "model": "glyphnet",
            "weights": str(weights),
            "dataset": f"npz:{images}",
            "epochs": 3,
            "batch_size": 8,
            "validation": 0.3,
            "device": "cpu",
            **options,
        }
        outcome = FinetuneStep.from_mapping(settings).run(context)
        return Result.load(outcome.paths[0])

    return run
