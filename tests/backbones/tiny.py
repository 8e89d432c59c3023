"""Tiny networks of transformers with random weights, in the folders that the library writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
EXACT = {"size": {"height": 32, "width": 32}}
SQUASH = {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}
NAMES = {0: "ant", 1: "bee", 2: "cat"}
# Model and configuration of transformers, the image processor and its settings.
HF: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "vit": ("ViTModel", TINY, "ViTImageProcessor", EXACT),
    "labelled": (
        *("ViTForImageClassification", {**TINY, "id2label": NAMES}),
        *("DeiTImageProcessor", SQUASH),
    ),
    "dinov2": ("Dinov2Model", TINY, "BitImageProcessor", CROP),
    "registers": (
        *("Dinov2WithRegistersModel", {**TINY, "num_register_tokens": 4}),
        *("BitImageProcessor", CROP),
    ),
    "clip": ("CLIPVisionModel", TINY, "CLIPImageProcessor", CROP),
    "convnext": (
        *("ConvNextModel", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
        *("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    ),
    "swin": (
        "SwinModel",
        {
            **{"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
            **{"window_size": 4, "image_size": 32, "patch_size": 4},
        },
        *("ViTImageProcessor", EXACT),
    ),
}


def save_tiny(kind: str, folder: Path, seed: int = 0, about: Any = None) -> Path:
    """Write a tiny network of transformers and its image processor."""
    transformers = pytest.importorskip("transformers")
    model, config, processor, how = about or HF[kind]
    torch.manual_seed(seed)
    built = getattr(transformers, model)
    network = built(built.config_class(**config)).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.2)
    network.save_pretrained(folder)
    getattr(transformers, processor)(**how).save_pretrained(folder)
    return folder
