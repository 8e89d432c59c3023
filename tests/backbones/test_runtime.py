"""How the network runs: the same numbers whatever is folded, on a device that is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.runtime import choose_device, fold_batch_norm
from featpipe.errors import UnknownNameError, UsageError
from tests.images import random_state


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
    with pytest.raises(UsageError, match="is not there"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "tpu", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="no device named"):
        choose_device(name)
