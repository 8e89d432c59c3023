"""What is trained: behind which boundary, with which head, from which start, by which loss."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetuning.nets import load_trunk
from featpipe.finetuning.network import CenterLoss, Head, HeadedNetwork, HeadLoss, trained_stages


def test_stages_that_learn_are_named_with_or_without_those_after():
    stages = load_trunk("resnet18", "none").stages
    names = [name for name, _ in stages.named_children()]
    assert names[trained_stages(stages, "none")] == []
    assert names[trained_stages(stages, "all")] == names
    assert names[trained_stages(stages, "layer3")] == ["layer3"]
    assert names[trained_stages(stages, "layer3+")] == names[names.index("layer3") :]
    assert names[: names.index("layer4")] == [
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    ]


@pytest.mark.parametrize("wrong", ["layer5", "lyer4", "layer5+"])
def test_a_layer_that_is_not_there_is_refused(wrong):
    stages = load_trunk("resnet18", "none").stages
    with pytest.raises(UnknownNameError, match="to unfreeze") as caught:
        trained_stages(stages, wrong)
    assert "did you mean 'layer" in str(caught.value)


def test_a_layer_without_parameters_is_refused():
    stages = load_trunk("resnet18", "none").stages
    with pytest.raises(UsageError, match="nothing to learn"):
        trained_stages(stages, "maxpool")


def test_frozen_parts_do_not_change(weights):
    trunk = load_trunk("glyphnet", str(weights))
    network = HeadedNetwork(trunk, "layer2", "linear", 3, from_store=False)
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
    how = {"from_store": False, "freeze_statistics": keep}
    network = HeadedNetwork(trunk, "layer3+", "linear", 3, **how)
    before = network.body.layer3[0].bn1.running_mean.clone()
    network.train()(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(network.body.layer3[0].bn1.running_mean, before) == keep


@pytest.mark.parametrize("change", [{"body.more": torch.zeros(1)}, {"head.classifier.bias": None}])
def test_the_state_of_another_network_is_refused(change):
    trunk = load_trunk("convnet")
    network = HeadedNetwork(trunk, "all", "linear", 3)
    state = {**network.trained_state(), **change}
    with pytest.raises(ValueError, match="not the state of this network"):
        network.load_trained_state({k: v for k, v in state.items() if v is not None})


def test_heads():
    assert sum(p.numel() for p in Head("linear", 4, 3).parameters()) == 15
    assert sum(p.numel() for p in Head("linear", 4, 3, bias=False).parameters()) == 12
    assert [p.numel() for p in Head("mlp:50", 4, 3).parameters()] == [200, 50, 150, 3]


@pytest.mark.parametrize("wrong", ["mlp", "mlp:0", "mlp:x", "linear:3"])
def test_wrong_heads_are_refused(wrong):
    with pytest.raises(UsageError):
        Head(wrong, 4, 3)


def test_centre_loss_is_that_of_the_paper():
    loss = CenterLoss(2, 2)
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    value = loss(features, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((4 + 16 + 36) / 3 / 2)
    # equation 4: the centre moves by rate * sum(centre - x) / (1 + n)
    torch.testing.assert_close(loss.centers, torch.tensor([[1.0, 0.0], [0.0, 1.5]]))


def test_terms_count_in_training_only():
    loss = HeadLoss(("center:0.5",), n_classes=2, n_features=2)
    output = (torch.zeros(2, 2), torch.ones(2, 2))
    labels = torch.tensor([0, 1])
    assert loss.eval()(output, labels).item() == pytest.approx(np.log(2))
    assert loss.train()(output, labels).item() == pytest.approx(np.log(2) + 0.5 * 1.0)


@pytest.mark.parametrize(
    "wrong", ["triplet", "triplet:0", "center:-1", "center:x", "cross-entropy:2"]
)
def test_wrong_weights_are_refused(wrong):
    with pytest.raises(UsageError, match=r"weight above zero|takes no number"):
        HeadLoss([wrong], n_classes=2, n_features=2)


def test_the_triplet_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtraError, match="pytorch_metric_learning"):
        HeadLoss(("triplet:1",), n_classes=2, n_features=2)
