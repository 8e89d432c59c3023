"""Test images that were seen before are reported; nothing is claimed without a reason."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.backbones import MODELS
from featpipe.datasets import CIFAR10_TRAIN, IMAGENET
from featpipe.errors import FitError
from featpipe.evaluation.assemble import outcome_of
from featpipe.evaluation.leaks import contamination, first_of_same_image
from featpipe.evaluation.run import set_up
from featpipe.probes.nearest_mean import Centroid
from featpipe.store import StoreContent
from tests.evaluation.methods import evaluated, pair, written
from tests.images import pictures
from tests.looks import seen
from tests.stores import content

# -- in training -----------------------------------------------------------------------------------


def test_leaks_are_reported_with_the_accuracy_without_them(tmp_path, leaky):
    result = evaluated(Centroid(), tmp_path, *leaky)
    account = result.extra["leaks"]
    assert (account["leaked"], account["test_images"]) == (10, 30)
    assert account["ids"] == sorted(f"test/{i}.png" for i in range(10))
    table = result.predictions()
    kept = [i for i, name in enumerate(table.ids) if int(name[5:-4]) >= 10]
    expected = np.mean(table.correct[np.isin(table.row, kept)])
    assert account["accuracy_without"]["value"] == pytest.approx(expected)
    assert result.notes[0].startswith("10 of 30 test images (33.3 %) are exact copies of training")
    assert account["relabelled"] == 0


def test_the_terminal_warns_of_the_leaks_of_each_result(tmp_path, leaky):
    whole, part = (Centroid(), Centroid(train_per_class=(2,)))
    message = outcome_of(evaluated(whole, tmp_path, *leaky), "done").message
    assert "warning: 10 of 30 test images" in message
    few = evaluated(part, tmp_path, *leaky)  # fewer training rows, fewer leaks
    leaked = few.extra["leaks"]["leaked"]
    assert 0 < leaked < 10
    assert f"warning: {leaked} of 30 test images" in outcome_of(few, "done").message


def test_where_every_test_image_leaked_nothing_new_was_measured(tmp_path):
    images = list(pictures(30, 16))
    train = seen(tmp_path / "train.h5", images)
    test = seen(tmp_path / "test.h5", images[:12], split="test")
    result = evaluated(Centroid(), tmp_path, train, test)
    account = result.extra["leaks"]
    assert (account["leaked"], account["accuracy_without"]) == (12, None)
    assert "nothing was measured on new images" in result.notes[0]


def test_without_leaks_there_is_no_note(tmp_path, leaky):
    images = list(pictures(30, 16, seed=5))
    test = seen(tmp_path / "other.h5", images, split="test")
    result = evaluated(Centroid(), tmp_path, leaky[0], test)
    assert result.extra["leaks"]["leaked"] == 0
    assert not any("exact cop" in note for note in result.notes)


def test_leaks_with_another_label_are_counted(tmp_path, leaky):
    train, _ = leaky
    images = list(pictures(90, 16))
    more = seen(tmp_path / "more.h5", [images[0], images[1], *images[60:80]], split="test")
    assert set(more.labels[:2]) == {0, 1}
    wrong = seen(tmp_path / "wrong.h5", [images[1], images[0], *images[60:80]], split="test")
    for test, relabelled in ((more, 0), (wrong, 2)):
        result = evaluated(Centroid(), tmp_path, train, test)
        assert result.extra["leaks"]["relabelled"] == relabelled
        assert ("2 of them under another label" in result.notes[0]) == (relabelled == 2)


def test_images_that_repeat_within_a_split_are_counted(tmp_path):
    images = list(pictures(60, 16))
    images[57], images[58] = images[0], images[1]  # 57 and 0 are of one class, 58 and 1 are, too
    images[59] = images[0]
    result = evaluated(Centroid(), tmp_path, seen(tmp_path / "a.h5", images, noise=6.0))
    account = result.extra["leaks"]
    assert (account["repeated"], account["conflicting"]) == (3, 1)
    text = "3 images are exact copies of another in the same split, 1 of them with another label"
    assert any(note.startswith(text) for note in result.notes)


def test_without_digests_of_pixels_leaks_are_unknown(tmp_path):
    train, test = pair(tmp_path)
    assert evaluated(Centroid(), tmp_path, train, test).extra["leaks"] is None
    with pytest.raises(FitError, match="is not known"):
        set_up(Centroid(leaks="drop"), train, test)


def test_a_skipped_image_is_like_no_other(tmp_path):
    images = list(pictures(6, 16))
    images[4] = images[1]  # what was skipped leaves the same in every row
    store = seen(tmp_path / "store.h5", images)
    assert len(set(first_of_same_image(store))) == 5
    store.skipped = {1: "damaged", 4: "damaged"}
    assert len(set(first_of_same_image(store))) == 6


# -- in pretraining --------------------------------------------------------------------------------


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
