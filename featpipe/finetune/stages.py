"""A network as a row of named stages that can be cut at a frozen boundary."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torchvision.models import ResNet

from featpipe.backbones.cifar_resnets import CifarResNet
from featpipe.errors import UnknownNameError, UsageError
from featpipe.registry import did_you_mean


def body_of(network: nn.Module, classifier: str) -> tuple[nn.Sequential, nn.Linear]:
    """Return a network's stages in the order of its forward pass, and its last linear layer.

    The modules are the network's own, under its own names, so weights fit without translation.

    Parameters
    ----------
    network : nn.Module
        A torchvision ResNet, a CIFAR ResNet, or an ``nn.Sequential`` of named stages.
    classifier : str
        Name of the last linear layer.

    Raises
    ------
    TypeError
        If the order of the forward pass is not known.
    """
    stages = OrderedDict(network.named_children())
    last = stages.pop(classifier)
    assert isinstance(last, nn.Linear)
    if isinstance(network, CifarResNet):  # its ReLU is a function and thus no child
        names = list(stages)
        place = names.index("bn1") + 1
        stages["relu"] = nn.ReLU()
        stages = OrderedDict((n, stages[n]) for n in [*names[:place], "relu", *names[place:]])
    elif not isinstance(network, ResNet | nn.Sequential):
        raise TypeError(f"{type(network).__name__} has no known stages")
    if "flatten" not in stages:
        stages["flatten"] = nn.Flatten()
    return nn.Sequential(stages), last


@dataclass(frozen=True)
class Cut:
    """Which stages learn.

    Attributes
    ----------
    frozen : tuple of str
        Stages in front of the boundary.
    trained : tuple of str
        Stages behind it that learn.
    passed : tuple of str
        Stages behind it that only pass the gradient on.
    """

    frozen: tuple[str, ...]
    trained: tuple[str, ...]
    passed: tuple[str, ...]


def cut_of(stages: nn.Sequential, unfreeze: str) -> Cut:
    """Parse what is to be unfrozen besides the head, which always learns.

    Parameters
    ----------
    stages : nn.Sequential
        All but the classifier.
    unfreeze : str
        ``"none"`` or ``"fc"``: only the head; ``"all"``; the name of a stage (``"layer4"``);
        or of a stage and all behind it (``"layer3+"``).

    Raises
    ------
    UnknownNameError
        If the network has no such stage.
    UsageError
        If the stage has nothing to learn.

    Examples
    --------
    >>> net = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2)))
    >>> cut_of(net, "b+")
    Cut(frozen=('a',), trained=('b', 'c'), passed=())
    >>> cut_of(net, "b").passed
    ('c',)
    """
    names = [name for name, _ in stages.named_children()]
    if unfreeze in ("none", "fc"):
        return Cut(tuple(names), (), ())
    if unfreeze == "all":
        return Cut((), tuple(names), ())
    wanted = unfreeze.removesuffix("+")
    able = [n for n, stage in stages.named_children() if any(True for _ in stage.parameters())]
    if wanted not in names:
        raise UnknownNameError(
            f"The network has no stage named {wanted!r} to unfreeze.",
            expected=f"none, fc, all, {', '.join(able)}, or one of these and all behind it: "
            f"{able[-1]}+",
            next_step=did_you_mean(wanted, able).strip() or None,
        )
    if wanted not in able:
        raise UsageError(
            f"The stage {wanted!r} has nothing to learn.", expected=", ".join(able), got=unfreeze
        )
    place = names.index(wanted)
    split = len(names) if unfreeze.endswith("+") else place + 1
    return Cut(tuple(names[:place]), tuple(names[place:split]), tuple(names[split:]))


def part(stages: nn.Sequential, names: tuple[str, ...]) -> nn.Sequential:
    """Return some stages as a network of their own."""
    return nn.Sequential(OrderedDict((name, stages.get_submodule(name)) for name in names))
