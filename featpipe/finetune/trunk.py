"""The network below a head: pretrained or untrained, as named stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture
from featpipe.backbones.base import open_backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import choose_device
from featpipe.errors import UsageError
from featpipe.finetune import NETWORKS
from featpipe.finetune.networks.normalisation import with_layer_norm
from featpipe.finetune.networks.timm_models import timm_stages
from featpipe.finetune.stages import body_of
from featpipe.fingerprint import FileHashes, of_bytes

UNTRAINED = "none"


@dataclass(frozen=True)
class TrunkRequest:
    """Which network to start from.

    Parameters
    ----------
    model : str
        A name out of :data:`featpipe.finetune.NETWORKS`; ``timm:NAME``.
    weights : str
        ``"DEFAULT"``, the name of published weights, a file, or ``"none"``: untrained.
    norm : {"batch", "layer"}
    image_size : int or None
    fit : {"auto", "crop", "whole"}
    device : str
    seed : int
        Of untrained weights.
    """

    model: str
    weights: str = "DEFAULT"
    norm: str = "batch"
    image_size: int | None = None
    fit: str = "auto"
    device: str = "cpu"
    seed: int = 0

    @property
    def pretrained(self) -> bool:
        """Whether the network has learned something before."""
        name = NETWORKS.entry(self.model.partition(":")[0]).name
        return self.weights != UNTRAINED and (name in MODELS or name == "timm")


@dataclass(frozen=True, eq=False)
class Trunk:
    """A network without its classifier.

    Attributes
    ----------
    name : str
    stages : nn.Sequential
        From the normalised image to one vector per image; in evaluation mode.
    n_features : int
        Width of that vector.
    bias : bool
        Whether the network's own last layer has a bias.
    preprocessing : Preprocessing
    description : dict
        Everything that changes what the stages give, as JSON-like values.
    pretrained : bool
    device : torch.device
    """

    name: str
    stages: nn.Sequential
    n_features: int
    bias: bool
    preprocessing: Preprocessing
    description: dict[str, Any]
    pretrained: bool
    device: torch.device


def load_trunk(request: TrunkRequest, hashes: FileHashes | None = None) -> Trunk:
    """Load the network below a head.

    Raises
    ------
    UnknownNameError
        If there is no such network, weights or device.
    UsageError
        If layer normalisation is asked for in a pretrained network, weights for a network that
        has none, or an image size that is not possible.
    WeightsError
        If the weights cannot be found, read or used.
    """
    if request.norm == "layer" and request.pretrained:
        raise UsageError(
            "Pretrained weights mean nothing without the batch norm they were trained with.",
            next_step="train from scratch: --weights none --norm layer",
        )
    name, _, argument = request.model.partition(":")
    if name == "timm":
        return _timm_trunk(request, argument)
    if request.pretrained:
        return _pretrained(request, hashes or FileHashes())
    return _untrained(request)


def _pretrained(request: TrunkRequest, hashes: FileHashes) -> Trunk:
    backbone = open_backbone(
        request.model, request.weights, request.device, request.image_size, request.fit, hashes
    )
    stages, last = body_of(backbone.network, backbone.architecture.classifier)
    return Trunk(
        backbone.name,
        stages.eval(),
        last.in_features,
        last.bias is not None,
        backbone.preprocessing,
        backbone.describe(),
        True,
        backbone.device,
    )


def _untrained(request: TrunkRequest) -> Trunk:
    architecture: Architecture = NETWORKS.load(request.model)
    if request.weights not in (UNTRAINED, "DEFAULT"):
        raise UsageError(
            f"There are no weights for {request.model}: it is trained from scratch.",
            expected="--weights none",
            got=request.weights,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = architecture.build(2)  # the classifier is replaced by a head
    stages, last = body_of(network, architecture.classifier)
    preprocessing = _sized(architecture.file_preprocessing, request)
    return _finish(request, architecture.name, stages, last, preprocessing, {"name": UNTRAINED})


def _timm_trunk(request: TrunkRequest, name: str) -> Trunk:
    if request.weights not in (UNTRAINED, "DEFAULT"):
        raise UsageError(
            "timm's models take timm's weights only.",
            expected="--weights DEFAULT or none",
            got=request.weights,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        stages, width, preprocessing = timm_stages(name, pretrained=request.pretrained)
    weights = {"name": UNTRAINED}
    if request.pretrained:
        weights = {"name": "timm's own", "fingerprint": _content(stages)}
    last = nn.Linear(width, 2)
    preprocessing = _sized(preprocessing, request)
    return _finish(request, f"timm-{name}", stages, last, preprocessing, weights)


def _content(network: nn.Module) -> str:
    """Return a fingerprint of all parameters and buffers."""
    return of_bytes(*(value.numpy().tobytes() for value in network.state_dict().values()))


def _need_size(stages: nn.Sequential, side: int) -> None:
    """Refuse images that the network cannot take, before a dataset of them is prepared."""
    stages.eval()
    try:
        with torch.inference_mode():
            stages(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"The network cannot take images of {side} × {side} pixels.",
            got=str(error).partition("\n")[0],
            next_step="another --image-size, or none: the network's own",
        ) from None


def _sized(preprocessing: Preprocessing, request: TrunkRequest) -> Preprocessing:
    preprocessing = preprocessing.with_fit(request.fit)
    if request.image_size is None:
        return preprocessing
    return preprocessing.with_image_size(request.image_size)


def _finish(
    request: TrunkRequest,
    name: str,
    stages: nn.Sequential,
    last: nn.Linear,
    preprocessing: Preprocessing,
    weights: dict[str, str],
) -> Trunk:
    if request.norm == "layer":
        with_layer_norm(stages)
    _need_size(stages, preprocessing.crop)
    description = {
        "model": name,
        "weights": weights,
        "preprocessing": preprocessing.as_dict(),
        "norm": request.norm,
        **({} if request.pretrained else {"seed": request.seed}),
    }
    return Trunk(
        name,
        stages.eval(),
        last.in_features,
        last.bias is not None,
        preprocessing,
        description,
        request.pretrained,
        choose_device(request.device),
    )
