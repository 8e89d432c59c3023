"""Small image datasets and weights for tests: real files, drawn with a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from tests.backbones.making import random_state

MODEL = "cifar_resnet20"


def weights_file(path: Path, seed: int = 0, num_classes: int = 10) -> Path:
    """Write random weights of the smallest backbone: 32 × 32 pixels, 64 features."""
    save_file(random_state(MODEL, num_classes, seed), path)
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
