"""CIFAR ResNets are those of the paper."""

from __future__ import annotations

import pytest
import torch

from featpipe.backbones import MODELS


def parameters(network: torch.nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ("depth", "published_millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_cifar_resnets_have_the_papers_size(depth: int, published_millions: float) -> None:
    network = MODELS.get(f"resnet{depth}").on_meta(10)
    digits = 1 if depth == 110 else 2
    assert round(parameters(network) / 1e6, digits) == published_millions


def test_a_cifar_resnet_counts_as_deep_as_its_name() -> None:
    for depth in (20, 32, 44, 56, 110):
        network = MODELS.get(f"cifar_resnet{depth}").on_meta(10)
        weighted = [
            m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
        ]
        assert len(weighted) == depth
