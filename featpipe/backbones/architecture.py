"""What a model's name stands for: how to build the network, and which weights are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UnknownNameError
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
        Address to download them from, or the file shipped with featpipe.
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


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, and its published weights.

    Attributes
    ----------
    name : str
    build : callable
        ``build(num_classes)`` returns the untrained network.
    classifier : str
        Name of the last linear layer.
    published : mapping of str to PublishedWeights
        By upper-case name; ``"DEFAULT"`` is one of the names.
    file_preprocessing : Preprocessing
        Used for weights that come from a file, which cannot say how they were trained.
    default_layer : str
        Layer whose activations are the features unless another one is asked for.
    """

    name: str
    build: Callable[[int], nn.Module]
    classifier: str
    published: Mapping[str, PublishedWeights]
    file_preprocessing: Preprocessing
    default_layer: str = "avgpool"

    def find_published(self, name: str) -> PublishedWeights:
        """Return published weights by name, upper or lower case.

        Raises
        ------
        UnknownNameError
            If nobody published weights of that name for this architecture.
        """
        try:
            return self.published[name.upper()]
        except KeyError:
            raise UnknownNameError(
                f"There are no weights named {name!r} for {self.name}.",
                expected=", ".join(self.published) + ", or a weights file",
                next_step=did_you_mean(name.upper(), self.published).strip() or None,
            ) from None

    def classes_of(self, num_classes: int) -> SourceClasses | None:
        """Return the classes of a weights file's logits, as far as their number tells.

        A file with as many outputs as the published weights is taken to know the same classes;
        what the outputs of any other file mean is not known.
        """
        known = self.published["DEFAULT"].source_classes()
        return known if len(known.ids) == num_classes else None

    def on_meta(self, num_classes: int) -> nn.Module:
        """Return the network in evaluation mode without memory or values: shapes only."""
        with torch.device("meta"):
            return self.build(num_classes).eval()


@dataclass(frozen=True)
class LayerOutput:
    """What a layer gives for one image, and how often it is called for it."""

    shape: tuple[int, ...]
    calls: int


def layer_outputs(
    architecture: Architecture, num_classes: int, image_size: int
) -> dict[str, LayerOutput]:
    """Return what every named layer gives, without computing anything.

    Parameters
    ----------
    architecture : Architecture
    num_classes : int
        Outputs of the classifier.
    image_size : int
        Side of the network's input in pixels.

    Returns
    -------
    outputs : dict of str to LayerOutput
        For each name of ``network.named_modules()`` that gives a tensor.
    """
    network = architecture.on_meta(num_classes)
    outputs: dict[str, LayerOutput] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            calls = outputs[name].calls + 1 if name in outputs else 1
            outputs[name] = LayerOutput(tuple(output.shape[1:]), calls)

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(lambda _m, _i, output, name=name: record(name, output))
    with torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return outputs
