"""Networks as stages: the same numbers, the right counts, cut where it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from featpipe.backbones.cifar_resnets import CifarResNet
from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetune.head import make_head
from featpipe.finetune.module import NetworkFactory, count_parameters
from featpipe.finetune.networks.normalisation import with_layer_norm
from featpipe.finetune.networks.resnet9 import resnet9
from featpipe.finetune.stages import body_of, cut_of
from featpipe.finetune.trunk import TrunkRequest, load_trunk


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
    stages, last = body_of(network, classifier)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(last(stages(x)), network(x))


def test_resnet9_has_the_parameters_that_keras_counts():
    trunk = load_trunk(TrunkRequest("resnet9"))
    counts = count_parameters(NetworkFactory(trunk, cut_of(trunk.stages, "all"), "linear", 10)())
    assert counts == {"trained": 6_573_120, "frozen": 0, "running_statistics": 4_480}
    assert sum(counts.values()) == 6_577_600


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet9", 32),
        ("resnet18_32", 32),
        ("resnet18_32_max", 32),
        ("resnet18_32_stem", 32),
        ("resnet18_32_stem_max", 32),
        ("convnet", 32),
        ("cifar_resnet20", 32),
        ("resnet18", 32),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_network_takes_a_training_step(name, size, norm):
    trunk = load_trunk(TrunkRequest(name, "none", norm, image_size=size))
    network = NetworkFactory(trunk, cut_of(trunk.stages, "all"), "linear", 3)()
    logits, _ = network(torch.zeros(2, 3, size, size, dtype=torch.uint8))
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


def test_untrained_networks_follow_from_their_seed():
    first, same, other = (
        next(load_trunk(TrunkRequest("convnet", seed=seed)).stages.parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_big_transfer_models_have_stages():
    timm = pytest.importorskip("timm")
    trunk = load_trunk(TrunkRequest("timm:resnetv2_50x1_bit", "none", image_size=32))
    names = [name for name, _ in trunk.stages.named_children()]
    assert names == ["stem", "layer1", "layer2", "layer3", "layer4", "norm", "pool"]
    assert cut_of(trunk.stages, "layer4+").trained == ("layer4", "norm", "pool")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = timm.create_model("resnetv2_50x1_bit", num_classes=0).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk.stages(x), whole(x))
    assert trunk.preprocessing.mean == (0.5, 0.5, 0.5)


def test_any_other_model_of_timm_is_one_stage():
    pytest.importorskip("timm")
    trunk = load_trunk(TrunkRequest("timm:test_resnet", "none"))
    network = NetworkFactory(trunk, cut_of(trunk.stages, "all"), "mlp:4", 3)()
    side = trunk.preprocessing.crop
    logits, features = network(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert (logits.shape, features.shape) == ((2, 3), (2, 4))


def test_weights_of_timm_are_told_apart(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kw: create(name, **kw))

    def fingerprint(seed):  # drawn weights stand for downloaded ones
        trunk = load_trunk(TrunkRequest("timm:test_resnet", seed=seed))
        assert trunk.pretrained
        return trunk.description["weights"]["fingerprint"]

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_an_unknown_timm_model_is_named():
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError, match="resnetv2_50x1_bot") as caught:
        load_trunk(TrunkRequest("timm:resnetv2_50x1_bot", "none"))
    assert "resnetv2_50x1_bit" in str(caught.value)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match="timm") as caught:
        load_trunk(TrunkRequest("timm:resnet18", "none"))
    assert "featpipe[timm]" in str(caught.value)


def test_a_cut_says_what_learns():
    stages, _ = body_of(resnet18(), "fc")
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
    stages, _ = body_of(resnet18(), "fc")
    with pytest.raises(UnknownNameError, match="to unfreeze") as caught:
        cut_of(stages, wrong)
    assert "did you mean 'layer" in str(caught.value)


def test_a_layer_without_parameters_is_refused():
    stages, _ = body_of(resnet18(), "fc")
    with pytest.raises(UsageError, match="nothing to learn"):
        cut_of(stages, "maxpool")


def test_frozen_parts_do_not_change(weights):
    trunk = load_trunk(TrunkRequest("glyphnet", str(weights)))
    network = NetworkFactory(trunk, cut_of(trunk.stages, "layer2"), "linear", 3, from_store=False)()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))[0].sum().backward()
    optimizer.step()
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith(("body.layer2", "head")) for name in changed)


def test_statistics_can_be_kept(weights):
    trunk = load_trunk(TrunkRequest("glyphnet", str(weights)))
    cut = cut_of(trunk.stages, "layer3+")
    for keep in (True, False):
        network = NetworkFactory(
            trunk, cut, "linear", 3, from_store=False, freeze_statistics=keep
        )()
        before = network.body.layer3[0].bn1.running_mean.clone()
        network.train()(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
        assert torch.equal(network.body.layer3[0].bn1.running_mean, before) == keep


def test_heads():
    with_bias = make_head("linear", 4, 3, bias=True, seed=0)
    assert sum(p.numel() for p in with_bias.parameters()) == 15
    assert sum(p.numel() for p in make_head("linear", 4, 3, bias=False, seed=0).parameters()) == 12
    assert [p.numel() for p in make_head("mlp:50", 4, 3, bias=True, seed=0).parameters()] == [
        *(200, 50, 150, 3)
    ]


@pytest.mark.parametrize("wrong", ["mlp", "mlp:0", "mlp:x", "linear:3"])
def test_wrong_heads_are_refused(wrong):
    with pytest.raises(UsageError):
        make_head(wrong, 4, 3, bias=True, seed=0)


def test_layer_norm_does_not_fit_pretrained_weights(weights):
    with pytest.raises(UsageError, match="batch norm they were trained with"):
        load_trunk(TrunkRequest("glyphnet", str(weights), "layer"))


def test_untrained_networks_take_no_weights(weights):
    with pytest.raises(UsageError, match="trained from scratch"):
        load_trunk(TrunkRequest("resnet9", str(weights)))
