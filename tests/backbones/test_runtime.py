"""How the network runs: the same numbers whatever is folded, on a device that is there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.backbones import MODELS, RUNTIMES, effective_runtime, runtime
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import (
    CannotRunError,
    CompiledRuntime,
    Execution,
    TorchRuntime,
    activations,
    choose,
    choose_device,
    fold_batch_norm,
    rounding_to_tf32,
)
from featpipe.errors import UnknownNameError, UsageError
from featpipe.progress import Event, Progress
from tests.images import random_images, random_state


def network(model: str) -> nn.Module:
    built = MODELS.get(model).build(10)
    built.load_state_dict(random_state(model))
    return built.eval()


@pytest.mark.parametrize("model", ["glyphnet", "cifar_resnet20", "resnet18", "resnet50"])
def test_a_folded_network_computes_the_same(model: str) -> None:
    plain = network(model)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    folded = fold_batch_norm(plain)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = plain(images), folded(images)
    assert (expected - got).abs().max() < 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert dict(folded.named_modules()).keys() == dict(plain.named_modules()).keys()
    after = plain.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class NormFirst(nn.Module):
    """Listed as convolution and norm, run the other way round; and a convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.shared = nn.Conv2d(3, 3, 1)
        self.bn2 = nn.BatchNorm2d(3)
        for norm in (self.bn, self.bn2):
            norm.running_mean.uniform_(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.conv(self.bn(x)))
        return x + self.bn2(x)


def test_only_what_directly_follows_a_convolution_is_folded() -> None:
    torch.manual_seed(0)
    plain = NormFirst().eval()
    folded = fold_batch_norm(plain)
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(plain(images), folded(images))
    assert isinstance(folded.bn, nn.BatchNorm2d)
    assert isinstance(folded.bn2, nn.BatchNorm2d)


