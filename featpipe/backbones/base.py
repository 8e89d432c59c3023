"""What embeds images: one protocol for extraction, fine-tuning and prediction; the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe.backbones import RUNTIMES
from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Capture
from featpipe.backbones.weights import WeightsInfo
from featpipe.errors import UnknownNameError, UsageError
from featpipe.labelmap import SourceClasses
from featpipe.registry import did_you_mean
from featpipe.store import LOGITS

_MAP = ":map"


class Embedder(Protocol):
    """What turns prepared images into features.

    Attributes
    ----------
    name : str
        Name of the network, part of the path of stores.
    default_layer : str
        Layer that is stored unless others are asked for.
    preprocessing : Preprocessing
    device : torch.device
    batch_size : int
        Images per call of :meth:`embed` that suit the device.
    source_classes : SourceClasses or None
        Meaning of the layer ``"logits"``; ``None`` where it has none and is not stored.
    """

    name: str
    default_layer: str
    preprocessing: Preprocessing
    device: torch.device
    batch_size: int
    source_classes: SourceClasses | None

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image's features at a layer; nothing is computed for it."""

    def embed(self, images: Tensor, layers: tuple[str, ...]) -> Mapping[str, NDArray[Any]]:
        """Return features (b, *dim(layer)) of prepared images (b, 3, S, S), uint8, by layer."""

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the numbers, as JSON-like values."""


class FrozenNetwork:
    """A network whose named modules give features, run by a runtime.

    Evaluation mode, no gradients and inference mode are set here and nowhere else.

    Parameters
    ----------
    name : str
        For messages and paths.
    network : nn.Module
        It is frozen and moved to the device.
    preprocessing : Preprocessing
    device : torch.device
    runtime : str
        A name out of :data:`featpipe.backbones.RUNTIMES`.
    aliases : mapping of str to str, optional
        Further names of modules, ``{"logits": "fc"}``.

    Notes
    -----
    A layer is the name of any module of the network (``"avgpool"``, ``"layer3"``,
    ``"layer4.1.conv2"``). An activation with height and width is averaged over both;
    ``"layer3:map"`` leaves it as it is. Of a module that the network calls several times
    (torchvision's ``"layer1.0.relu"``) the last output counts.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        runtime: str = "torch",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.device = device
        self._aliases = dict(aliases or {})
        self._shapes = layer_shapes(network, preprocessing.crop)
        self.runtime = RUNTIMES.get(runtime)(self.network, preprocessing, device)
        self.batch_size = self.runtime.batch_size

    @property
    def runtime_description(self) -> dict[str, str]:
        """The runtime as part of a description: nothing where it changes no number."""
        return {} if self.runtime.exact else {"runtime": self.runtime.name}

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image's features at a layer; nothing is computed for it.

        Raises
        ------
        UnknownNameError
            If the network has no such layer.
        """
        capture = self._capture(layer)
        shape = self._shapes[capture.module][-1]
        return shape[:1] if capture.pooled and len(shape) == 3 else shape

    def embed(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        """Return features (b, *dim(layer)), float32, of prepared images (b, 3, S, S), uint8.

        Raises
        ------
        UnknownNameError
            If the network has no such layer.
        UsageError
            If the images are not of that shape and type.
        """
        captures = [self._capture(layer) for layer in dict.fromkeys(layers)]
        shapes = {layer: (len(images), *FrozenNetwork.dim(self, layer)) for layer in layers}
        side = self.preprocessing.crop
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (3, side, side):
            raise UsageError(
                f"{self.name} cannot embed these images.",
                expected=f"prepared images, uint8 of shape (b, 3, {side}, {side})",
                got=f"{images.dtype} of shape {tuple(images.shape)}",
            )
        if len(images) == 0:
            return {layer: np.empty(shape, np.float32) for layer, shape in shapes.items()}
        with torch.inference_mode():
            features = self.runtime.run(images, captures)
        for layer, shape in shapes.items():
            if features[layer].shape != shape:
                got = features[layer].shape
                raise RuntimeError(f"{self.name} {layer}: {got}, announced as {shape}")
        return {layer: features[layer] for layer in shapes}

    def _capture(self, layer: str) -> Capture:
        name = layer.removesuffix(_MAP)
        module = self._aliases.get(name, name)
        if module not in self._shapes:
            main = [known for known in self._shapes if "." not in known]
            raise UnknownNameError(
                f"{self.name} has no layer named {layer!r}.",
                expected=", ".join([*self._aliases, *main]) + ", or a module within one of them",
                next_step=did_you_mean(name, [*self._aliases, *self._shapes]).strip() or None,
            )
        return Capture(layer, module, len(self._shapes[module]), pooled=name == layer)


class Backbone(FrozenNetwork):
    """A registered architecture with its weights: an :class:`Embedder`.

    Attributes
    ----------
    source_classes : SourceClasses or None
        Ids and names of the logits; ``None`` where the weights come from a file whose number of
        logits is not that of the published weights.
    num_classes : int
        Number of logits; the layer ``"logits"`` is the classifier's output.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: nn.Module,
        weights: WeightsInfo,
        preprocessing: Preprocessing,
        device: torch.device,
        runtime: str = "torch",
    ) -> None:
        logits = {LOGITS: architecture.classifier}
        super().__init__(architecture.name, network, preprocessing, device, runtime, logits)
        self.architecture = architecture
        self.weights = weights
        self.default_layer = architecture.default_layer
        (self.num_classes,) = self.dim(LOGITS)
        self.source_classes: SourceClasses | None = (
            weights.published.source_classes()
            if weights.published
            else architecture.classes_of(self.num_classes)
        )

    def embed(
        self, images: Tensor, layers: tuple[str, ...] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the features of some images, by default those of ``default_layer``."""
        return super().embed(images, layers or (self.default_layer,))

    def describe(self) -> dict[str, Any]:
        """Return everything about the backbone that changes the numbers, as JSON-like values."""
        return {
            "model": self.name,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
            "preprocessing": self.preprocessing.as_dict(),
            "num_classes": self.num_classes,
            **self.runtime_description,
        }


def layer_shapes(network: nn.Module, image_size: int) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that named modules give for one image; nothing is computed.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    image_size : int
        Side of the network's input in pixels.

    Returns
    -------
    shapes : dict of str to list of tuple
        Of each module that gives a tensor, one shape for each time that the network calls it.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(name, []).append(tuple(output.shape[1:]))

    named = [*network.named_parameters(), *network.named_buffers()]
    without_values = {name: torch.empty_like(value, device="meta") for name, value in named}
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.named_modules():
            hook = module.register_forward_hook(lambda _m, _i, out, name=name: record(name, out))
            hooks.enter_context(hook)
        torch.func.functional_call(network, without_values, (image,))
    shapes.pop("", None)  # the network itself is no layer of it
    return shapes
