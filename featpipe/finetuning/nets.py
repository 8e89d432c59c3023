"""The network below a head, as named stages: loaded, or built to be trained from scratch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

from featpipe.backbones import (
    MODELS,
    UNTRAINED,
    architecture_of,
    folder_name,
    load_backbone,
)
from featpipe.backbones.architecture import Architecture
from featpipe.backbones.base import FrozenNetwork, layer_shapes
from featpipe.backbones.cifar_resnet import CifarResNet
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Capture, Execution, activations, choose_device
from featpipe.errors import UsageError
from featpipe.fingerprint import FileHashes


@dataclass(frozen=True, eq=False)
class Trunk:
    """A network without its classifier, in evaluation mode.

    The stages lead from the normalised image to a vector of ``n_features``; ``bias`` says whether
    the network's own last layer has one, ``description`` everything that changes what they give.
    """

    name: str
    stages: nn.Sequential
    n_features: int
    bias: bool
    preprocessing: Preprocessing
    description: dict[str, Any]
    pretrained: bool
    device: torch.device

    def __deepcopy__(self, memo: dict[int, Any]) -> Trunk:
        return self  # scikit-learn's clone copies parameters; nothing here ever changes


def load_trunk(  # noqa: PLR0913 - one keyword per property of a network
    model: str,
    weights: str = "DEFAULT",
    norm: str = "batch",
    *,
    image_size: int | None = None,
    fit: str = "auto",
    sizes: Iterable[tuple[int, int] | None] = (None,),
    decode: str = "full",
    device: str = "cpu",
    seed: int = 0,
    hashes: FileHashes | None = None,
    download: bool = True,
) -> Trunk:
    """Load the network below a head.

    Parameters
    ----------
    model : str
        As for :func:`featpipe.backbones.load_backbone`.
    weights : str
        ``"DEFAULT"``, the name of published weights, a file, or ``"none"``: untrained.
    norm : {"batch", "layer"}
    image_size, fit, sizes, decode, device, hashes, download
        As for :func:`featpipe.backbones.load_backbone`.
    seed : int
        Of untrained weights.

    Raises
    ------
    UsageError
        If there is no such network, weights or device; if layer normalisation is asked for in a
        pretrained network, weights for one that has none, or an image size that is not possible.
    WeightsError
        If the weights cannot be found, read or used.
    """
    architecture = architecture_of(model, download=download)
    pretrained = weights != UNTRAINED and bool(architecture.published)
    if norm == "layer" and pretrained:
        raise UsageError(
            "Pretrained weights mean nothing without the batch norm they were trained with.",
            next_step="train from scratch: --weights none --norm layer",
        )
    if pretrained:
        backbone = load_backbone(
            *(model, weights, device, image_size, fit),
            sizes=sizes,
            decode=decode,
            runtime="torch",
            hashes=hashes,
            download=download,
        )
        frozen: FrozenNetwork = backbone
        description = backbone.describe()
    else:
        if weights not in (UNTRAINED, "DEFAULT"):
            raise UsageError(
                f"There are no weights for {model}: it is trained from scratch.",
                expected="--weights none",
                got=weights,
            )
        sized = architecture.file_preprocessing.with_image_size(image_size).with_fit(fit, sizes)
        preprocessing = replace(sized, decode=decode)
        network = architecture.untrained(seed, num_classes=2)  # a head replaces the classifier
        frozen = FrozenNetwork(
            *(architecture.name, network, preprocessing, choose_device(device)),
            *(Execution("torch"), architecture.layers),
        )
        description = {
            "model": architecture.name,
            "weights": {"name": UNTRAINED},
            "preprocessing": preprocessing.as_dict(),
            "norm": norm,
            "seed": seed,
            **({"configuration": architecture.configuration} if architecture.configuration else {}),
        }
    stages, width, bias = stages_of(frozen, architecture)
    if norm == "layer":
        with_layer_norm(stages)
    about = frozen.preprocessing, description, pretrained, frozen.device
    return Trunk(folder_name(architecture.name), stages.eval(), width, bias, *about)


class Embedding(nn.Module):
    """A whole network as one stage: images to the embedding, whatever else it gives."""

    def __init__(self, network: nn.Module, capture: Capture) -> None:
        super().__init__()
        self.network, self._capture = network, capture

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (n, n_features) of images (n, 3, S, S)."""
        return activations(self.network, x, [self._capture])[self._capture.layer]


