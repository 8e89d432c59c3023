"""New last layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featpipe.finetune import HEADS
from featpipe.steps import grammar


class Head(nn.Module):
    """The last layers: what the losses compare by distance, then one output per class.

    Parameters
    ----------
    hidden : nn.Module
        From the network's features to those in front of the last layer.
    classifier : nn.Linear
    """

    def __init__(self, hidden: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.hidden = hidden
        self.classifier = classifier

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and the features in front of the last layer (n, d)."""
        features = self.hidden(x)
        return self.classifier(features), features


def linear(n_features: int, n_classes: int, neurons: int, *, bias: bool = True) -> Head:
    """Return a single linear layer."""
    return Head(nn.Identity(), nn.Linear(n_features, n_classes, bias=bias))


def mlp(n_features: int, n_classes: int, neurons: int, *, bias: bool = True) -> Head:
    """Return a hidden layer with ReLU and a linear layer."""
    hidden = nn.Sequential(nn.Linear(n_features, neurons), nn.ReLU())
    return Head(hidden, nn.Linear(neurons, n_classes, bias=bias))


def make_head(spec: str, n_features: int, n_classes: int, *, bias: bool, seed: int) -> Head:
    """Build a head with random weights.

    Parameters
    ----------
    spec : str
        ``"linear"`` or ``"mlp:50"``.
    n_features, n_classes : int
    bias : bool
        Whether the last layer has one; a network may be made without.
    seed : int

    Raises
    ------
    UsageError
        If the number of neurons is missing or wrong.
    UnknownNameError
        If there is no such head.

    Examples
    --------
    >>> make_head("mlp:50", 2048, 10, bias=True, seed=0).classifier
    Linear(in_features=50, out_features=10, bias=True)
    """
    maker = HEADS.load(spec.partition(":")[0])
    neurons = grammar.head(spec)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: Head = maker(n_features, n_classes, neurons, bias=bias)
    return head
