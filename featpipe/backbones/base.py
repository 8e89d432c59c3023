"""The frozen network and everything that belongs to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture, layer_outputs
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Capture, EagerRuntime, Runtime, choose_device
from featpipe.backbones.state_dicts import build_with, load_state_dict
from featpipe.backbones.weights import WeightsInfo, resolve
from featpipe.errors import UnknownNameError, UsageError
from featpipe.fingerprint import FileHashes
from featpipe.labelmap import SourceClasses
from featpipe.registry import did_you_mean

LOGITS = "logits"
_MAP = ":map"


class Backbone:
    """A frozen network that turns prepared images into features.

    Evaluation mode, no gradients and inference mode are set here and nowhere else.

    Parameters
    ----------
    architecture : Architecture
    network : nn.Module
        With its weights; it is frozen.
    weights : WeightsInfo
    preprocessing : Preprocessing
    device : torch.device

    Attributes
    ----------
    name : str
        Registered name of the architecture.
    network : nn.Module
    source_classes : SourceClasses or None
        Ids and names of the logits; ``None`` where the weights come from a file whose number of
        logits is not that of the published weights.
    num_classes : int
        Number of logits.
    batch_size : int
        Images per call of :meth:`embed` that suit the device.

    Notes
    -----
    A layer is the name of any module of the network (``"avgpool"``, ``"layer3"``,
    ``"layer4.1.conv2"``). An activation with height and width is averaged over both;
    ``"layer3:map"`` leaves it as it is. ``"logits"`` is the classifier's output. Of a module that
    the network calls several times (torchvision's ``"layer1.0.relu"``) the last output counts.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: nn.Module,
        weights: WeightsInfo,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.architecture = architecture
        self.name = architecture.name
        self.network = network.eval().requires_grad_(False)
        self.weights = weights
        self.preprocessing = preprocessing
        self.default_layer = architecture.default_layer
        self.runtime: Runtime = EagerRuntime(self.network, preprocessing, device)
        self.num_classes: int = network.get_submodule(architecture.classifier).out_features  # type: ignore[assignment]
        self.source_classes: SourceClasses | None = (
            weights.published.source_classes()
            if weights.published
            else architecture.classes_of(self.num_classes)
        )
        self._outputs = layer_outputs(architecture, self.num_classes, preprocessing.crop)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.runtime.device

    @property
    def batch_size(self) -> int:
        """Images per call of :meth:`embed` that suit the device."""
        return self.runtime.batch_size

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image's features at a layer; nothing is computed for it.

        Raises
        ------
        UnknownNameError
            If the network has no such layer.
        """
        capture = self._capture(layer)
        shape = self._outputs[capture.module].shape
        return shape[:1] if capture.pooled and len(shape) == 3 else shape

    def embed(
        self, images: Tensor, layers: tuple[str, ...] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the features of some images.

        Parameters
        ----------
        images : Tensor of shape (b, 3, S, S), uint8
            Prepared by ``preprocessing.prepare``.
        layers : tuple of str, optional
            By default ``default_layer`` alone.

        Returns
        -------
        features : dict of str to ndarray of shape (b, *dim(layer)), float32

        Raises
        ------
        UnknownNameError
            If the network has no such layer.
        UsageError
            If the images are not of that shape and type.
        """
        layers = layers or (self.default_layer,)
        captures = [self._capture(layer) for layer in dict.fromkeys(layers)]
        side = self.preprocessing.crop
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (3, side, side):
            raise UsageError(
                f"{self.name} cannot embed these images.",
                expected=f"prepared images, uint8 of shape (b, 3, {side}, {side})",
                got=f"{images.dtype} of shape {tuple(images.shape)}",
            )
        if len(images) == 0:
            return {layer: np.empty((0, *self.dim(layer)), np.float32) for layer in layers}
        with torch.inference_mode():
            outputs = self.runtime.run(images, captures)
        features = {layer: values.numpy() for layer, values in outputs.items()}
        for layer in layers:
            shape, announced = features[layer].shape, (len(images), *self.dim(layer))
            if shape != announced:
                raise RuntimeError(f"{self.name} {layer}: {shape}, announced as {announced}")
        return {layer: features[layer] for layer in layers}

    def describe(self) -> dict[str, Any]:
        """Return everything about the backbone that changes the numbers, as JSON-like values."""
        return {
            "model": self.name,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
            "preprocessing": self.preprocessing.as_dict(),
            "num_classes": self.num_classes,
        }

    def _capture(self, layer: str) -> Capture:
        name = layer.removesuffix(_MAP)
        module = self.architecture.classifier if name == LOGITS else name
        if module not in self._outputs:
            main = [known for known in self._outputs if "." not in known]
            raise UnknownNameError(
                f"{self.name} has no layer named {layer!r}.",
                expected=", ".join([LOGITS, *main]) + ", or a module within one of them",
                next_step=did_you_mean(name, [LOGITS, *self._outputs]).strip() or None,
            )
        return Capture(layer, module, self._outputs[module].calls, pooled=name == layer)


def open_backbone(
    model: str,
    weights: str,
    device: str,
    image_size: int | None,
    fit: str,
    hashes: FileHashes,
) -> Backbone:
    """Load a backbone; see :func:`featpipe.backbones.load_backbone`."""
    architecture: Architecture = MODELS.load(model)
    where = choose_device(device)
    found = resolve(architecture, weights, hashes)
    preprocessing = (
        found.published.preprocessing if found.published else architecture.file_preprocessing
    )
    preprocessing = preprocessing.with_fit(fit)
    if image_size is not None:
        preprocessing = preprocessing.with_image_size(image_size)
    network = build_with(architecture, load_state_dict(found.path), found.path)
    return Backbone(architecture, network, found, preprocessing, where)
