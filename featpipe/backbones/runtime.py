"""How a forward pass runs: the interface for runtimes and precisions, and PyTorch's runtimes."""

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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featpipe.backbones import RUNTIMES
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError
from featpipe.progress import SILENT, Progress
from featpipe.steps import grammar

_SMALL_SIDE = 64  # pixels; networks for CIFAR or glyphs embed thousands of images per second


@dataclass(frozen=True)
class Capture:
    """One activation to return."""

    layer: str  # name under which it is returned
    module: str  # name of the module; empty: the network itself
    calls: int  # of this module by the network for one image; the last output counts
    part: str = ""  # name of one of several outputs; "input": the module's input
    over: tuple[int, ...] = ()  # dimensions to average over
    tokens: tuple[int, int | None] = (0, None)  # slice of the tokens in (b, tokens, C)

    def read(self, inputs: object, output: object) -> Tensor:
        """Return the activation, given the arguments of a forward hook of the module."""
        values = tensors_of(inputs if self.part == "input" else output, self.part)[self.part]
        if self.over == (1,):
            values = values[:, slice(*self.tokens)]
        # A copy in either case: the next layer may work in place.
        return values.mean(self.over) if self.over else values.clone()


def tensors_of(output: object, default: str = "") -> dict[str, Tensor]:
    """Return a module's output tensors by name; the first or only one is ``default``."""
    named = dict(output) if isinstance(output, Mapping) else {}
    several = named.values() if named else output if isinstance(output, tuple) else (output,)
    first = next((value for value in several if isinstance(value, Tensor)), None)
    named = {default: first, **named}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Calibration:
    """Images that int8 is calibrated on."""

    images: Callable[[Preprocessing], Tensor]  # returns them prepared: uint8 (n, 3, S, S), n >= 1
    fingerprint: str  # of their source


@dataclass(frozen=True)
class Execution:
    """How a network should run."""

    runtime: str | None = None  # a name in RUNTIMES; None: chosen, with a note
    precision: str = "float32"
    calibration: Calibration | None = None  # for int8
    progress: Progress = SILENT
    cache: Path | None = None  # folder of converted networks; default: in the user's cache


class CannotRunError(UsageError):
    """A runtime cannot run a network; if it was chosen automatically, PyTorch is used instead."""


class Runtime(ABC):
    """An engine that runs a network; registered in :data:`featpipe.backbones.RUNTIMES`.

    Parameters
    ----------
    network : nn.Module
        Frozen, in evaluation mode.
    preprocessing : Preprocessing
        Its ``normalise`` turns uint8 images into the network's input.
    device : torch.device
    how : Execution
        Passed only to runtimes that list other precisions than float32.

    Attributes
    ----------
    exact : bool
        Whether the numbers agree with plain float32 PyTorch to 1e-4. If not, the runtime's name
        is part of every description and thus of every store's fingerprint.
    precisions : tuple of str
        Those it supports. Others than float32 are part of every description, too.
    suits : tuple of str
        Kinds of device on which ``featpipe bench`` measures it.
    batch_size, parallel : int
        Recommended images per call, and concurrent calls, of :meth:`run`.
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

    def prepare(self, captures: Sequence[Capture]) -> None:  # noqa: B027 - often nothing to do
        """Get ready to run; CannotRunError if this network cannot run."""

    @abstractmethod
    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations by layer of uint8 images (b, 3, S, S), in inference mode."""


class _Enough(Exception):  # noqa: N818 - not an error: ends a forward pass
    """All captures are complete; the rest of the network need not run."""


def activations(
    network: nn.Module, batch: Tensor, captures: Sequence[Capture]
) -> dict[str, Tensor]:
    """Return the captured activations by layer; the forward pass ends after the last one."""
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
    """A network that returns captures: a tensor, or a tuple in the order of the captures."""

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
    """PyTorch with channels last and batch norm folded into the convolutions.

    Both together take 0.61 (ResNet-18) and 0.52 (ResNet-50) of plain PyTorch's CPU time and agree
    with it to 7e-7 of the largest logit. On CUDA two batches run at once, each in its own stream,
    so that one is copied while the other is computed. Batches that do not fit into the device's
    memory are halved.
    """

    name = "torch"
    summary = "PyTorch, on the CPU or a GPU"
    exact = True
    precisions = ("float32", "tf32", "bfloat16", "float16")

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.network = self.network.to(memory_format=torch.channels_last)
        self._largest: int | None = None  # batch that fits into memory; None: no limit met yet
        device, precision = self.device, self._how.precision
        cuda = device.type == "cuda"
        # Before Ampere there is no TF32: older GPUs silently compute in float32.
        ampere = cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        if {"float16": device.type == "cpu", "tf32": not ampere}.get(precision):
            what = f"PyTorch does not compute in {precision} on this device."
            got = f"--precision {precision} on {device}"
            raise CannotRunError(what, expected="--precision float32 or bfloat16", got=got)
        self.parallel = 2 if cuda else 1
        self._hooked = threading.Lock()  # hooks would also capture activations of other calls
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
        # A folded convolution returns its batch norm's output; its own needs the plain network.
        asked = [(self.network.get_submodule(one.module), one.part) for one in captures]
        kinds = {"input": nn.BatchNorm2d}
        raw = any(isinstance(module, kinds.get(part, nn.Conv2d)) for module, part in asked)
        kind, precision = self.device.type, self._how.precision
        lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        stream = self._streams.get()
        try:
            with stream:
                if kind == "cuda":
                    images = images.pin_memory()  # so that the copy is asynchronous
                batch = self.preprocessing.normalise(images.to(self.device, non_blocking=True))
                batch = batch.contiguous(memory_format=torch.channels_last)
                autocast = torch.autocast(kind, lower, enabled=lower is not None)
                with self._hooked, rounding_to_tf32(precision == "tf32"), autocast:
                    kept = self.forward(self.network if raw else self._folded, batch, captures)
                return {layer: values.float().cpu().numpy() for layer, values in kept.items()}
        finally:
            self._streams.put(stream)

    def forward(
        self, network: nn.Module, batch: Tensor, captures: Sequence[Capture]
    ) -> dict[str, Tensor]:
        """Return the activations of a batch that is on the device; OutOfMemoryError halves it."""
        return activations(network, batch, captures)


