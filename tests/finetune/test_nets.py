"""Networks as stages: without weights, of timm, the same numbers as the network itself."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from featpipe.backbones.cifar_resnet import CifarResNet
from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetune.nets import load_trunk, resnet9, stages_of, with_layer_norm
from featpipe.finetune.network import HeadedNetwork, cut_of


def whole(trunk, head: str, n_classes: int) -> HeadedNetwork:
    return HeadedNetwork(trunk, cut_of(trunk.stages, "all"), head, n_classes)


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
    network = with_layer_norm(CifarResNet(1, width=8)).train()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_big_transfer_models_have_stages():
    timm = pytest.importorskip("timm")
    trunk = load_trunk("timm:resnetv2_50x1_bit", "none", image_size=32)
    names = [name for name, _ in trunk.stages.named_children()]
    assert names == ["stem", "layer1", "layer2", "layer3", "layer4", "norm", "pool"]
    assert cut_of(trunk.stages, "layer4+").trained == ("layer4", "norm", "pool")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnetv2_50x1_bit", num_classes=0).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk.stages(x), network(x))
    assert trunk.preprocessing.mean == (0.5, 0.5, 0.5)


def test_any_other_model_of_timm_is_one_stage():
    pytest.importorskip("timm")
    trunk = load_trunk("timm:test_resnet", "none")
    side = trunk.preprocessing.crop
    logits, features = whole(trunk, "mlp:4", 3)(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert (logits.shape, features.shape) == ((2, 3), (2, 4))


def test_weights_of_timm_are_told_apart(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kw: create(name, **kw))

    def fingerprint(seed):  # drawn weights in place of downloaded ones
        trunk = load_trunk("timm:test_resnet", seed=seed)
        assert trunk.pretrained
        return trunk.description["weights"]["fingerprint"]

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_an_unknown_timm_model_is_named():
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError, match="resnetv2_50x1_bot") as caught:
        load_trunk("timm:resnetv2_50x1_bot", "none")
    assert "resnetv2_50x1_bit" in str(caught.value)


@pytest.mark.parametrize("name", ["timm", "timm:"])
def test_timm_needs_the_name_of_a_model(name):
    pytest.importorskip("timm")
    with pytest.raises(UsageError) as caught:
        load_trunk(name, "none")
    assert "timm:resnetv2_50x1_bit" in str(caught.value)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="timm") as caught:
        load_trunk("timm:resnet18", "none")
    assert "featpipe[timm]" in str(caught.value)


@pytest.mark.parametrize(
    ("network", "classifier"),
    [
        (resnet18(num_classes=7), "fc"),
        (CifarResNet(1, num_classes=7, width=8), "linear"),
        (resnet9(7), "fc"),
    ],
    ids=["torchvision", "cifar", "sequential"],
)
def test_stages_compute_what_the_network_computes(network, classifier):
    network.eval()
    stages, last = stages_of(network, classifier)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(last(stages(x)), network(x))


def test_a_network_of_unknown_order_is_refused():
    with pytest.raises(UsageError, match="cannot be fine-tuned"):
        stages_of(torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2)}), "fc")


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


def test_only_models_of_timm_have_an_argument():
    with pytest.raises(UnknownNameError, match="resnet9:5"):
        load_trunk("resnet9:5")


def test_timm_fetches_nothing_where_downloads_are_forbidden(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UsageError, match="fetches its weights itself") as caught:
        load_trunk("timm:resnet18", download=False)
    assert "--weights none" in str(caught.value)
