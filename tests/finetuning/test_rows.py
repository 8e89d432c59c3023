"""Rows as batches: those asked for, augmented in training only, held out by class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UnknownNameError, UsageError
from featpipe.finetuning.rows import Augmentation, RowBatches, hold_out

COLOUR = (10, 20, 30)
SMALL = Preprocessing(resize=16, crop=16, mean=tuple(value / 255 for value in COLOUR))


def test_batches_are_rows_of_the_array_changed_where_they_are_augmented():
    array, labels = np.arange(20).reshape(10, 2), np.arange(10)
    rows = RowBatches(array, labels, np.array([7, 2, 5]))
    values, y = rows.__getitems__([2, 0])
    assert (len(rows), rows.labels.tolist(), y.tolist()) == (3, [7, 2, 5], [5, 7])
    assert values.tolist() == [[10, 11], [14, 15]]
    augmented = replace(rows, augment=lambda batch: -batch)
    assert augmented.__getitems__([2])[0].tolist() == [[-10, -11]]


@given(st.integers(2, 6), st.integers(4, 30), st.floats(0.05, 0.5), st.integers(0, 9))
def test_a_hold_out_takes_every_row_once_and_every_class(n_classes, each, share, seed):
    y = np.repeat(np.arange(n_classes), each)
    rows = np.flatnonzero(y >= 0)[::-1].copy()
    train, valid = hold_out(RowBatches(np.zeros((len(y), 1)), y, rows), share, seed)
    assert sorted([*train.rows, *valid.rows]) == sorted(rows)
    assert set(valid.labels) == set(train.labels) == set(range(n_classes))


def images(n: int = 4) -> torch.Tensor:
    return torch.randint(100, 256, (n, 3, 16, 16), dtype=torch.uint8)


def test_cutout_blanks_one_square():
    cut = Augmentation(["cutout:5"], SMALL)(images())
    for image in cut:
        blank = (image == torch.tensor(COLOUR).view(3, 1, 1)).all(dim=0)
        rows, columns = torch.nonzero(blank, as_tuple=True)
        assert int(blank.sum()) == 25
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 4


def test_flip_mirrors_about_half():
    batch = images(200)
    flipped = Augmentation(["flip"], SMALL)(batch)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, batch, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 60 < sum(mirrored) < 140


def test_crop_shifts_and_pads_with_the_mean_colour():
    shifted = Augmentation(["crop:4"], SMALL)(images(50))
    assert shifted.shape == (50, 3, 16, 16)
    assert bool((shifted[:, 0] == COLOUR[0]).any())


def tilt(images: torch.Tensor) -> torch.Tensor:
    """Angle in degrees between the longer side of a white bar and the horizontal."""
    places = [torch.nonzero(image[0] > 127).float() for image in images]
    covariance = torch.stack([torch.cov(place.T) for place in places])
    return (
        0.5
        * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 1, 1] - covariance[:, 0, 0]).rad2deg()
    )


@pytest.mark.parametrize("degrees", [5, 40])
def test_rotation_turns_by_up_to_the_degrees_in_both_directions(degrees):
    bars = torch.zeros(60, 3, 64, 64, dtype=torch.uint8)
    bars[:, :, 28:36, 10:54] = 255
    large = Preprocessing(resize=64, crop=64, mean=(0.0, 0.0, 0.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        angles = tilt(Augmentation([f"rotation:{degrees}"], large)(bars))
    assert angles.abs().max() <= degrees + 1
    assert angles.max() > 0.8 * degrees
    assert angles.min() < -0.8 * degrees


@pytest.mark.parametrize(
    "wrong", ["cutout", "cutout:16", "crop:x", "crop:9", "rotation:200", "flip:1", "rotation:nan"]
)
def test_impossible_augmentations_are_refused(wrong):
    with pytest.raises(UsageError, match=r"augmentation|too much"):
        Augmentation([wrong], SMALL)


def test_unknown_augmentations_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'cutout'"):
        Augmentation(["cutuot:4"], SMALL)