@RUNTIMES.register
class CompiledRuntime(TorchRuntime):
    """``torch.compile``: half a minute to compile, once for each layer and batch size.

    Never chosen automatically; docs/performance.md has the figures. A batch that is smaller than
    one that was compiled for is padded to that size.

    Ansel et al., *PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation
    and Graph Compilation* (ASPLOS 2024).
    """

    name = "compiled"
    summary = "torch.compile, for GPUs and many images"
    exact = False  # not yet compared on GPUs
    suits = ("cuda",)

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._programs: dict[tuple[Capture, ...], dict[int, Callable[[Tensor], Any]]] = {}

    def forward(
        self, network: nn.Module, batch: Tensor, captures: Sequence[Capture]
    ) -> dict[str, Tensor]:
        """Return the activations of a batch, from a program that is compiled when it is missing."""
        programs, n = self._programs.setdefault(tuple(captures), {}), len(batch)
        # Programs for batches that did not fit into memory are of no use.
        size = min((s for s in programs if n <= s <= (self._largest or s)), default=n)
        batch = torch.cat([batch, batch[:1].expand(size - n, *batch.shape[1:])])
        with torch.inference_mode(False), torch.no_grad():
            batch = batch.clone()  # tensors of inference mode cannot be traced
            try:
                if size not in programs:
                    self._how.progress.note(f"compiling the network for {size} images at once")
                    # A trace of the operations: the compiler would stop at hooks and exceptions.
                    graph = make_fx(CapturedNetwork(network, captures))(batch)
                    graph.graph.eliminate_dead_code()
                    graph.recompile()
                    programs[size] = torch.compile(graph, dynamic=False)
                    programs[size](batch)
                outputs = programs[size](batch)
            except torch.OutOfMemoryError:
                programs.pop(size, None)
                raise
            except Exception as error:  # a network or a compiler may raise anything
                what = "PyTorch cannot compile this network."
                first = str(error).strip().partition("\n")[0][:200]
                got = f"{type(error).__name__}: {first}"
                raise CannotRunError(what, got=got, next_step="--runtime torch") from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {one.layer: out[:n] for one, out in zip(captures, outputs, strict=True)}


@contextmanager
def rounding_to_tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid GPUs to round factors to TF32, whose 10 bits move features by about 1e-3."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = allowed
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=allowed):
            yield
    finally:
        matmul.allow_tf32 = before


def choose(precision: str, device: torch.device, side: int = 224) -> tuple[str, str]:
    """Return the best runtime for a precision, a device and an image size, and the reason."""
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
    """Return a runtime for a network, and the reason for the choice.

    ``CannotRunError`` if the runtime or the device does not support the precision.
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
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2). All modules keep their names, and all but
    those convolutions their output. A network whose forward pass depends on values cannot be traced
    and is returned unchanged.

    Examples
    --------
    >>> plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    >>> [type(module).__name__ for module in fold_batch_norm(plain)]
    ['Conv2d', 'Identity']
    """
    try:
        # Only the graph shows what follows what, not the order of the modules.
        nodes = list(fx.symbolic_trace(network).graph.nodes)
    except Exception:  # a forward pass may raise anything when it meets a placeholder
        return network
    folded = copy.deepcopy(network)
    modules = dict(folded.named_modules())
    called = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    for node, norm in called.items():
        before = node.args[0]
        convolution: Any = called.get(before) if isinstance(before, fx.Node) else None
        # No subclasses, which may do more: timm's batch norms include an activation.
        plain = type(norm) is nn.BatchNorm2d and type(convolution) is nn.Conv2d
        if plain and len(before.users) == 1:
            fused = fuse_conv_bn_eval(convolution, norm)
            for name, module in ((str(before.target), fused), (str(node.target), nn.Identity())):
                parent, _, child = name.rpartition(".")
                setattr(folded.get_submodule(parent), child, module)
    return folded


def choose_device(name: str = "auto") -> torch.device:
    """Return an available device; ``"auto"`` means CUDA, else MPS, else the CPU."""
    available = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    available += [torch.device("mps", 0)] if torch.backends.mps.is_available() else []
    available.append(torch.device("cpu"))
    if name == "auto":
        return available[0]
    grammar.device_name(name)
    asked = torch.device(name)
    device = asked if asked.type == "cpu" else torch.device(asked.type, asked.index or 0)
    if device not in available:
        what = f"No {asked.type.upper()} device {asked.index or 0} was found."
        advice = "choose one of these, or --device auto"
        raise UsageError(what, expected=", ".join(map(str, available)), next_step=advice)
    return device
