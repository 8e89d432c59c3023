"""How a forward pass runs: the door for other engines and precisions."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featpipe.backbones import RUNTIMES
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.progress import SILENT, Progress
from featpipe.steps import grammar

_SMALL_SIDE = 64  # pixels; a network for CIFAR or glyphs embeds thousands of images a second


@dataclass(frozen=True)
class Capture:
    """One activation to bring back."""

    layer: str  # name under which it is returned
    module: str  # name of the module whose output it is; empty: the network itself
    calls: int  # of this module by the network for one image; the last output counts
    part: str = ""  # of several outputs, the name of one; "input": what the module is given
    over: tuple[int, ...] = ()  # dimensions that are averaged over
    tokens: tuple[int, int | None] = (0, None)  # first and end of the tokens in (b, tokens, C)

    def read(self, inputs: object, output: object) -> Tensor:
        """Return the activation, given what a forward hook of the module gets."""
        values = tensors_of(inputs if self.part == "input" else output, self.part)[self.part]
        if self.over == (1,):
            values = values[:, slice(*self.tokens)]
        # A copy in either case: the next layer may be an activation that works in place.
        return values.mean(self.over) if self.over else values.clone()


def tensors_of(output: object, default: str = "") -> dict[str, Tensor]:
    """Return what a module gave by name, the first tensor, or the only one, under ``default``."""
    named = dict(output) if isinstance(output, Mapping) else {}
    several = named.values() if named else output if isinstance(output, tuple) else (output,)
    first = next((value for value in several if isinstance(value, Tensor)), None)
    named = {default: first, **named}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Calibration:
    """Images that show what a network's activations look like, for int8."""

    images: Callable[[Preprocessing], Tensor]  # returns them prepared: uint8 (n, 3, S, S), n >= 1
    fingerprint: str  # of what they are made from


@dataclass(frozen=True)
class Execution:
    """How a network is asked to run."""

    runtime: str | None = None  # a name out of RUNTIMES; None: chosen, with a note
    precision: str = "float32"
    calibration: Calibration | None = None  # for int8
    progress: Progress = SILENT
    cache: Path | None = None  # of converted networks; default: a folder of the user's


class CannotRunError(UsageError):
    """A network that a runtime cannot run; where the runtime was chosen, PyTorch does."""


class Runtime(ABC):
    """What runs a network; registered in :data:`featpipe.backbones.RUNTIMES`.

    Parameters
    ----------
    network : nn.Module
        Frozen, in evaluation mode.
    preprocessing : Preprocessing
        Its ``normalise`` turns uint8 images into the network's input.
    device : torch.device
    how : Execution
        Only a runtime that lists more precisions than float32 is given it.

    Attributes
    ----------
    exact : bool
        Whether the numbers agree with plain float32 PyTorch to 1e-4. Where they do not, the
        runtime's name is part of every description and thus of every store's fingerprint.
    precisions : tuple of str
        Those it offers. Others than float32 are part of every description, too.
    suits : tuple of str
        Kinds of device that ``featpipe bench`` measures it on.
    batch_size, parallel : int
        Images per call, and calls at the same time, that suit :meth:`run`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    exact: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    suits: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")
    parallel: int = 1

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        how: Execution | None = None,
    ) -> None:
        self.network, self.preprocessing = network.to(device), preprocessing
        self.device, self._how = device, how or Execution()
        self.batch_size = 32 if device.type == "cpu" else 256

    def prepare(self, captures: Sequence[Capture]) -> None:  # noqa: B027 - most have nothing to do
        """Get ready to run; CannotRunError where this network cannot."""

    @abstractmethod
    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations by layer of uint8 images (b, 3, S, S), in inference mode."""


class _Enough(Exception):  # noqa: N818 - not an error: ends a forward pass
    """Everything asked for has been captured; the rest of the network need not run."""


def activations(
    network: nn.Module, batch: Tensor, captures: Sequence[Capture]
) -> dict[str, Tensor]:
    """Return what is captured, by layer; the forward pass ends with the last one needed."""
    kept: dict[str, Tensor] = {}
    waiting = {capture.layer: capture.calls for capture in captures}

    def keep(capture: Capture, _module: nn.Module, inputs: object, output: object) -> None:
        waiting[capture.layer] -= 1
        if not waiting[capture.layer]:
            kept[capture.layer] = capture.read(inputs, output)
            if len(kept) == len(waiting):
                raise _Enough

    with ExitStack() as hooks:
        for capture in captures:
            module = network.get_submodule(capture.module)
            hooks.enter_context(module.register_forward_hook(partial(keep, capture)))
        with suppress(_Enough):
            network(batch)
    return kept