class Deciding(nn.Module):
    """A forward pass that depends on values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        return -x if x.sum() < 0 else x


def test_a_network_that_cannot_be_traced_runs_as_it_is() -> None:
    network = Deciding().eval()
    assert fold_batch_norm(network) is network


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["cuda:99", "mps:7"])
def test_a_device_that_is_absent_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"No (CUDA|MPS) device \d+ was found"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "tpu", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="no device named"):
        choose_device(name)


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose("float32", cpu)[0] == "openvino"
    assert choose("float32", cpu, side=32)[0] == "torch"
    assert choose("float32", gpu)[0] == "torch"
    assert choose("int8", cpu, side=32)[0] == "openvino"
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    name, why = choose("float32", cpu)
    assert name == "torch"
    assert "pip install openvino" in why


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(model, name, marks=[pytest.mark.long] * (name == "compiled"))
        for model in ("glyphnet", "cifar_resnet20", "resnet18")
        for name in RUNTIMES.names()
    ],
)
def test_every_runtime_gives_the_numbers_of_plain_pytorch(model: str, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    plain, prepared = network(model), Preprocessing(48, 48)
    images = random_images(5, 48)
    layers = ("conv1", "layer1", "layer3:map")
    frozen = FrozenNetwork(model, plain, prepared, torch.device("cpu"), Execution(name))
    got = frozen.embed(images, layers)
    captures = [frozen.capture(layer) for layer in layers]
    with torch.inference_mode():
        expected = activations(plain, prepared.normalise(images), captures)
    for layer in layers:
        wanted = expected[layer].numpy().reshape(5, -1)
        apart = np.linalg.norm(got[layer].reshape(5, -1) - wanted, axis=1)
        relative = (apart / np.linalg.norm(wanted, axis=1)).max()
        assert relative <= (1e-4 if frozen.runtime.exact else 1e-3)


def test_calls_at_the_same_time_do_not_mix_what_they_capture() -> None:
    prepared, device = Preprocessing(32, 32), torch.device("cpu")
    frozen = FrozenNetwork("small", network("glyphnet"), prepared, device, Execution("torch"))
    batches = [random_images(3, 32, seed) for seed in range(8)]
    alone = [frozen.embed(batch, ("layer2", "avgpool")) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: frozen.embed(batch, ("layer2", "avgpool")), batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["layer2"], other["layer2"])
        np.testing.assert_array_equal(one["avgpool"], other["avgpool"])


def test_tf32_is_for_its_own_precision_and_leaves_no_trace() -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = allowed()
    with rounding_to_tf32(True):
        assert allowed() == (True, True)
        with rounding_to_tf32(False):
            assert allowed() == (False, False)
        assert allowed() == (True, True)
    assert allowed() == before


def test_out_of_memory_halves_the_batch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with room for three images; the numbers are those of one with room for all."""
    events: list[Event] = []
    how = Execution("torch", progress=Progress(events.append))
    device = torch.device("cpu")
    frozen = FrozenNetwork("small", network("glyphnet"), Preprocessing(32, 32), device, how)
    images = random_images(11, 32)
    expected = frozen.embed(images, ("avgpool",))["avgpool"]
    forward, sizes = TorchRuntime.forward, []

    def short_of_memory(self: TorchRuntime, net: nn.Module, batch: torch.Tensor, *more: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return forward(self, net, batch, *more)

    monkeypatch.setattr(TorchRuntime, "forward", short_of_memory)
    np.testing.assert_allclose(frozen.embed(images, ("avgpool",))["avgpool"], expected, rtol=1e-4)
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    assert [event.message for event in events if "out of memory" in event.message] == [
        "cpu is out of memory with 11 images at once: continuing with 5",
        "cpu is out of memory with 5 images at once: continuing with 2",
    ]
    monkeypatch.setattr(TorchRuntime, "forward", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        frozen.embed(images, ("avgpool",))


@pytest.mark.parametrize(
    ("name", "precision", "says"),
    [
        ("torch", "int8", "does not have"),
        ("torch", "float16", "does not compute in float16 on this device"),
        ("torch", "tf32", "does not compute in tf32 on this device"),
        (None, "tf32", "does not compute in tf32 on this device"),
        ("openvino", "tf32", "does not have"),
    ],
)
def test_a_precision_that_is_not_there_is_refused(name: str, precision: str, says: str) -> None:
    how = Execution(name, precision)
    with pytest.raises(UsageError, match=says):
        FrozenNetwork("small", network("glyphnet"), Preprocessing(32, 32), torch.device("cpu"), how)


def test_bfloat16_is_near_and_is_described() -> None:
    parts = "small", network("glyphnet"), Preprocessing(32, 32), torch.device("cpu")
    images, how = random_images(3, 32), [Execution("torch"), Execution("torch", "bfloat16")]
    plain, lower = (FrozenNetwork(*parts, one) for one in how)
    a, b = (one.embed(images, ("avgpool",))["avgpool"] for one in (plain, lower))
    relative = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert 1e-4 < relative < 0.05
    assert (plain.inexact(), lower.inexact()) == (
        {},
        {"runtime": "torch", "precision": "bfloat16"},
    )


# --- torch.compile: the numbers of plain PyTorch for batches of any size


def odd(network: nn.Module, runtime: str, events: list[Event]) -> FrozenNetwork:
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
    expected = odd(network, "torch", []).embed(images, ("bn", "conv"))
    runs = odd(network, "compiled", events)
    for size in (8, 3, 8, 1, 12):
        got = runs.embed(images[:size], ("bn", "conv"))
        for layer in ("bn", "conv"):
            np.testing.assert_allclose(got[layer], expected[layer][:size], rtol=1e-4, atol=1e-6)
    assert compiled_for == [8, 12]
    assert [event.message for event in events if "compiling" in event.message] == [
        "compiling the network for 8 images at once",
        "compiling the network for 12 images at once",
    ]


def test_after_a_lack_of_memory_smaller_batches_are_compiled_for(
    compiled_for: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CompiledRuntime.forward

    def short_of_memory(
        self: CompiledRuntime, net: nn.Module, batch: torch.Tensor, *more: Any
    ) -> Any:
        made = forward(self, net, batch, *more)
        if len(batch) > 4:
            raise torch.OutOfMemoryError
        return made

    monkeypatch.setattr(CompiledRuntime, "forward", short_of_memory)
    runs = odd(Deciding(), "compiled", [])
    assert runs.embed(random_images(8, 16), ("bn",))["bn"].shape == (8, 4)
    assert compiled_for == [8, 4]


def test_a_network_that_decides_by_values_is_refused() -> None:
    """A trace would keep the branch that one batch took."""
    plain = Deciding()
    plain.forward = lambda x: plain.bn(plain.conv(x if x.sum() > 0 else -x))
    with pytest.raises(CannotRunError, match="PyTorch cannot compile this network"):
        odd(plain, "compiled", []).embed(random_images(2, 16), ("bn",))


def test_a_compiler_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(graph: Any, dynamic: bool) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(CannotRunError, match="PyTorch cannot compile this network") as caught:
        odd(Deciding(), "compiled", []).embed(random_images(2, 16), ("bn",))
    assert caught.value.details["got"] == "RuntimeError: no C++ compiler"
    assert caught.value.details["next"] == "--runtime torch"


def test_stores_of_compiled_networks_are_their_own() -> None:
    assert effective_runtime("compiled") == "compiled"
