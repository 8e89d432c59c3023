"""Kaggle's layout of Dogs vs. Cats and its split by seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets.dataset import open_source
from featpipe.errors import DataError


@pytest.fixture
def made(make, options_for):
    made = make("dogs-vs-cats")
    return options_for(made), made.data / "dogs-vs-cats" / "train"


def both(options):
    return [open_source("dogs-vs-cats", split, options) for split in ("train", "test")]


def test_every_image_is_in_one_split_and_classes_are_parted_alike(made):
    options, folder = made
    train, test = both(options)
    assert sorted([*train.ids, *test.ids]) == sorted(path.name for path in folder.iterdir())
    assert np.bincount(train.labels).tolist() == [7, 7]
    assert np.bincount(test.labels).tolist() == [3, 3]
    for source in (train, test):
        assert [source.classes[label] for label in source.labels] == [n[:3] for n in source.ids]


def test_the_seed_draws_the_split(made):
    options, _ = made
    assert both(options)[1].ids == both(options)[1].ids
    drawn = {tuple(both(replace(options, seed=seed))[1].ids) for seed in range(5)}
    assert len(drawn) == 5


def test_other_files_are_of_no_concern(made):
    options, folder = made
    before = both(options)[0].fingerprint
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "cat.old.jpg").write_bytes(b"x")
    assert both(options)[0].fingerprint == before


@pytest.mark.parametrize("absent", ["cat", "dog"])
def test_one_class_only(made, absent):
    options, folder = made
    for path in folder.glob(f"{absent}.*"):
        path.unlink()
    with pytest.raises(DataError, match="no images") as caught:
        both(options)
    assert f"no {absent}.N.jpg" in str(caught.value)


def test_how_to_get_it_is_explained(options):
    with pytest.raises(DataError) as caught:
        open_source("dogs-vs-cats", "train", replace(options, download=True))
    assert "Kaggle" in str(caught.value)
    assert "train.zip" in str(caught.value)


@pytest.mark.real
def test_the_real_photographs(shared, options):
    train, test = both(replace(options, data=shared / "data"))
    assert np.bincount(train.labels).tolist() == [280, 280]
    assert np.bincount(test.labels).tolist() == [120, 120]
    assert not set(train.ids) & set(test.ids)
    sides = [test.read(row).shape for row in range(0, len(test), 24)]
    assert len(set(sides)) > 3
    assert all(shape[2] == 3 for shape in sides)
