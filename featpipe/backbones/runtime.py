"""How a forward pass runs: the door for other engines and precisions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featpipe.backbones import RUNTIMES
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.steps import grammar


@dataclass(frozen=True)
class Capture:
    """One activation to bring back."""

    layer: str  # name under which it is returned
    module: str  # name of the module whose output it is
    calls: int  # of this module by the network for one image; the last output counts
    pooled: bool  # average a (b, C, H, W) output over space


class Runtime(ABC):
    """What runs a network; registered in :data:`featpipe.backbones.RUNTIMES`.

    Parameters
    ----------
    network : nn.Module
        Frozen, in evaluation mode.
    preprocessing : Preprocessing
        Its ``normalise`` turns uint8 images into the network's input.
    device : torch.device

    Attributes
    ----------
    exact : bool
        Whether the numbers agree with plain float32 PyTorch to 1e-4. Where they do not, the
        runtime's name is part of every description and thus of every store's fingerprint.
    batch_size : int
        Images per call that suit it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    exact: ClassVar[bool] = False

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.network = network.to(device)
        self.preprocessing = preprocessing
        self.device = device
        self.batch_size = 32 if device.type == "cpu" else 256

    @abstractmethod
    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations by layer of uint8 images (b, 3, S, S), in inference mode."""


class _Enough(Exception):  # noqa: N818 - not an error: ends a forward pass
    """Everything asked for has been captured; the rest of the network need not run."""


@RUNTIMES.register
class TorchRuntime(Runtime):
    """PyTorch in float32, channels last, batch norm folded into the convolutions.

    Both together take 0.61 (ResNet-18) and 0.52 (ResNet-50) of plain PyTorch's CPU time and agree
    with it to 7e-7 of the largest logit; docs/backbones.md has all that was measured. Batches of
    8 and 64 take 0.98 and 1.12 of the time an image that 32 take.
    """

    name = "torch"
    summary = "PyTorch in float32, on the CPU or a GPU"
    exact = True

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        super().__init__(network.to(memory_format=torch.channels_last), preprocessing, device)

    @cached_property
    def _folded(self) -> nn.Module:
        return fold_batch_norm(self.network)

    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations of one batch; the forward pass ends with the last one needed."""
        kept: dict[str, Tensor] = {}
        waiting = {capture.layer: capture.calls for capture in captures}

        def keep(capture: Capture, _module: nn.Module, _inputs: object, output: Tensor) -> None:
            waiting[capture.layer] -= 1
            if waiting[capture.layer]:
                return
            # A copy in either case: the next layer may be an activation that works in place.
            spatial = capture.pooled and output.ndim == 4
            kept[capture.layer] = output.mean((2, 3)) if spatial else output.clone()
            if len(kept) == len(waiting):
                raise _Enough

        # A folded convolution gives its batch norm's output; its own needs the plain network.
        asked = [self.network.get_submodule(capture.module) for capture in captures]
        raw = any(isinstance(module, nn.Conv2d) for module in asked)
        network = self.network if raw else self._folded
        # TF32's mantissa of 10 bits moves features by about 1e-3.
        exactly = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
        with exactly, ExitStack() as hooks:
            for capture in captures:
                module = network.get_submodule(capture.module)
                hooks.enter_context(module.register_forward_hook(partial(keep, capture)))
            batch = self.preprocessing.normalise(images.to(self.device))
            with suppress(_Enough):
                network(batch.contiguous(memory_format=torch.channels_last))
        return {layer: values.float().cpu().numpy() for layer, values in kept.items()}


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy in which each batch norm that directly follows a convolution is part of it.

    In evaluation mode batch norm multiplies and adds constants, and so does a convolution
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2). All modules keep their names; the output
    of a folded batch norm is what it was, the output of the convolution before it no longer is.
    A network whose graph cannot be traced, because its forward pass depends on values, is
    returned as it is.

    Examples
    --------
    >>> plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    >>> [type(module).__name__ for module in fold_batch_norm(plain)]
    ['Conv2d', 'Identity']
    """
    try:
        # The graph says what follows what; the order of the modules only suggests it.
        nodes = list(fx.symbolic_trace(network).graph.nodes)
    except Exception:  # whatever a foreign forward pass raises when it meets a placeholder
        return network
    folded = copy.deepcopy(network)
    modules = dict(folded.named_modules())
    called = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    for node, norm in called.items():
        before = node.args[0]
        convolution = called.get(before) if isinstance(before, fx.Node) else None
        # Not of a subclass, which may do more: timm's batch norms are activations as well.
        if type(norm) is not nn.BatchNorm2d or type(convolution) is not nn.Conv2d:
            continue
        if len(before.users) == 1:
            fused = fuse_conv_bn_eval(convolution, norm)
            for name, module in ((str(before.target), fused), (str(node.target), nn.Identity())):
                parent, _, child = name.rpartition(".")
                setattr(folded.get_submodule(parent), child, module)
    return folded


def choose_device(name: str = "auto") -> torch.device:
    """Return an available device; ``"auto"`` takes CUDA, else MPS, else the CPU."""
    there = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    there += [torch.device("mps", 0)] if torch.backends.mps.is_available() else []
    there.append(torch.device("cpu"))
    if name == "auto":
        return there[0]
    grammar.device_name(name)
    asked = torch.device(name)
    device = asked if asked.type == "cpu" else torch.device(asked.type, asked.index or 0)
    if device not in there:
        raise UsageError(
            f"The device {name!r} is not there.",
            expected=", ".join(map(str, there)),
            next_step="choose one of these, or --device auto",
        )
    return device
