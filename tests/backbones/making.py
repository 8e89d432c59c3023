"""Real weights files and backbones for tests: random numbers, made with a seed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from featpipe.backbones import MODELS, load_backbone
from featpipe.backbones.base import Backbone


def random_state(model: str, num_classes: int = 10, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a freshly built network, batch norm's running values included."""
    torch.manual_seed(seed)
    network = MODELS.load(model).build(num_classes)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return state


def random_backbone(model: str, folder: Path, num_classes: int = 10, **options: object) -> Backbone:
    """Return a backbone on the CPU with random weights, loaded from a file as a user would."""
    path = folder / f"{model}.safetensors"
    save_file({k: v.contiguous() for k, v in random_state(model, num_classes).items()}, path)
    return load_backbone(model, str(path), device="cpu", **options)  # type: ignore[arg-type]


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    """Return uint8 images (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
