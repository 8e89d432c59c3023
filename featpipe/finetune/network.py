"""The network below a head as named stages, cut at a frozen boundary, and what is trained of it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet

from featpipe.backbones import MODELS, load_backbone
from featpipe.backbones.cifar_resnet import CifarResNet
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import choose_device
from featpipe.errors import UnknownNameError, UsageError, did_you_mean
from featpipe.finetune.head import Head
from featpipe.finetune.nets import timm_stages, with_layer_norm
from featpipe.fingerprint import FileHashes, of_bytes

UNTRAINED = "none"


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
    device: str = "cpu",
    seed: int = 0,
    hashes: FileHashes | None = None,
) -> Trunk:
    """Load the network below a head.

    Parameters
    ----------
    model : str
        A name out of :data:`featpipe.backbones.MODELS`; ``timm:NAME``.
    weights : str
        ``"DEFAULT"``, the name of published weights, a file, or ``"none"``: untrained.
    norm : {"batch", "layer"}
    image_size, fit, device, hashes
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
    family, _, name = model.partition(":")
    timm = family == "timm"
    architecture = MODELS.get(family if timm else model)
    pretrained = weights != UNTRAINED and (timm or bool(architecture.published))
    if norm == "layer" and pretrained:
        raise UsageError(
            "Pretrained weights mean nothing without the batch norm they were trained with.",
            next_step="train from scratch: --weights none --norm layer",
        )
    if pretrained and not timm:
        found = load_backbone(
            model, weights, device=device, image_size=image_size, fit=fit, hashes=hashes
        )
        stages, last = stages_of(found.network, architecture.classifier)
        width, bias = last.in_features, last.bias is not None
        about = found.preprocessing, found.describe(), True, found.device
        return Trunk(found.name, stages.eval(), width, bias, *about)
    if weights not in (UNTRAINED, "DEFAULT"):
        raise UsageError(
            "timm's models take timm's weights only."
            if timm
            else f"There are no weights for {model}: it is trained from scratch.",
            expected="--weights DEFAULT or none" if timm else "--weights none",
            got=weights,
        )
    source = {"name": UNTRAINED}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if timm:
            stages, width, preprocessing = timm_stages(name, pretrained=pretrained)
            name, bias = f"timm-{name}", True
            if pretrained:
                values = [value.numpy().tobytes() for value in stages.state_dict().values()]
                source = {"name": "timm's own", "fingerprint": of_bytes(*values)}
        else:
            # The classifier is replaced by a head, however many classes it has.
            stages, last = stages_of(architecture.build(2), architecture.classifier)
            name, width, bias = architecture.name, last.in_features, last.bias is not None
            preprocessing = architecture.file_preprocessing
    preprocessing = preprocessing.with_fit(fit).with_image_size(image_size)
    if norm == "layer":
        with_layer_norm(stages)
    _check_size(stages.eval(), preprocessing.crop)
    description = {
        "model": name,
        "weights": source,
        "preprocessing": preprocessing.as_dict(),
        "norm": norm,
        **({} if pretrained else {"seed": seed}),
    }
    where = choose_device(device)
    return Trunk(name, stages, width, bias, preprocessing, description, pretrained, where)


def _check_size(stages: nn.Sequential, side: int) -> None:
    """Refuse images that the network cannot take, before a dataset of them is prepared."""
    try:
        with torch.inference_mode():
            stages(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"The network cannot take images of {side} × {side} pixels.",
            got=str(error).partition("\n")[0],
            next_step="another --image-size, or none: the network's own",
        ) from None


def stages_of(network: nn.Module, classifier: str) -> tuple[nn.Sequential, nn.Linear]:
    """Return a network's stages in the order of its forward pass, and its last linear layer.

    The modules are the network's own, under its own names, so weights fit without translation.
    The order is known for torchvision's ResNets, CIFAR ResNets and an ``nn.Sequential``.
    """
    stages = OrderedDict(network.named_children())
    last = stages.pop(classifier)
    assert isinstance(last, nn.Linear)
    if not isinstance(network, CifarResNet | ResNet | nn.Sequential):
        name = type(network).__name__
        raise UsageError(f"{name} cannot be fine-tuned: the order of its stages is not known.")
    if isinstance(network, CifarResNet):  # its ReLU is a function and thus no child
        stages["relu"] = nn.ReLU()
        for name in [name for name in stages if name not in ("conv1", "bn1", "relu")]:
            stages.move_to_end(name)
    stages.setdefault("flatten", nn.Flatten())
    return nn.Sequential(stages), last


@dataclass(frozen=True)
class Cut:
    """Which stages learn: those ``frozen`` in front of the boundary do not.

    Behind it are those that are ``trained``, and those ``passed``: they pass the gradient on only.
    """

    frozen: tuple[str, ...]
    trained: tuple[str, ...]
    passed: tuple[str, ...]