def stages_of(frozen: FrozenNetwork, architecture: Architecture) -> tuple[nn.Sequential, int, bool]:
    """Return stages in the order of a forward pass, their width, and whether a bias follows.

    The modules are the network's own, under its own names, so weights fit without translation.
    The order is known for torchvision's ResNets, CIFAR ResNets, an ``nn.Sequential`` and what an
    architecture orders itself; any other network is a single stage, ``features``.
    """
    network = frozen.network
    last = network.get_submodule(architecture.classifier) if architecture.classifier else None
    bias = getattr(last, "bias", None) is not None or last is None
    if isinstance(network, CifarResNet | ResNet | nn.Sequential):
        assert isinstance(last, nn.Linear)
        parts = OrderedDict(network.named_children())
        del parts[architecture.classifier]
        if isinstance(network, CifarResNet):  # its ReLU is a function and thus no child
            parts["relu"] = nn.ReLU()
            for name in [name for name in parts if name not in ("conv1", "bn1", "relu")]:
                parts.move_to_end(name)
        parts.setdefault("flatten", nn.Flatten())
        return nn.Sequential(parts), last.in_features, bias
    layer = architecture.default_layer
    (width,) = frozen.dim(layer)
    stages = architecture.stages(network)
    if stages is None:
        if last is not None:  # a head takes its place
            owner, _, name = architecture.classifier.rpartition(".")
            setattr(network.get_submodule(owner), name, nn.Identity())
        whole = Embedding(network, frozen.capture(layer))
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


class Residual(nn.Module):
    """Two convolutions and the shortcut around them, followed by dropout."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what the convolutions make of it."""
        return x + self.dropout(self.second(self.first(x)))


class Scale(nn.Module):
    """Multiplies by a constant.

    Maxima of 512 channels make logits of ±10 and more, on which no usual learning rate is stable;
    Page's network shrinks its logits by this factor, which is the same without a bias.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller features."""
        return self.factor * x


def resnet9(num_classes: int = 10, dropout: float = 0.1) -> nn.Sequential:
    """Build ResNet-9 for 32 × 32 pixels, the small fast network of CIFAR-10 training contests.

    prep 64 → 128 + residual → 256 → 512 + residual → 4 × 4 maximum pooling → linear without bias,
    logits times ⅛, as in D. Page, *How to train your ResNet* (2018), with a batch norm of its own
    in prep. ``dropout`` is the share of activations dropped in the residual blocks.

    Examples
    --------
    >>> sum(p.numel() for p in resnet9().parameters())
    6573120
    """
    return nn.Sequential(
        OrderedDict(
            prep=_convolution(3, 64),
            layer1=nn.Sequential(_convolution(64, 128, nn.MaxPool2d(2)), Residual(128, dropout)),
            layer2=_convolution(128, 256, nn.MaxPool2d(2)),
            layer3=nn.Sequential(_convolution(256, 512, nn.MaxPool2d(2)), Residual(512, dropout)),
            pool=nn.AdaptiveMaxPool2d(1),  # 4 × 4 for images of 32 × 32
            flatten=nn.Flatten(),
            scale=Scale(0.125),
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
            layer1=stages.layer1,
            layer2=stages.layer2,
            layer3=stages.layer3,
            layer4=stages.layer4,
            pool=pool(2 if stem_pool else 4),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, num_classes),
        )
    )


def convnet(num_classes: int = 2) -> nn.Sequential:
    """Build three blocks of convolution, ReLU and pooling, and two linear layers.

    What optimizers are compared on: there are no shortcuts, and on purpose no normalisation,
    which would hide the differences.

    Examples
    --------
    >>> sum(p.numel() for p in convnet().parameters())
    355778
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(pairwise((3, 32, 64, 128)), start=1):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        stages[f"conv{number}"] = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))
    stages["pool"] = nn.AdaptiveAvgPool2d(4)
    stages["flatten"] = nn.Flatten()
    stages["hidden"] = nn.Sequential(nn.Linear(128 * 16, 128), nn.ReLU())
    stages["fc"] = nn.Linear(128, num_classes)
    return nn.Sequential(stages)


def _register(
    name: str, build: Callable[[int], nn.Module], side: int = 32, layer: str = "pool"
) -> None:
    size = Preprocessing(resize=side, crop=side)
    MODELS.register(
        Architecture(
            name=name,
            summary=MODELS.summary(name),
            build=build,
            classifier="fc",
            file_preprocessing=size,
            default_layer=layer,
        )
    )


_max, _stem = partial(resnet18_32, maximum=True), partial(resnet18_32, stem_pool=True)
_stem_max = partial(resnet18_32, stem_pool=True, maximum=True)
_register("resnet9", resnet9)
_register("resnet18_32", resnet18_32)
_register("resnet18_32_max", _max)
_register("resnet18_32_stem", _stem)
_register("resnet18_32_stem_max", _stem_max)
_register("convnet", convnet, 64, "hidden")


def with_layer_norm(network: nn.Module) -> nn.Module:
    """Replace every batch norm of an untrained network by layer normalisation, in place.

    A group norm with a single group normalises each image over channels, height and width and
    scales each channel (Ba et al. 2016, arXiv:1607.06450, for images as in Wu and He 2018,
    arXiv:1803.08494); unlike :class:`torch.nn.LayerNorm` it does not fix the image size.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.GroupNorm(1, child.num_features, eps=child.eps))
        else:
            with_layer_norm(child)
    return network
