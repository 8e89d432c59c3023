"""Frozen networks, which embed images in extraction, fine-tuning and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe.backbones import UNTRAINED, architecture_of
from featpipe.backbones.architecture import Architecture, WeightsInfo
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import (
    Calibration,
    CannotRunError,
    Capture,
    Execution,
    TorchRuntime,
    choose_device,
    open_runtime,
    tensors_of,
)
from featpipe.errors import UnknownNameError, UsageError
from featpipe.fingerprint import FileHashes
from featpipe.labelmap import SourceClasses
from featpipe.progress import SILENT, Progress
from featpipe.store import LOGITS
from featpipe.workspace import user_path


class FrozenNetwork:
    """A network whose named modules give features, run by a runtime.

    Evaluation mode, no gradients and inference mode are set here and nowhere else. ``name`` is part
    of the path of stores; ``how`` the network runs is chosen where it is left out; ``aliases`` are
    further names of layers, each with candidates, of which the first that exists is meant.

    A layer is the output of any module of the network, by name (``"avgpool"``, ``"layer3"``,
    ``"layer4.1.conv2"``). ``"fc:input"`` is the input of a module, and ``":pooler_output"`` one of
    several outputs, here of the network itself. If the network calls a module several times
    (torchvision's ``"layer1.0.relu"``), the last output counts.

    An activation with height and width is averaged over both. One with tokens is averaged over
    those that represent a part of the image (``:mean``); ``"blocks.5:cls"`` is the first token, and
    ``"layer3:map"`` leaves the activation as it is. The number of prefix tokens is the network's
    ``num_prefix_tokens`` (default 0), and channels come last in its maps if it has
    ``output_fmt="NHWC"``: attributes of timm's networks.
    """

    default_layer: str  # stored unless others are requested
    source_classes: SourceClasses | None = None  # of the layer "logits"; stored if there are any

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        how: Execution | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.device = device
        self._shapes = layer_shapes(network, preprocessing.crop)
        self._aliases = {
            alias: next((one for one in layers if _split(one)[0] in self._shapes), layers[-1])
            for alias, layers in (aliases or {}).items()
        }
        self.how = how or Execution()
        self.runtime, self._why = open_runtime(self.network, preprocessing, device, self.how)
        self._captures: dict[tuple[str, ...], list[Capture]] = {}  # of the prepared layers

    @property
    def batch_size(self) -> int:
        """Recommended images per call of :meth:`embed`."""
        return self.runtime.batch_size

    @property
    def parallel(self) -> int:
        """Recommended number of concurrent calls of :meth:`embed`."""
        return self.runtime.parallel

    def prepare(self, layers: tuple[str, ...]) -> dict[str, Any]:
        """Get ready to embed these layers; return the runtime and its reason for the run record.

        An automatically chosen runtime that cannot run this network is replaced by PyTorch.
        """
        captures = [self.capture(layer) for layer in dict.fromkeys(layers)]
        first = not self._captures
        self._captures[layers] = captures
        try:
            self.runtime.prepare(captures)
        except CannotRunError as error:
            if self.how.runtime is not None or self.how.precision != "float32":
                raise
            self._why, first = f"{error.what} {error.details.get('got', '')}".strip(), True
            how = replace(self.how, runtime="torch")
            self.runtime, _ = open_runtime(self.network, self.preprocessing, self.device, how)
            self.runtime.prepare(captures)
        name, precision = self.runtime.name, self.how.precision
        if self.how.runtime is None and first:
            self.how.progress.note(f"{self.name}: using the {name} runtime ({self._why})")
        return {"runtime": name, "runtime_because": self._why, "precision": precision}

    def reference(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Return PyTorch's float32 features of images, whatever the runtime and precision."""
        captures = [self.capture(layer) for layer in layers]
        with torch.inference_mode():
            return TorchRuntime(self.network, self.preprocessing, self.device).run(images, captures)

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the numbers, as JSON-like values."""
        return {"model": self.name, "preprocessing": self.preprocessing.as_dict(), **self.inexact()}

    def inexact(self) -> dict[str, Any]:
        """Return the properties of the runtime that change the numbers, for the description."""
        if self.how.precision == "float32":
            return {} if self.runtime.exact else {"runtime": self.runtime.name}
        lower = {"runtime": self.runtime.name, "precision": self.how.precision}
        fitted = self.how.calibration
        return lower if fitted is None else {**lower, "calibration": fitted.fingerprint}

    def dim(self, layer: str) -> tuple[int, ...]:
        """Return the shape of one image's features at a layer; no image is embedded."""
        capture = self.capture(layer)
        place = f"{capture.module}:{capture.part}" if capture.part else capture.module
        shape = self._shapes[place][-1]
        return tuple(size for i, size in enumerate(shape, start=1) if i not in capture.over)

    def embed(
        self, images: Tensor, layers: tuple[str, ...] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return features (b, *dim(layer)), float32, of prepared images (b, 3, S, S), uint8.

        ``layers`` defaults to ``default_layer``.
        """
        layers = layers or (self.default_layer,)
        if layers not in self._captures:
            self.prepare(layers)
        side, dtype = self.preprocessing.crop, self.preprocessing.dtype
        if images.dtype != dtype or tuple(images.shape[1:]) != (3, side, side):
            what = f"{self.name} cannot embed these images."
            wanted = f"prepared images, {dtype} of shape (b, 3, {side}, {side})"
            given = f"{images.dtype} of shape {tuple(images.shape)}"
            raise UsageError(what, expected=wanted, got=given)
        if len(images) == 0:
            return {layer: np.empty((0, *self.dim(layer)), np.float32) for layer in layers}
        with torch.inference_mode():
            features = self.runtime.run(images, self._captures[layers])
        for layer in layers:
            got, expected = features[layer].shape, (len(images), *self.dim(layer))
            if got != expected:
                raise RuntimeError(f"{self.name} {layer}: shape {got} instead of {expected}")
        return {layer: features[layer] for layer in layers}

    def capture(self, layer: str) -> Capture:
        """Return the capture of a layer; UsageError if there is no such layer."""
        name, requested = _split(layer)
        place, default = _split(self._aliases.get(name, name))
        reading, shapes = requested or default, self._shapes.get(place)
        if shapes is None:
            if name in self._aliases:
                what, advice = f"{self.name} has no pooled output.", "choose another layer: --layer"
                raise UsageError(what, expected=self._main_layers(), next_step=advice)
            known = [*self._aliases, *(one for one in self._shapes if one and ":" not in one)]
            what = f"{self.name} has no layer named {layer!r}."
            expected = f"{self._main_layers()}, or a module within one of them"
            raise UnknownNameError(what, name, known, expected=expected)
        module, _, part = place.partition(":")
        capture, shape = Capture(layer, module, len(shapes), part), shapes[-1]
        if not shape:
            what = f"{self.name} gives a single number per image at {place or 'its end'}."
            advice = "choose another layer, or keep its dimension: (n, 1)"
            raise UsageError(what, expected=self._main_layers(), next_step=advice)
        if reading == "map":
            return capture
        prefix = int(getattr(self.network, "num_prefix_tokens", 0))
        if (reading and len(shape) != 2) or (reading == "cls" and not prefix):
            wanted = "class token" if reading == "cls" else "tokens"
            what = f"{self.name} has no {wanted} at {place or 'its end'}."
            expected = "a layer of shape (tokens, channels)"
            got = f"shape {shape}, {prefix} prefix tokens"
            advice = f"--layer {place}, or another of {self._main_layers()}"
            raise UsageError(what, expected=expected, got=got, next_step=advice)
        if len(shape) == 2:
            tokens = (0, 1) if reading == "cls" else (prefix, None)
            return replace(capture, over=(1,), tokens=tokens)
        if len(shape) == 3:
            owner = self.network.get_submodule(module)
            nhwc = getattr(self.network, "output_fmt", "") == "NHWC"
            nhwc = nhwc and not isinstance(owner, nn.Conv2d)
            # These two act on the last dimension; their subclasses may permute dimensions.
            last = nhwc or type(owner) in (nn.Linear, nn.LayerNorm)
            return replace(capture, over=(1, 2) if last else (2, 3))
        if len(shape) > 3:
            what = f"It is not clear how to pool {layer!r} of {self.name}."
            expected = "(channels,), (tokens, channels) or a map of two dimensions"
            advice = f"--layer {name}:map keeps it as it is"
            raise UsageError(what, expected=expected, got=shape, next_step=advice)
        return capture

    def _main_layers(self) -> str:
        known = [one for one in self._shapes if one and ":" not in one]
        tops = [one for one in known if "." not in one] or known[-9:]
        return ", ".join([*self._aliases, *tops])


class Backbone(FrozenNetwork):
    """A registered architecture with its weights.

    The layer ``"logits"`` is the classifier's output, of length ``num_classes``.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: nn.Module,
        weights: WeightsInfo,
        preprocessing: Preprocessing,
        device: torch.device,
        how: Execution | None = None,
    ) -> None:
        names = architecture.layers
        super().__init__(architecture.name, network, preprocessing, device, how, names)
        self.weights = weights
        self.default_layer = architecture.default_layer
        self._configuration = architecture.configuration
        (self.num_classes,) = self.dim(LOGITS) if LOGITS in names else (0,)
        # A file with as many outputs as the published weights is assumed to have their classes.
        known = weights.published or architecture.published.get("DEFAULT")
        classes = known.source_classes() if known and weights.name != UNTRAINED else None
        if classes is not None and len(classes.ids) == self.num_classes:
            self.source_classes = classes

    def describe(self) -> dict[str, Any]:
        """Return everything about the backbone that changes the numbers, as JSON-like values."""
        weights = {"name": self.weights.name, "sha256": self.weights.sha256}
        if ":" in self.name and self.weights.published:  # for a family, it is known only here
            weights["trained_on"] = self.weights.published.trained_on
        more = {"configuration": self._configuration} if self._configuration else {}
        return super().describe() | {"weights": weights, "num_classes": self.num_classes} | more


def load_backbone(  # noqa: PLR0913 - one keyword per property of a backbone
    model: str,
    weights: str = "DEFAULT",
    device: str = "auto",
    image_size: int | None = None,
    fit: str = "auto",
    *,
    sizes: Iterable[tuple[int, int] | None] = (None,),
    decode: str = "full",
    runtime: str | None = None,
    precision: str = "float32",
    calibration: Calibration | None = None,
    hashes: FileHashes | None = None,
    progress: Progress = SILENT,
    download: bool = True,
) -> Backbone:
    """Load a frozen backbone, ready to embed.

    Parameters
    ----------
    model : str
        A name in :data:`featpipe.backbones.MODELS`, or a network of a family: ``"timm:NAME"``.
    weights : str
        ``"DEFAULT"``, the name of published weights (downloaded once into the library's own
        cache), a file (``.safetensors``, ``.pt``, ``.pth``, ``.th``, ``.bin``), the present
        location of ``hf:FOLDER``, or ``"none"``: random weights of seed 0.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    image_size : int, optional
        Side of the network's input in pixels; default: that of the weights.
    fit, decode : {"auto", "crop", "fill", "whole"}, {"full", "scaled"}
        See :class:`~featpipe.backbones.preprocessing.Preprocessing`; ``sizes`` decide ``auto``.
    sizes : iterable of tuple of int, optional
        Height and width of all images of each split, or ``None`` where they differ.
    runtime : str, optional
        A name in :data:`featpipe.backbones.RUNTIMES`; default: chosen for device and network.
    precision : {"float32", "tf32", "bfloat16", "float16", "int8"}
        Of the forward pass.
    calibration : Calibration, optional
        The images that int8 is calibrated on.
    hashes : FileHashes, optional
        Remembered content hashes, so that a large weights file is hashed once.
    progress : Progress, optional
        Where a download of weights is reported.
    download : bool
        Whether missing published weights may be downloaded.

    Raises
    ------
    UnknownNameError
        If there is no such model, published weights, runtime or kind of device.
    UsageError
        If the device is absent, the image size not possible, or no weights exist for the model.
    WeightsError
        If the weights cannot be downloaded or read, or belong to another architecture.

    Examples
    --------
    >>> backbone = load_backbone("glyphnet", device="cpu")
    >>> backbone.dim("avgpool")
    (128,)
    """
    chosen_device = choose_device(device)
    if ":" in model and user_path(weights).is_dir():  # the present location of hf:FOLDER
        model, weights = f"{model.partition(':')[0]}:{weights}", "DEFAULT"
    architecture = architecture_of(model, download=download)
    network, found = architecture.open(weights, hashes or FileHashes(), progress, download=download)
    trained = found.published.preprocessing if found.published else architecture.file_preprocessing
    preprocessing = trained.adapted(image_size, fit, sizes, decode)
    if fit == "auto" and preprocessing.resize > preprocessing.crop:
        small = "the whole image, since all have the same size, no larger than the input"
        means = small if preprocessing.fit == "fill" else "the centre crop that the weights expect"
        progress.note(f"--fit auto: {means}")
    how = Execution(runtime, precision, calibration, progress)
    return Backbone(architecture, network, found, preprocessing, chosen_device, how)


def layer_shapes(network: nn.Module, image_size: int) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the outputs of all modules for one image, one for each call.

    Names are those of the modules, ``""`` is the network itself. The input of a module is
    ``"NAME:input"``, and of several outputs each is ``"NAME:PART"``, the first one also ``"NAME"``.
    Values are computed, for an image of zeros, only if the forward pass depends on them.
    ``UsageError`` if the network cannot take images of this size.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def record(name: str, _module: nn.Module, inputs: object, output: object) -> None:
        for part, value in {**tensors_of(inputs, "input"), **tensors_of(output)}.items():
            if value.shape[:1] == (1,):  # else windows of an image, or values that images share
                place = f"{name}:{part}" if part else name
                shapes.setdefault(place, []).append(tuple(value.shape[1:]))

    named = [*network.named_parameters(), *network.named_buffers()]
    without_values = {name: torch.empty_like(value, device="meta") for name, value in named}
    image = torch.zeros(1, 3, image_size, image_size)
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        try:
            torch.func.functional_call(network, without_values, (image.to("meta"),))
        except Exception:  # the forward pass depends on values, or cannot take this size
            shapes.clear()
            try:
                network(image.to(next((value.device for _, value in named), image.device)))
            except Exception as error:
                what = f"The network failed on an image of {image_size} × {image_size} pixels."
                got = f"{type(error).__name__}: {error}".partition("\n")[0]
                advice = "a network that takes images (n, 3, H, W); if only the size is wrong, "
                advice += "another --image-size"
                raise UsageError(what, got=got, next_step=advice) from None
    return shapes


def _split(layer: str) -> tuple[str, str]:
    """Return the location of a layer in the network, and its reading: cls, mean, map or ``""``."""
    place, _, reading = layer.rpartition(":")
    return (place, reading) if reading in ("cls", "mean", "map") and ":" in layer else (layer, "")
