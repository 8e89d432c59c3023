"""An estimator on vectors: the whole training loop without a network worth the name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.finetune.classifier import HeadClassifier
from featpipe.finetune.module import NetworkFactory
from featpipe.finetune.stages import Cut
from featpipe.finetune.trunk import Trunk

N_CLASSES = 3


def factory(head: str = "linear", n_classes: int = N_CLASSES) -> NetworkFactory:
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
    return NetworkFactory(trunk, Cut((), (), ()), head, n_classes)


def rows(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % N_CLASSES
    centres = rng.normal(size=(N_CLASSES, 8)) * 2
    return (centres[y] + rng.normal(size=(n, 8))).astype(np.float32), y


def estimator(**settings: Any) -> HeadClassifier:
    head = settings.pop("head", "linear")
    defaults = {"max_epochs": 4, "batch_size": 16, "lr": 0.01, "validation": 0.2}
    return HeadClassifier(factory(head), **{**defaults, **settings})


def numbers(fitted: HeadClassifier) -> list[dict[str, Any]]:
    """The history without what the clock wrote into it."""
    clock = ("seconds", "images_per_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in fitted.epochs_]
