"""PyTorch's compiler: a network as fused kernels, which pays on GPUs.

Ansel et al., *PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation
and Graph Compilation* (ASPLOS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from featpipe.backbones import RUNTIMES
from featpipe.backbones.runtime import CannotRunError, Capture, CapturedNetwork, TorchRuntime


@RUNTIMES.register
class CompiledRuntime(TorchRuntime):
    """``torch.compile``: half a minute to compile, once for each layer and batch size.

    Never chosen automatically; docs/performance.md has the figures. A batch that is smaller than
    one that was compiled for is filled up to its size.
    """

    name = "compiled"
    summary = "torch.compile, for GPUs and many images"
    exact = False  # on GPUs nobody has compared it yet
    suits = ("cuda",)

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._programs: dict[tuple[Capture, ...], dict[int, Callable[[Tensor], Any]]] = {}

    def _forward(
        self, network: nn.Module, batch: Tensor, captures: Sequence[Capture]
    ) -> dict[str, Tensor]:
        programs, n = self._programs.setdefault(tuple(captures), {}), len(batch)
        # After a lack of memory, what is larger than fits is of no use.
        large = [size for size in programs if n <= size <= (self._largest or size)]
        size = min(large, default=n)
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
            except Exception as error:  # whatever a foreign forward pass or a compiler raises
                what = "PyTorch cannot compile this network."
                first = str(error).strip().partition("\n")[0][:200]
                got = f"{type(error).__name__}: {first}"
                raise CannotRunError(what, got=got, next_step="--runtime torch") from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {one.layer: out[:n] for one, out in zip(captures, outputs, strict=True)}
