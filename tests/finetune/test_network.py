"""Networks as stages: the same numbers, the right counts, cut where it is asked for."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from featpipe.backbones.cifar_resnet import CifarResNet
from featpipe.errors import UnknownNameError, UsageError
from featpipe.finetune.nets import resnet9
from featpipe.finetune.network import HeadedNetwork, cut_of, load_trunk, stages_of


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


def test_a_cut_says_what_learns():
    stages, _ = stages_of(resnet18(), "fc")
    assert cut_of(stages, "none") == cut_of(stages, "fc")
    assert cut_of(stages, "none").trained == ()
    one, behind = cut_of(stages, "layer3"), cut_of(stages, "layer3+")
    assert one.frozen == behind.frozen == ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
    assert one.trained == ("layer3",)
    assert one.passed[:1] == ("layer4",)
    assert behind.trained[:2] == ("layer3", "layer4")
    assert cut_of(stages, "all").frozen == ()


@pytest.mark.parametrize("wrong", ["layer5", "lyer4", "layer5+"])
def test_a_layer_that_is_not_there_is_refused(wrong):
    stages, _ = stages_of(resnet18(), "fc")
    with pytest.raises(UnknownNameError, match="to unfreeze") as caught:
        cut_of(stages, wrong)
    assert "did you mean 'layer" in str(caught.value)


def test_a_layer_without_parameters_is_refused():
    stages, _ = stages_of(resnet18(), "fc")
    with pytest.raises(UsageError, match="nothing to learn"):
        cut_of(stages, "maxpool")


def test_frozen_parts_do_not_change(weights):
    trunk = load_trunk("glyphnet", str(weights))
    network = HeadedNetwork(trunk, cut_of(trunk.stages, "layer2"), "linear", 3, from_store=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))[0].sum().backward()
    optimizer.step()
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith(("body.layer2", "head")) for name in changed)


@pytest.mark.parametrize("keep", [True, False])
def test_statistics_can_be_kept(weights, keep):
    trunk = load_trunk("glyphnet", str(weights))
    cut = cut_of(trunk.stages, "layer3+")
    network = HeadedNetwork(trunk, cut, "linear", 3, from_store=False, freeze_statistics=keep)
    before = network.body.layer3[0].bn1.running_mean.clone()
    network.train()(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(network.body.layer3[0].bn1.running_mean, before) == keep


@pytest.mark.parametrize("change", [{"body.more": torch.zeros(1)}, {"head.classifier.bias": None}])
def test_the_state_of_another_network_is_refused(change):
    trunk = load_trunk("convnet")
    network = HeadedNetwork(trunk, cut_of(trunk.stages, "all"), "linear", 3)
    state = {**network.trained_state(), **change}
    with pytest.raises(ValueError, match="not the state of this network"):
        network.load_trained_state({k: v for k, v in state.items() if v is not None})


def test_layer_norm_does_not_fit_pretrained_weights(weights):
    with pytest.raises(UsageError, match="batch norm they were trained with"):
        load_trunk("glyphnet", str(weights), "layer")


def test_untrained_networks_take_no_weights(weights):
    with pytest.raises(UsageError, match="trained from scratch"):
        load_trunk("resnet9", str(weights))


def test_only_models_of_timm_have_an_argument():
    with pytest.raises(UnknownNameError, match="resnet9:5"):
        load_trunk("resnet9:5")
