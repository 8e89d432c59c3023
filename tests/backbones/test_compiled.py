"""torch.compile: the numbers of plain PyTorch for batches of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.backbones import effective_runtime
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import CannotRunError, Execution, TorchRuntime
from featpipe.progress import Event, Progress
from tests.backbones.test_runtime import Deciding
from tests.images import random_images

LAYERS = ("bn", "conv")


def frozen(network: nn.Module, runtime: str, events: list[Event]) -> FrozenNetwork:
    how = Execution(runtime, progress=Progress(events.append))
    return FrozenNetwork("odd", network.eval(), Preprocessing(16, 16), torch.device("cpu"), how)


@pytest.fixture
def compiled_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of batches that something was compiled for; nothing is."""
    sizes: list[int] = []

    def compiled(graph: Any, dynamic: bool) -> Any:
        assert not dynamic
        (given,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
        sizes.append(given.meta["val"].shape[0])
        return graph

    monkeypatch.setattr(torch, "compile", compiled)
    return sizes


def test_smaller_batches_use_what_was_compiled_for_larger_ones(compiled_for: list[int]) -> None:
    torch.manual_seed(0)
    network, events = Deciding(), []
    images = random_images(12, 16)
    expected = frozen(network, "torch", []).embed(images, LAYERS)
    runs = frozen(network, "compiled", events)
    for size in (8, 3, 8, 1, 12):
        got = runs.embed(images[:size], LAYERS)
        for layer in LAYERS:
            np.testing.assert_allclose(got[layer], expected[layer][:size], rtol=1e-4, atol=1e-6)
    assert compiled_for == [8, 12]
    assert [event.message for event in events if "compiling" in event.message] == [
        "compiling the network for 8 images at once",
        "compiling the network for 12 images at once",
    ]


def test_after_a_lack_of_memory_smaller_batches_are_compiled_for(
    compiled_for: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = TorchRuntime._run

    def run(self: TorchRuntime, batch: torch.Tensor, captures: Any) -> Any:
        made = full(self, batch, captures)
        if max(compiled_for) > 4 and self._largest is None:
            raise torch.OutOfMemoryError
        return made

    monkeypatch.setattr(TorchRuntime, "_run", run)
    runs = frozen(Deciding(), "compiled", [])
    assert runs.embed(random_images(8, 16), ("bn",))["bn"].shape == (8, 4)
    assert compiled_for == [8, 4]


def test_a_network_that_decides_by_values_is_refused() -> None:
    """A trace would keep the branch that one batch took."""
    plain = Deciding()
    plain.forward = lambda x: plain.bn(plain.conv(x if x.sum() > 0 else -x))
    with pytest.raises(CannotRunError, match="PyTorch cannot compile this network"):
        frozen(plain, "compiled", []).embed(random_images(2, 16), ("bn",))


def test_a_compiler_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(graph: Any, dynamic: bool) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(CannotRunError, match="PyTorch cannot compile this network") as caught:
        frozen(Deciding(), "compiled", []).embed(random_images(2, 16), ("bn",))
    assert caught.value.details["got"] == "RuntimeError: no C++ compiler"
    assert caught.value.details["next"] == "--runtime torch"


def test_its_stores_are_its_own() -> None:
    assert effective_runtime("compiled") == "compiled"