class CapturedNetwork(nn.Module):
    """A network that gives what is captured: a tensor, or a tuple in the order of the captures."""

    def __init__(
        self,
        network: nn.Module,
        captures: Sequence[Capture],
        normalise: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        super().__init__()
        self.network, self._captures, self._normalise = network, captures, normalise

    def forward(self, images: Tensor) -> Any:
        """Return the activations of images (n, 3, S, S)."""
        kept = activations(self.network, self._normalise(images), self._captures)
        first, *others = (kept[capture.layer] for capture in self._captures)
        return (first, *others) if others else first


@RUNTIMES.register
class TorchRuntime(Runtime):
    """PyTorch, channels last, batch norm folded into the convolutions.

    Both together take 0.61 (ResNet-18) and 0.52 (ResNet-50) of plain PyTorch's CPU time and agree
    with it to 7e-7 of the largest logit. On CUDA two batches are under way, each in a stream of its
    own, so that one is copied while the other is computed. Batches that do not fit into the memory
    of a device are halved.
    """

    name = "torch"
    summary = "PyTorch, on the CPU or a GPU"
    exact = True
    precisions = ("float32", "tf32", "bfloat16", "float16")

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.network = self.network.to(memory_format=torch.channels_last)
        self._largest: int | None = None  # batch that fits into the memory; None: any so far
        device, precision = self.device, self._how.precision
        cuda = device.type == "cuda"
        # TF32 came with Ampere; older GPUs silently compute in float32.
        ampere = cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        if {"float16": device.type == "cpu", "tf32": not ampere}.get(precision):
            what = f"PyTorch does not compute in {precision} on this device."
            got = f"--precision {precision} on {device}"
            raise CannotRunError(what, expected="--precision float32 or bfloat16", got=got)
        self.parallel = 2 if cuda else 1
        self._hooked = threading.Lock()  # what is captured would be that of another call
        self._streams: SimpleQueue[AbstractContextManager[Any]] = SimpleQueue()
        for _ in range(self.parallel):
            own: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
            self._streams.put(torch.cuda.stream(own) if cuda else nullcontext())

    @cached_property
    def _folded(self) -> nn.Module:
        folded = fold_batch_norm(self.network)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # other streams would not wait for it
        return folded

    def prepare(self, captures: Sequence[Capture]) -> None:
        """Fold the batch norms before threads read images.

        While a network is traced, every module of the process is, and so would be the transforms.
        """
        _ = self._folded

    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations of one batch."""
        parts: list[dict[str, NDArray[np.float32]]] = []
        while len(images):
            batch = images[: self._largest]
            try:
                parts.append(self._run(batch, captures))
                images = images[len(batch) :]
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._largest = len(batch) // 2
                what = f"{self.device} is out of memory with {len(batch)} images at once"
                self._how.progress.note(f"{what}: continuing with {self._largest}")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}

    def _run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        # A folded convolution gives its batch norm's output; its own needs the plain network.
        asked = [(self.network.get_submodule(one.module), one.part) for one in captures]
        kinds = {"input": nn.BatchNorm2d}
        raw = any(isinstance(module, kinds.get(part, nn.Conv2d)) for module, part in asked)
        kind, precision = self.device.type, self._how.precision
        lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        stream = self._streams.get()
        try:
            with stream:
                if kind == "cuda":
                    images = images.pin_memory()  # so that the copy need not be waited for
                batch = self.preprocessing.normalise(images.to(self.device, non_blocking=True))
                batch = batch.contiguous(memory_format=torch.channels_last)
                autocast = torch.autocast(kind, lower, enabled=lower is not None)
                with self._hooked, rounding_to_tf32(precision == "tf32"), autocast:
                    kept = self._forward(self.network if raw else self._folded, batch, captures)
                return {layer: values.float().cpu().numpy() for layer, values in kept.items()}
        finally:
            self._streams.put(stream)

    def _forward(
        self, network: nn.Module, batch: Tensor, captures: Sequence[Capture]
    ) -> dict[str, Tensor]:
        return activations(network, batch, captures)


@contextmanager
def rounding_to_tf32(allowed: bool) -> Iterator[None]:
    """Let GPUs round factors to TF32, whose 10 bits move features by about 1e-3, or forbid it."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = allowed
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=allowed):
            yield
    finally:
        matmul.allow_tf32 = before


def choose(precision: str, device: torch.device, side: int = 224) -> tuple[str, str]:
    """Return the runtime that suits a precision, a device and images of some pixels, and why."""
    if precision in ("int8", "tf32"):
        name = "openvino" if precision == "int8" else "torch"
        return name, f"the one that has {precision}"
    if device.type != "cpu":
        return "torch", f"the runtime for {device.type}"
    if find_spec("openvino") is None:
        hint = "OpenVINO, which takes about 0.7 of the time on a CPU, is not installed"
        return "torch", f"{hint} (pip install openvino)"
    if side <= _SMALL_SIDE:
        return "torch", f"for images of {side} pixels, converting the network is not worth it"
    return "openvino", "the fastest runtime on a CPU"


def open_runtime(
    network: nn.Module, preprocessing: Preprocessing, device: torch.device, how: Execution
) -> tuple[Runtime, str]:
    """Return what runs a network as it is asked to, and why it was taken.

    ``CannotRunError`` if the runtime does not have the precision, or the device does not.
    """
    name, why = how.runtime, "asked for"
    if name is None:
        name, why = choose(how.precision, device, preprocessing.crop)
    kind = RUNTIMES.get(name)
    if how.precision not in kind.precisions:
        what = f"The runtime {name!r} does not have this precision."
        raise CannotRunError(what, expected=", ".join(kind.precisions), got=how.precision)
    more: Any = (how,) if len(kind.precisions) > 1 else ()
    return kind(network, preprocessing, device, *more), why


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy in which each batch norm that directly follows a convolution is part of it.

    In evaluation mode batch norm multiplies and adds constants, and so does a convolution
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2). All modules keep their names, and their
    output but for those convolutions. A network whose forward pass depends on values cannot be
    traced and is returned as it is.

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
        convolution: Any = called.get(before) if isinstance(before, fx.Node) else None
        # Not of a subclass, which may do more: timm's batch norms are activations as well.
        plain = type(norm) is nn.BatchNorm2d and type(convolution) is nn.Conv2d
        if plain and len(before.users) == 1:
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
        what = f"No {asked.type.upper()} device {asked.index or 0} was found."
        advice = "choose one of these, or --device auto"
        raise UsageError(what, expected=", ".join(map(str, there)), next_step=advice)
    return device
