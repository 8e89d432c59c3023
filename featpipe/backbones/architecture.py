"""What a model's name means: how to build the network, and which weights are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UnknownNameError, UsageError
from featpipe.labelmap import SourceClasses
from featpipe.registry import did_you_mean


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published for an architecture.

    Attributes
    ----------
    name : str
        How the user asks for them (``"IMAGENET1K_V2"``).
    location : str or Path
        Address to download them from, or a file shipped with the package.
    preprocessing : Preprocessing
        How images were prepared when they were trained.
    source_classes : callable
        Returns the classes of their logits.
    accuracy : float or None
        Published top-1 accuracy in percent on the test images of their own task.
    """

    name: str
    location: str | Path
    preprocessing: Preprocessing
    source_classes: Callable[[], SourceClasses]
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that can be built, and its published weights.

    Attributes
    ----------
    name : str
    summary : str
        One line for ``featpipe models``.
    build : callable
        ``build(num_classes)`` returns the untrained network.
    classifier : str
        Name of the last linear layer.
    file_preprocessing : Preprocessing
        Used for weights that come from a file, which cannot say how they were trained.
    published : mapping of str to PublishedWeights
        By upper-case name, ``"DEFAULT"`` among them; empty where there are none.
    default_layer : str
        Layer whose activations are the features unless another one is asked for.
    """

    name: str
    summary: str
    build: Callable[[int], nn.Module]
    classifier: str
    file_preprocessing: Preprocessing
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    default_layer: str = "avgpool"

    def find_published(self, name: str) -> PublishedWeights:
        """Return published weights by name, upper or lower case.

        Raises
        ------
        UsageError
            If nobody published weights for this architecture.
        UnknownNameError
            If there are some, but none of that name.
        """
        if not self.published:
            raise UsageError(
                f"There are no published weights for {self.name}.",
                next_step=f"--weights FILE, or train it: featpipe finetune --model {self.name}",
            )
        if name.upper() not in self.published:
            raise UnknownNameError(
                f"There are no weights named {name!r} for {self.name}.",
                expected=", ".join(self.published) + ", or a weights file",
                next_step=did_you_mean(name.upper(), self.published).strip() or None,
            )
        return self.published[name.upper()]

    def classes_of(self, num_classes: int) -> SourceClasses | None:
        """Return the classes of a weights file's logits, as far as their number tells.

        A file with as many outputs as the published weights is taken to know the same classes;
        what the outputs of any other file mean is not known.
        """
        known = self.published["DEFAULT"].source_classes() if self.published else None
        return known if known is not None and len(known.ids) == num_classes else None

    def on_meta(self, num_classes: int) -> nn.Module:
        """Return the network in evaluation mode without memory or values: shapes only."""
        with torch.device("meta"):
            return self.build(num_classes).eval()