def cut_of(stages: nn.Sequential, unfreeze: str) -> Cut:
    """Parse what is to be unfrozen in addition to the head, which always learns.

    ``stages`` are all but the classifier; ``unfreeze`` is ``"none"`` or ``"fc"`` (only the head),
    ``"all"``, a stage (``"layer4"``), or a stage and all after it (``"layer3+"``).

    Raises
    ------
    UsageError
        If the network has no such stage, or it has nothing to learn.

    Examples
    --------
    >>> net = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2)))
    >>> cut_of(net, "b+")
    Cut(frozen=('a',), trained=('b', 'c'), passed=())
    >>> cut_of(net, "b").passed
    ('c',)
    """
    names = tuple(name for name, _ in stages.named_children())
    if unfreeze in ("none", "fc"):
        return Cut(names, (), ())
    if unfreeze == "all":
        return Cut((), names, ())
    wanted = unfreeze.removesuffix("+")
    able = with_parameters(stages)
    if wanted not in names:
        raise UnknownNameError(
            f"The network has no stage named {wanted!r} to unfreeze.",
            expected=f"none, fc, all, {', '.join(able)}, or one of these and all behind it: "
            f"{able[-1]}+",
            next_step=did_you_mean(wanted, able),
        )
    if wanted not in able:
        raise UsageError(
            f"The stage {wanted!r} has nothing to learn.", expected=", ".join(able), got=unfreeze
        )
    place = names.index(wanted)
    split = len(names) if unfreeze.endswith("+") else place + 1
    return Cut(names[:place], names[place:split], names[split:])


def with_parameters(stages: nn.Sequential) -> list[str]:
    """Return the names of the stages that have something to learn."""
    return [name for name, stage in stages.named_children() if [*stage.parameters()]]


def part(stages: nn.Sequential, names: tuple[str, ...]) -> nn.Sequential:
    """Return some stages as a network of their own."""
    return nn.Sequential(OrderedDict((name, stages.get_submodule(name)) for name in names))


class HeadedNetwork(nn.Module):
    """Frozen stages, stages that learn, and a new head: what an estimator trains.

    Stages that learn are copied from the trunk. ``head`` and ``seed`` are those of
    :class:`featpipe.finetune.head.Head`; with ``from_store`` the frozen stages were run beforehand
    and the input is their activations; with ``freeze_statistics`` batch norms keep their running
    statistics.
    """

    def __init__(  # noqa: PLR0913 - skorch passes each by name
        self,
        trunk: Trunk,
        cut: Cut,
        head: str,
        n_classes: int,
        *,
        seed: int = 0,
        from_store: bool = True,
        freeze_statistics: bool = False,
    ) -> None:
        super().__init__()
        self._normalise = trunk.preprocessing.normalise
        before = part(trunk.stages, cut.frozen)
        self._parameters_before = sum(p.numel() for p in before.parameters()) if from_store else 0
        self.frozen = (nn.Sequential() if from_store else before).requires_grad_(False)
        self.body = copy.deepcopy(part(trunk.stages, cut.trained + cut.passed))
        self.body.requires_grad_(True)
        self.head = Head(head, trunk.n_features, n_classes, bias=trunk.bias, seed=seed)
        self._passed = [self.body.get_submodule(name).requires_grad_(False) for name in cut.passed]
        self._freeze_statistics = freeze_statistics
        self.train()

    def train(self, mode: bool = True) -> HeadedNetwork:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        norms = [m for m in self.body.modules() if isinstance(m, _BatchNorm)]
        for module in (self.frozen, *self._passed, *(norms if self._freeze_statistics else ())):
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and features (n, d) of uint8 images or stored activations."""
        x = self._normalise(x) if x.dtype == torch.uint8 else x.float()
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(self.body(x))

    def trained_state(self) -> dict[str, Tensor]:
        """Return what distinguishes this network from the one it started from: body and head."""
        state = self.state_dict().items()
        return {name: value for name, value in state if name.startswith(("body.", "head."))}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load body and head; ``ValueError`` where they are those of another network."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [name for name in missing if not name.startswith("frozen.")] + unexpected
        if wrong:
            raise ValueError(f"not the state of this network: {', '.join(wrong[:3])}")

    def count_parameters(self) -> dict[str, int]:
        """Return how many numbers the whole network learns, keeps frozen, and counts.

        Parameters that are frozen include those in front of a store; ``running_statistics`` of the
        batch norms are what Keras counts as non-trainable.
        """
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters() if not p.requires_grad)
        running = ("running_mean", "running_var")
        statistics = [b.numel() for name, b in self.named_buffers() if name.endswith(running)]
        return {
            "parameters_trained": trained,
            "parameters_frozen": frozen + self._parameters_before,
            "running_statistics": sum(statistics),
        }
