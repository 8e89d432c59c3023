"""Networks as stages: without weights, of timm, the same numbers as the network itself."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.cifar_resnet import cifar_resnet
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Execution
from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetuning.nets import load_trunk, stages_of, with_layer_norm
from featpipe.finetuning.network import HeadedNetwork, trained_stages


def whole(trunk, head: str, n_classes: int) -> HeadedNetwork:
    return HeadedNetwork(trunk, "all", head, n_classes)


def test_resnet9_has_the_parameters_that_keras_counts():
    counts = whole(load_trunk("resnet9"), "linear", 10).count_parameters()
    assert counts == {
        "parameters_trained": 6_573_120,
        "parameters_frozen": 0,
        "running_statistics": 4_480,
    }
    assert sum(counts.values()) == 6_577_600


@pytest.mark.parametrize(
    "name",
    [
        *("resnet9", "resnet18_32", "resnet18_32_max", "resnet18_32_stem", "resnet18_32_stem_max"),
        *("convnet", "cifar_resnet20", "resnet18"),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_network_takes_a_training_step(name, norm):
    network = whole(load_trunk(name, "none", norm, image_size=32), "linear", 3)
    logits, _ = network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert has_batch_norm == (norm == "batch" and name != "convnet")


def test_layer_norm_looks_at_one_image_only():
    network = with_layer_norm(cifar_resnet(1, width=8)).train()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_big_transfer_models_have_stages():
    timm = pytest.importorskip("timm")
    trunk = load_trunk("timm:resnetv2_50x1_bit", "none", image_size=32)
    names = [name for name, _ in trunk.stages.named_children()]
    assert names == ["stem", "layer1", "layer2", "layer3", "layer4", "norm", "pool"]
    assert names[trained_stages(trunk.stages, "layer4+")] == ["layer4", "norm", "pool"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnetv2_50x1_bit", num_classes=2).eval()
    network.reset_classifier(0)
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk.stages(x), network(x))
    assert trunk.preprocessing.mean == (0.5, 0.5, 0.5)


def test_an_unknown_timm_model_is_named():
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError, match="resnetv2_50x1_bot") as caught:
        load_trunk("timm:resnetv2_50x1_bot", "none")
    assert "resnetv2_50x1_bit" in str(caught.value)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="transformers") as caught:
        load_trunk("hf:any", "none")
    assert "featpipe[hf]" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20", "resnet9"])
def test_stages_compute_what_the_network_computes(name):
    architecture = MODELS.get(name)
    network = architecture.untrained().eval()
    last = network.get_submodule(architecture.classifier)
    size = Preprocessing(resize=32, crop=32)
    stages, width, bias = stages_of(
        FrozenNetwork(name, network, size, torch.device("cpu"), Execution("torch")), architecture
    )
    assert (width, bias) == (last.in_features, name != "resnet9")
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(last(stages(x)), network(x))


@pytest.mark.parametrize("model", ["torchvision:mobilenet_v3_small", "timm:test_vit3"])
def test_a_network_of_unknown_order_is_one_stage(model):
    trunk = load_trunk(model, "none", image_size=64 if model.startswith("torch") else None)
    side = trunk.preprocessing.crop
    assert [name for name, _ in trunk.stages.named_children()] == ["features"]
    network = whole(trunk, "mlp:4", 3)
    logits, features = network(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert (logits.shape, features.shape) == ((2, 3), (2, 4))
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    same = load_trunk(model, "none", image_size=side)
    x = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(same.stages(x), trunk.stages(x))


def test_untrained_networks_follow_from_their_seed():
    first, same, other = (
        next(load_trunk("convnet", seed=seed).stages.parameters()) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_layer_norm_does_not_fit_pretrained_weights(weights):
    with pytest.raises(UsageError, match="batch norm they were trained with"):
        load_trunk("glyphnet", str(weights), "layer")


def test_untrained_networks_take_no_weights(weights):
    with pytest.raises(UsageError, match="trained from scratch"):
        load_trunk("resnet9", str(weights))


def test_only_families_have_an_argument():
    with pytest.raises(UnknownNameError, match="resnet9:5"):
        load_trunk("resnet9:5")
