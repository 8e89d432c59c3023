"""Which rows take part: leaks to drop, identical images, and lists of images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.errors import DataError, FitError
from featpipe.evaluation.leaks import first_of_same_image
from featpipe.evaluation.protocol import make_splits, validation_folds
from featpipe.evaluation.run import set_up
from featpipe.evaluation.screening import Screening
from featpipe.probes.nearest_mean import Centroid
from tests.evaluation.methods import evaluated
from tests.images import pictures
from tests.looks import seen


def test_dropped_leaks_do_not_train(tmp_path, leaky):
    result = evaluated(Centroid(leaks="drop"), tmp_path, *leaky)
    assert result.splits[0]["n_train"] == 50
    assert result.splits[0]["n_test"] == 30
    assert result.extra["leaks"]["leaked"] == 0


def test_leaks_can_be_forbidden(leaky):
    with pytest.raises(FitError, match="10 training images are also test images") as error:
        set_up(Centroid(leaks="fail"), *leaky)
    assert "--leaks drop" in str(error.value)


@pytest.mark.parametrize("protocol", ["kfold:3", "holdout:0.3"])
@pytest.mark.parametrize("copies", [3, 30])
def test_identical_images_stay_together(tmp_path, protocol, copies):
    images = list(pictures(60, 16))
    images[60 - copies :] = [images[row] for row in range(copies)]  # of the same classes
    store = seen(tmp_path / "store.h5", images)
    _, splits = make_splits(protocol, store, None, seed=0)
    number = first_of_same_image(store)
    for split in splits:
        assert not set(number[split.train.rows]) & set(number[split.test.rows])
        assert len(split.train) + len(split.test) == 60
        folds, _ = validation_folds("kfold:3", split.train.labels, split.train.groups, 0)
        own = number[split.train.rows]
        assert all(not set(own[train]) & set(own[apart]) for train, apart in folds)


def test_few_copies_leave_the_shares_of_classes_equal(tmp_path):
    images = list(pictures(60, 16))
    images[57:] = images[:3]
    _, splits = make_splits("kfold:5", seen(tmp_path / "store.h5", images), None, seed=0)
    assert all(set(np.bincount(s.test.labels)) <= {3, 4, 5} for s in splits)


def test_a_list_leaves_images_out_of_training_and_test(tmp_path, leaky):
    listed = tmp_path / "audit.csv"
    listed.write_text(
        "id,split,suggestion\ntrain/3.png,train,drop\ntest/7.png,test,drop\n"
        "train/4.png,train,check\ntest/3.png,other,drop\n"
    )
    splits = set_up(Centroid(drop=listed), *leaky).splits
    assert 3 not in splits[0].train.rows
    assert {4, 7} <= set(splits[0].train.rows)
    assert 7 not in splits[0].test.rows
    assert 3 in splits[0].test.rows
    assert len(splits[0].train) == 59
    assert len(splits[0].test) == 29


def test_a_list_of_ids_alone_drops_all_of_them(tmp_path, leaky):
    listed = tmp_path / "mine.csv"
    listed.write_text("id\ntrain/3.png\ntest/7.png\n")
    (split,) = set_up(Centroid(drop=listed), *leaky).splits
    assert (len(split.train), len(split.test)) == (59, 29)


def test_clusters_of_a_list_stay_together(tmp_path):
    store = seen(tmp_path / "store.h5", list(pictures(60, 16)))
    listed = tmp_path / "audit.csv"
    rows = [f"train/{i}.png,train,c{i // 6},train/{i + 1}.png,train" for i in range(0, 60, 2)]
    listed.write_text("id,split,cluster,partner,partner_split\n" + "\n".join(rows))
    screening = Screening.of(Centroid(groups=listed), [store])
    _, splits = make_splits("kfold:3", store, None, 0, screening)
    for split in splits:
        assert not set(split.train.rows // 6) & set(split.test.rows // 6)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("id\nphoto.png\n", "names no image of this dataset"),
        ("name\ntrain/1.png\n", "lacks a column"),
        ("", "lacks a column"),
        ('id\n"open', "is not a CSV file"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tmp_path, leaky, text, what):
    listed = tmp_path / "audit.csv"
    listed.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=what):
        set_up(Centroid(drop=listed), *leaky)


def test_dropping_every_training_image_is_refused(tmp_path):
    train = seen(tmp_path / "a.h5", list(pictures(30, 16)))
    test = seen(tmp_path / "b.h5", list(pictures(30, 16)), split="test")
    with pytest.raises(FitError, match="leaves no training image"):
        set_up(Centroid(leaks="drop"), train, test)


def test_images_that_are_all_the_same_cannot_be_split(tmp_path):
    store = seen(tmp_path / "store.h5", list(pictures(1, 16)) * 12)
    with pytest.raises(FitError, match="identical or in one cluster") as error:
        set_up(Centroid(), store)
    assert "add different images" in str(error.value)


def test_groups_of_the_dataset_and_identical_images_are_joined(tmp_path):
    images = list(pictures(60, 16))
    images[30] = images[0]
    store = seen(tmp_path / "store.h5", images)
    store.groups = [f"g{row // 2}" for row in range(60)]
    together = Screening().together(store)
    assert together[0] == together[1] == together[30] == together[31]
    assert len(np.unique(together)) == 29
    assert replace(Screening(), clusters={}).together(store) is not None
