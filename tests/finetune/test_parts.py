"""Losses, augmentations and rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetune.augment import Augmentation, Canvas
from featpipe.finetune.losses import CenterLoss, HeadLoss, parse_losses
from featpipe.finetune.rows import ActivationDataset, HoldOut, StoreRows
from featpipe.finetune.schedules import Plan, make_schedule
from featpipe.finetune.seeding import derived_seed

CANVAS = Canvas(16, (10, 20, 30))


def images(n: int = 4) -> torch.Tensor:
    return torch.randint(100, 256, (n, 3, 16, 16), dtype=torch.uint8)


def test_cutout_blanks_one_square():
    cut = Augmentation(["cutout:5"], CANVAS)(images())
    for image in cut:
        blank = (image == torch.tensor(CANVAS.colour).view(3, 1, 1)).all(dim=0)
        rows, columns = torch.nonzero(blank, as_tuple=True)
        assert int(blank.sum()) == 25
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 4


def test_flip_mirrors_about_half():
    batch = images(200)
    flipped = Augmentation(["flip"], CANVAS)(batch)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, batch, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 60 < sum(mirrored) < 140


def test_crop_shifts_and_pads_with_the_mean_colour():
    shifted = Augmentation(["crop:4"], CANVAS)(images(50))
    assert shifted.shape == (50, 3, 16, 16)
    assert bool((shifted[:, 0] == CANVAS.colour[0]).any())


def test_rotation_turns_but_little():
    batch = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    batch[:, :, 6:10, 6:10] = 200
    turned = Augmentation(["rotation:5"], CANVAS)(batch)
    assert abs(int(turned[0, 0, 7, 7]) - 200) < 30


def test_smoothing_counts_in_training_only():
    output = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 2)
    loss = HeadLoss(("cross-entropy",), 0.2, 3, 2)
    assert loss.train()(output, torch.tensor([0])) > 1
    assert loss.eval()(output, torch.tensor([0])) < 0.001


@pytest.mark.parametrize(
    "wrong", ["cutout", "cutout:16", "crop:x", "crop:9", "rotation:200", "flip:1", "rotation:nan"]
)
def test_impossible_augmentations_are_refused(wrong):
    with pytest.raises(UsageError, match=r"augmentation|too much"):
        Augmentation([wrong], CANVAS)


def test_unknown_augmentations_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'cutout'"):
        Augmentation(["cutuot:4"], CANVAS)


def test_centre_loss_is_that_of_the_paper():
    loss = CenterLoss(2, 2, rate=0.5)
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    labels = torch.tensor([0, 0, 1])
    value = loss(features, labels)
    assert value.item() == pytest.approx((4 + 16 + 36) / 3 / 2)
    # equation 4: the centre moves by rate * sum(centre - x) / (1 + n)
    torch.testing.assert_close(loss.centers, torch.tensor([[1.0, 0.0], [0.0, 1.5]]))


def test_terms_count_in_training_only():
    loss = HeadLoss(("center:0.5",), n_classes=2, n_features=2)
    output = (torch.zeros(2, 2), torch.ones(2, 2))
    labels = torch.tensor([0, 1])
    assert loss.eval()(output, labels).item() == pytest.approx(np.log(2))
    assert loss.train()(output, labels).item() == pytest.approx(np.log(2) + 0.5 * 1.0)


@pytest.mark.parametrize("wrong", ["triplet:0", "center:-1", "center:x", "cross-entropy:2"])
def test_wrong_loss_weights_are_refused(wrong):
    with pytest.raises(UsageError, match="not a loss"):
        parse_losses([wrong])


def test_the_triplet_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtraError, match="pytorch-metric-learning"):
        HeadLoss(("triplet",), n_classes=2, n_features=2)


@pytest.mark.parametrize(
    "wrong", ["multistep", "multistep:3,1", "cosine:3", "plateau:x", "plateau:1,2"]
)
def test_wrong_schedules_are_refused(wrong):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UsageError):
        make_schedule(wrong, optimizer, Plan(10, 2))


def test_views_are_drawn_in_training_only():
    X = np.arange(4)[None, :, None] * np.ones((6, 1, 2), np.float32)  # value = number of the view
    rows = ActivationDataset(X, np.zeros(6), views=3)
    assert rows.__getitems__([0, 5])[0].tolist() == [[0, 0], [0, 0]]
    drawn = rows.in_mode(training=True).__getitems__(list(range(6)) * 20)[0]
    assert set(drawn[:, 0].tolist()) == {1, 2, 3}


def test_store_rows_are_those_of_the_array():
    array = np.arange(20).reshape(10, 2)
    rows = StoreRows(array, np.array([7, 2, 5]))
    assert rows.shape == (3, 2)
    assert rows[np.array([2, 0])].tolist() == [[10, 11], [14, 15]]


@given(st.integers(2, 6), st.integers(4, 30), st.floats(0.05, 0.5), st.integers(0, 9))
def test_a_hold_out_takes_every_row_once_and_every_class(n_classes, each, share, seed):
    y = np.repeat(np.arange(n_classes), each)
    dataset = ActivationDataset(np.zeros((len(y), 1)), y)
    train, valid = HoldOut(share, seed)(dataset)
    assert sorted([*train.places, *valid.places]) == list(range(len(y)))
    assert set(y[valid.places]) == set(y[train.places]) == set(range(n_classes))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4))
def test_derived_seeds_are_seeds_of_torch(numbers):
    torch.Generator().manual_seed(derived_seed(*numbers))
