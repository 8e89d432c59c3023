"""The network below a head, as named stages: loaded, or built to be trained from scratch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

from featpipe.backbones import MODELS, UNTRAINED, architecture_of, folder_name
from featpipe.backbones.architecture import Architecture, WeightsInfo
from featpipe.backbones.base import Backbone, FrozenNetwork, layer_shapes, load_backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import CapturedNetwork, Execution, choose_device
from featpipe.errors import UsageError
from featpipe.fingerprint import FileHashes


@dataclass(frozen=True, eq=False)
class Trunk:
    """A network without its classifier, in evaluation mode."""

    name: str
    stages: nn.Sequential  # from the normalised image to a vector
    n_features: int
    bias: bool  # whether the network's own last layer has one
    preprocessing: Preprocessing
    description: dict[str, Any]  # everything that changes what the stages give
    pretrained: bool
    device: torch.device

    def __deepcopy__(self, memo: dict[int, Any]) -> Trunk:
        return self  # scikit-learn's clone copies parameters; nothing here ever changes


def load_trunk(  # noqa: PLR0913 - one keyword per property of a network
    model: str,
    weights: str = "DEFAULT",
    norm: str = "batch",
    *,
    device: str = "cpu",
    seed: int = 0,
    hashes: FileHashes | None = None,
    download: bool = True,
    **prepared: Any,
) -> Trunk:
    """Load the network below a head.

    Arguments and errors are those of :func:`featpipe.backbones.load_backbone` (``prepared`` are
    ``image_size``, ``fit``, ``sizes`` and ``decode``), but for ``norm``, ``"batch"`` or
    ``"layer"``, and the ``seed`` of untrained weights (``weights="none"``).
    """
    architecture = architecture_of(model, download=download)
    pretrained = weights != UNTRAINED and bool(architecture.published)
    if norm == "layer" and pretrained:
        what = "Pretrained weights mean nothing without the batch norm they were trained with."
        raise UsageError(what, next_step="train from scratch: --weights none --norm layer")
    if pretrained:
        prepared |= {"runtime": "torch", "hashes": hashes, "download": download}
        backbone = load_backbone(model, weights, device, **prepared)
        description = backbone.describe()
    elif weights not in (UNTRAINED, "DEFAULT"):
        what = f"There are no weights for {model}: it is trained from scratch."
        raise UsageError(what, expected="--weights none", got=weights)
    else:
        backbone = Backbone(
            architecture,
            architecture.untrained(seed, num_classes=2),  # a head replaces the classifier
            WeightsInfo(UNTRAINED, "", None, None),
            architecture.file_preprocessing.adapted(**prepared),
            choose_device(device),
            Execution("torch"),
        )
        description = backbone.describe() | {"norm": norm, "seed": seed}
        description["weights"] = {"name": UNTRAINED}
        del description["num_classes"]
    stages, width, bias = stages_of(backbone, architecture)
    if norm == "layer":
        with_layer_norm(stages)
    about = backbone.preprocessing, description, pretrained, backbone.device
    return Trunk(folder_name(architecture.name), stages.eval(), width, bias, *about)


def stages_of(frozen: FrozenNetwork, architecture: Architecture) -> tuple[nn.Sequential, int, bool]:
    """Return stages in the order of a forward pass, their width, and whether a bias follows.

    They are the network's own modules, under its own names. The order is known for torchvision's
    ResNets, for an ``nn.Sequential`` and where an architecture gives it; any other network is a
    single stage, ``features``.
    """
    network = frozen.network
    last = network.get_submodule(architecture.classifier) if architecture.classifier else None
    bias = getattr(last, "bias", None) is not None or last is None
    if isinstance(network, ResNet | nn.Sequential):
        assert isinstance(last, nn.Linear)
        parts = OrderedDict(network.named_children())
        del parts[architecture.classifier]
        parts.setdefault("flatten", nn.Flatten())
        return nn.Sequential(parts), last.in_features, bias
    layer = architecture.default_layer
    (width,) = frozen.dim(layer)
    if (stages := architecture.stages(network)) is None:
        if last is not None:  # a head takes its place
            owner, _, name = architecture.classifier.rpartition(".")
            setattr(network.get_submodule(owner), name, nn.Identity())
        whole = CapturedNetwork(network, [frozen.capture(layer)])
        stages = nn.Sequential(OrderedDict(features=whole))
    return stages, width, bias


def with_parameters(stages: nn.Sequential) -> list[str]:
    """Return the names of the stages that have something to learn."""
    return [name for name, stage in stages.named_children() if [*stage.parameters()]]


def map_stages(trunk: Trunk) -> list[str]:
    """Return the names of the stages that learn and give maps, in the order of the network."""
    shapes = layer_shapes(trunk.stages, trunk.preprocessing.crop)
    return [name for name in with_parameters(trunk.stages) if len(shapes[name][-1]) == 3]


def _convolution(in_channels: int, out_channels: int, *after: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), *after)


class _Residual(nn.Module):
    """Two convolutions, dropout, and the shortcut around them."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(self.first(x)))


