"""Small image datasets, weights and backbones for tests: real files, drawn with a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from featpipe.backbones import MODELS, load_backbone
from featpipe.backbones.base import Backbone

MODEL = "cifar_resnet20"


def weights_file(path: Path, seed: int = 0, num_classes: int = 10, model: str = MODEL) -> Path:
    """Write random weights, by default of the smallest backbone: 32 × 32 pixels, 64 features."""
    save_file(random_state(model, num_classes, seed), path)
    return path


def pictures(n: int, side: int = 40, seed: int = 0) -> np.ndarray:
    """Return images (n, side, side, 3), uint8: coarse noise, so that resizing leaves something."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, side // 4, side // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def photo_folder(
    folder: Path, classes: tuple[str, ...] = ("ant", "bee", "cät"), n: int = 4
) -> Path:
    """Write ``n`` PNG files for each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row, picture in enumerate(pictures(n, seed=number)):
            Image.fromarray(picture).save(folder / name / f"{row}.png")
    return folder


def photo_archive(path: Path, n: int, side: int = 32) -> Path:
    """Write an npz dataset of ``n`` images in three classes."""
    np.savez(path, images=pictures(n, side), labels=np.arange(n) % 3)
    return path


def random_state(model: str, num_classes: int = 10, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a freshly built network, batch norm's running values included."""
    torch.manual_seed(seed)
    network = MODELS.get(model).build(num_classes)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return state


def random_backbone(model: str, folder: Path, num_classes: int = 10, **options: object) -> Backbone:
    """Return a backbone on the CPU with random weights, loaded from a file as a user would."""
    path = weights_file(folder / f"{model}.safetensors", 0, num_classes, model)
    return load_backbone(model, str(path), device="cpu", **options)  # type: ignore[arg-type]


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    """Return uint8 images (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
