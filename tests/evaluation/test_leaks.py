"""A backbone that may have seen test images is told of; nothing is claimed without a reason."""

from __future__ import annotations

import pytest

from featpipe.backbones import MODELS
from featpipe.datasets import CIFAR10_TRAIN, IMAGENET
from featpipe.evaluation.leaks import contamination
from featpipe.probes.nearest_mean import Centroid
from featpipe.store import StoreContent
from tests.evaluation.methods import evaluated, written
from tests.stores import content


def said(model, weights, dataset, split="test"):
    return contamination(
        {"model": model, "weights": {"name": weights}}, {"name": dataset, "split": split}
    )


@pytest.mark.parametrize(
    ("dataset", "split", "why"),
    [
        ("stl10", "train", "STL-10's images were drawn from ImageNet's labelled ones"),
        ("stl10", "test", "STL-10's images were drawn from ImageNet's labelled ones"),
        ("tiny-imagenet", "val", "Tiny-ImageNet is a part of ImageNet"),
        ("torchvision:Imagenette", "val", "Imagenette is a part of ImageNet"),
    ],
)
def test_images_of_imagenet_may_have_been_seen(dataset, split, why):
    assert said("resnet50", "IMAGENET1K_V2", dataset, split) == (
        "The backbone may have seen test images with their labels: it was trained on ImageNet-1k "
        f"(IMAGENET1K_V2), and {why}."
    )


@pytest.mark.parametrize(
    ("model", "weights", "dataset", "split"),
    [
        ("resnet50", "IMAGENET1K_V2", "cifar10", "test"),
        ("resnet50", "IMAGENET1K_V2", "cifar10", "train"),
        ("resnet50", "IMAGENET1K_V2", "dogs-vs-cats", "train"),
        ("resnet50", "IMAGENET1K_V2", "digits", "test"),
        ("resnet50", "IMAGENET1K_V2", "folder:stl10", "all"),
        ("resnet50", "mine.safetensors", "folder:stl10", "all"),
        ("resnet50", "IMAGENET1K_V2", "npz:tiny-imagenet.npz", "all"),
        ("resnet50", "IMAGENET1K_V2", "torchvision:Flowers102", "test"),
        ("resnet50", "IMAGENET1K_V2", "of another package", "test"),
        ("resnet50", "none", "stl10", "test"),
        ("cifar_resnet20", "CIFAR10_V1", "cifar10", "test"),
        ("cifar_resnet20", "CIFAR10_V1", "cifar100", "train"),
        ("cifar_resnet20", "CIFAR10_V1", "stl10", "test"),
        ("cifar_resnet20", "mine.th", "cifar10", "test"),
        ("glyphnet", "GLYPHS_V1", "stl10", "test"),
    ],
)
def test_nothing_is_claimed_of_other_pairs(model, weights, dataset, split):
    assert said(model, weights, dataset, split) == ""


def test_a_network_of_cifar10_has_seen_its_training_images_only():
    note = said("cifar_resnet20", "CIFAR10_V1", "cifar10", "train")
    assert "CIFAR-10's training images (CIFAR10_V1), and the test images are some of them" in note


@pytest.mark.parametrize(
    ("model", "weights"),
    [("resnet50", "mine.safetensors"), ("resnet50", "IMAGENET.pt"), ("timm-x", "timm's own")],
)
def test_weights_that_are_not_published_here_are_unknown(model, weights):
    assert said(model, weights, "stl10") == (
        f"What the weights {weights} were trained on is unknown. If on ImageNet-1k, the backbone "
        "may have seen test images with their labels: STL-10's images were drawn from ImageNet's "
        "labelled ones."
    )


def test_published_weights_of_an_architecture_say_what_they_were_trained_on():
    assert {w.trained_on for w in MODELS.get("resnet18").published.values()} == {IMAGENET}
    assert {w.trained_on for w in MODELS.get("resnet56").published.values()} == {CIFAR10_TRAIN}


def store_of(path, dataset, backbone, split="train"):
    what = content(60, dataset=dataset, split=split)
    manifest = {**what.manifest, "backbone": backbone}
    return written(path, StoreContent(**{**vars(what), "manifest": manifest}))


def test_the_result_carries_the_note_and_its_key_does_not_depend_on_it(tmp_path):
    backbone = {"model": "resnet18", "weights": {"name": "IMAGENET1K_V1"}}
    told = evaluated(
        Centroid(protocol="holdout:0.5"), tmp_path, store_of(tmp_path / "a.h5", "stl10", backbone)
    )
    assert told.extra["contamination"] in told.notes
    assert "trained on ImageNet-1k (IMAGENET1K_V1)" in told.extra["contamination"]
    own = evaluated(
        Centroid(protocol="holdout:0.5"), tmp_path, store_of(tmp_path / "b.h5", "toy", backbone)
    )
    assert "contamination" not in own.extra
    assert not any("seen" in note for note in own.notes)


def test_the_images_that_count_are_those_tested(tmp_path):
    """Weights trained on CIFAR-10 know its training rows; a probe is tested on its test rows."""
    backbone = {"model": "cifar_resnet20", "weights": {"name": "CIFAR10_V1"}}
    train = store_of(tmp_path / "train.h5", "cifar10", backbone)
    test = store_of(tmp_path / "test.h5", "cifar10", backbone, split="test")
    assert "contamination" not in evaluated(Centroid(), tmp_path, train, test).extra
    assert "contamination" in evaluated(Centroid(protocol="kfold:2"), tmp_path, train).extra