class _Scale(nn.Module):
    """Multiplies by a constant.

    Maxima of 512 channels make logits of ±10 and more, with which no usual learning rate is stable.
    Page's network scales its logits instead, which is the same without a bias.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def resnet9(num_classes: int = 10, dropout: float = 0.1) -> nn.Sequential:
    """Build ResNet-9 for 32 × 32 pixels, the small fast network of CIFAR-10 training contests.

    As in D. Page, *How to train your ResNet* (2018), with a batch norm of its own in prep.
    ``dropout`` is the share of activations dropped in the residual blocks.

    Examples
    --------
    >>> sum(p.numel() for p in resnet9().parameters())
    6573120
    """
    return nn.Sequential(
        OrderedDict(
            prep=_convolution(3, 64),
            layer1=nn.Sequential(_convolution(64, 128, nn.MaxPool2d(2)), _Residual(128, dropout)),
            layer2=_convolution(128, 256, nn.MaxPool2d(2)),
            layer3=nn.Sequential(_convolution(256, 512, nn.MaxPool2d(2)), _Residual(512, dropout)),
            pool=nn.AdaptiveMaxPool2d(1),  # 4 × 4 for images of 32 × 32
            flatten=nn.Flatten(),
            scale=_Scale(0.125),
            fc=nn.Linear(512, num_classes, bias=False),
        )
    )


def resnet18_32(
    num_classes: int = 10, *, stem_pool: bool = False, maximum: bool = False
) -> nn.Sequential:
    """Build the four stages of ResNet-18 (He et al., arXiv:1512.03385) behind a 3 × 3 stem.

    ``stem_pool`` pools 2 × 2 after the stem, and thus 2 × 2 instead of 4 × 4 before the classifier;
    ``maximum`` takes the maximum instead of the average at both places.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18_32().parameters())
    11173962
    """
    stages = resnet18(weights=None)
    pool = nn.MaxPool2d if maximum else nn.AvgPool2d
    first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as the stages
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU()),
            stem_pool=pool(2) if stem_pool else nn.Identity(),
            **{f"layer{i}": stages.get_submodule(f"layer{i}") for i in range(1, 5)},
            pool=pool(2 if stem_pool else 4),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, num_classes),
        )
    )


def convnet(num_classes: int = 2) -> nn.Sequential:
    """Build three blocks of convolution, ReLU and pooling, and two linear layers.

    For comparing optimizers: it has no shortcuts and no normalisation, which would hide their
    differences.

    Examples
    --------
    >>> sum(p.numel() for p in convnet().parameters())
    355778
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(pairwise((3, 32, 64, 128)), start=1):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        stages[f"conv{number}"] = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))
    stages |= {"pool": nn.AdaptiveAvgPool2d(4), "flatten": nn.Flatten()}
    stages["hidden"] = nn.Sequential(nn.Linear(128 * 16, 128), nn.ReLU())
    stages["fc"] = nn.Linear(128, num_classes)
    return nn.Sequential(stages)


_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet9": resnet9,
    "resnet18_32": resnet18_32,
    "resnet18_32_max": partial(resnet18_32, maximum=True),
    "resnet18_32_stem": partial(resnet18_32, stem_pool=True),
    "resnet18_32_stem_max": partial(resnet18_32, stem_pool=True, maximum=True),
    "convnet": convnet,
}
for _name, _build in _NETWORKS.items():
    _side, _layer = (64, "hidden") if _name == "convnet" else (32, "pool")
    MODELS.register(
        Architecture(
            name=_name,
            build=_build,
            classifier="fc",
            file_preprocessing=Preprocessing(resize=_side, crop=_side),
            default_layer=_layer,
        )
    )


def with_layer_norm(network: nn.Module) -> nn.Module:
    """Replace every batch norm of an untrained network by layer normalisation, in place.

    As a group norm with a single group (Ba et al. 2016, arXiv:1607.06450, for images as in Wu and
    He 2018, arXiv:1803.08494), which unlike :class:`torch.nn.LayerNorm` takes any image size.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.GroupNorm(1, child.num_features, eps=child.eps))
        else:
            with_layer_norm(child)
    return network
