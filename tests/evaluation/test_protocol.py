"""Splits: who trains, who is tested, and what must never happen between them."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.errors import FitError, UsageError
from featpipe.evaluation.protocol import (
    RowSet,
    StoredRows,
    low_shot,
    make_splits,
    resolve_validation,
    validation_folds,
)
from featpipe.store import FeatureStore
from tests.stores import content, sealed

CLASSES = ("ant", "bee", "cat")
few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))

labellings = st.lists(st.integers(-1, 2), min_size=1, max_size=60).map(
    lambda drawn: np.array([*drawn, *([0, 1, 2] * 5)])
)


def store_of(labels: np.ndarray, folder: str | Path, split: str = "train", **more) -> FeatureStore:
    what = content(len(labels), CLASSES, 2, labels=labels, split=split, **more)
    return sealed(Path(folder) / f"{split}.h5", what)


@few
@given(labels=labellings, seed=st.integers(0, 5), n_folds=st.integers(2, 5))
def test_cross_validation_tests_every_labelled_row_once(labels, seed, n_folds):
    with tempfile.TemporaryDirectory() as folder:
        _, splits = make_splits(f"kfold:{n_folds}", store_of(labels, folder), None, seed)
    tested = np.concatenate([split.test.rows for split in splits])
    assert sorted(tested) == np.flatnonzero(labels >= 0).tolist()
    for split in splits:
        assert not np.intersect1d(split.train.rows, split.test.rows).size
        assert sorted([*split.train.rows, *split.test.rows]) == sorted(tested)
    shares = np.array([np.bincount(split.test.labels, minlength=3) for split in splits])
    assert (np.ptp(shares, axis=0) <= 1).all()  # stratified


@few
@given(labels=labellings, seed=st.integers(0, 5), share=st.floats(0.01, 0.99))
def test_a_holdout_keeps_every_class_on_both_sides_and_no_row_on_two(labels, seed, share):
    with tempfile.TemporaryDirectory() as folder:
        _, (split,) = make_splits(f"holdout:{share}", store_of(labels, folder), None, seed)
    assert not np.intersect1d(split.train.rows, split.test.rows).size
    assert len(split.train) + len(split.test) == np.count_nonzero(labels >= 0)
    assert len(split.train) >= 3
    assert abs(len(split.test) - share * np.count_nonzero(labels >= 0)) <= 3.5
    assert np.all(np.diff(split.train.rows) > 0)


def test_a_seed_names_a_split(tmp_path):
    store = store_of(np.arange(60) % 3, tmp_path)

    def rows(seed):
        return make_splits("holdout:0.3", store, None, seed)[1][0].test.rows.tolist()

    assert rows(1) == rows(1) != rows(2)


@pytest.fixture
def with_folds(tmp_path) -> FeatureStore:
    folds = (np.arange(0, 30), np.arange(20, 50))
    labels = np.arange(60) % 3
    labels[25] = -1
    return store_of(labels, tmp_path, folds=folds)


def test_official_folds_train_and_the_test_split_is_tested(with_folds, tmp_path):
    test = store_of(np.arange(12) % 3, tmp_path, "test")
    name, splits = make_splits("folds", with_folds, test, 0)
    assert name == "folds"
    assert splits[0].train.rows.tolist() == [row for row in range(30) if row != 25]
    assert splits[1].train.rows.tolist() == [row for row in range(20, 50) if row != 25]
    assert all(split.test.store is test and len(split.test) == 12 for split in splits)


def test_without_a_test_split_a_fold_is_tested_on_the_other_training_rows(with_folds):
    _, splits = make_splits("folds", with_folds, None, 0)
    for split in splits:
        both = np.concatenate([split.train.rows, split.test.rows])
        assert sorted(both) == with_folds.usable.tolist()
    _, (one,) = make_splits("fold:1", with_folds, None, 0)
    assert one.name == "fold 1"
    assert one.train.rows.tolist() == splits[1].train.rows.tolist()


def test_there_is_no_such_fold(with_folds):
    with pytest.raises(UsageError, match="no fold 2") as caught:
        make_splits("fold:2", with_folds, None, 0)
    assert caught.value.details["expected"] == "0 to 1"


def test_auto_takes_the_test_split_where_there_is_one(tmp_path):
    train = store_of(np.arange(60) % 3, tmp_path)
    test = store_of(np.arange(12) % 3, tmp_path, "test")
    name, (split,) = make_splits("auto", train, test, 0)
    assert name == "split"
    assert split.test.store is test
    assert make_splits("auto", train, None, 0)[0] == "holdout:0.2"


def test_training_rows_cannot_be_tested(tmp_path):
    train = sealed(tmp_path / "a.h5", content(30))
    some = sealed(tmp_path / "b.h5", content(12), seed=1)  # of the same split, by another limit
    for test in (train, some):
        with pytest.raises(FitError, match="test rows are training rows"):
            make_splits("split", train, test, seed=0)


def test_split_without_test_rows_names_the_command_that_makes_them(tmp_path):
    with pytest.raises(UsageError) as caught:
        make_splits("split", store_of(np.arange(6) % 3, tmp_path), None, 0)
    command = "featpipe extract --dataset toy --model toynet --split test"
    assert command in caught.value.details["next"]


@pytest.mark.parametrize(
    "protocol",
    [
        "kfold", "kfold:1", "kfold:x", "kfold:²", "kfold:-2", "holdout", "holdout:0", "holdout:1",
        "holdout:nan", "fold:", "fold:-1", "fold:1.5", "folds:3", "split:0.2", "auto:1", "", "loo",
    ],
)  # fmt: skip
def test_what_is_no_protocol_is_refused(protocol, with_folds):
    with pytest.raises(UsageError):
        make_splits(protocol, with_folds, None, 0)


def test_a_dataset_without_folds_says_what_else_to_take(tmp_path):
    with pytest.raises(UsageError, match="prescribes no folds") as caught:
        make_splits("folds", store_of(np.arange(6) % 3, tmp_path), None, 0)
    assert "kfold:5" in caught.value.details["next"]


def test_fewer_rows_than_folds_names_the_class(tmp_path):
    store = store_of(np.array([0] * 9 + [1] * 9 + [2] * 3), tmp_path)
    with pytest.raises(FitError, match="at least 5") as caught:
        make_splits("kfold:5", store, None, 0)
    assert "cat" in caught.value.details["got"]


def test_a_class_without_any_row_does_not_forbid_cross_validation(tmp_path):
    store = store_of(np.array([0, 1] * 10), tmp_path)
    assert len(make_splits("kfold:5", store, None, 0)[1]) == 5


def test_images_that_occur_twice_are_refused(tmp_path):
    what = content(12, CLASSES, 2)
    what.ids[7] = what.ids[1]
    with pytest.raises(FitError, match="1 images occur more than once") as caught:
        make_splits("kfold:2", sealed(tmp_path / "twice.h5", what), None, 0)
    assert caught.value.details["got"] == "train/1.png"


# -- low-shot draws ------------------------------------------------------------------------------


@few
@given(
    labels=labellings,
    seed=st.integers(0, 3),
    sizes=st.sets(st.integers(1, 4), min_size=1).map(sorted),
    repeats=st.integers(1, 3),
)
def test_low_shot_draws_are_nested_and_balanced(labels, seed, sizes, repeats):
    with tempfile.TemporaryDirectory() as folder:
        _, splits = make_splits("kfold:2", store_of(labels, folder), None, seed)
    # Of five rows of every class at least, a fold of two trains on two.
    sizes = [size for size in sizes if size <= 2] or [1]
    drawn = low_shot(splits, sizes, repeats, seed)
    assert len(drawn) == len(splits) * len(sizes) * repeats
    for split in drawn:
        parent = splits[0] if split.name.startswith(splits[0].name) else splits[1]
        assert np.bincount(split.train.labels, minlength=3).tolist() == [split.train_per_class] * 3
        assert set(split.train.rows) <= set(parent.train.rows)
        assert split.test is parent.test
    for smaller, larger in pairwise(drawn):
        if (smaller.repeat, smaller.test) == (larger.repeat, larger.test):
            assert set(smaller.train.rows) < set(larger.train.rows)


def test_draws_differ_from_each_other_and_come_back_with_the_seed(tmp_path):
    _, splits = make_splits("holdout:0.2", store_of(np.arange(90) % 3, tmp_path), None, 0)

    def draws(seed):
        return [split.train.rows.tolist() for split in low_shot(splits, [5], 4, seed)]

    assert draws(0) == draws(0) != draws(1)
    assert len({tuple(rows) for rows in draws(0)}) == 4


def test_more_images_per_class_than_there_are_is_refused(tmp_path):
    labels = np.array([0] * 20 + [1] * 20 + [2] * 5)
    _, splits = make_splits("holdout:0.2", store_of(labels, tmp_path), None, 0)
    with pytest.raises(FitError, match="no 10 training images") as caught:
        low_shot(splits, [1, 10], 1, 0)
    assert caught.value.details["got"] == "4 of 'cat'"


# -- rows that choose hyper-parameters ------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["kfold:1", "kfold", "holdout:0", "holdout:1.5", "holdout:0.0", "loo", "auto:3"]
)
def test_what_is_no_way_to_validate_is_refused(spec):
    with pytest.raises(UsageError, match="not a way"):
        validation_folds(spec, np.arange(30) % 3, None, 0)


def test_more_validation_folds_than_rows_of_a_class_is_refused():
    with pytest.raises(FitError, match="kfold:5") as caught:
        validation_folds("kfold:5", np.array([0] * 9 + [1] * 3), None, 0)
    assert caught.value.details["next"] == "--validation kfold:3"


@pytest.mark.parametrize(
    ("n", "n_folds", "on"),
    [(1998, 3, "3 folds"), (2001, 1, "400 held-out rows"), (6, 2, "2 folds")],
)
def test_few_rows_are_validated_by_folds_and_many_by_a_holdout(n, n_folds, on):
    folds, said = validation_folds("auto", np.arange(n) % 3, None, 0)
    assert (len(folds), said) == (n_folds, on)


@pytest.mark.parametrize(
    ("spec", "counts", "resolved"),
    [
        ("auto", (3, 3), "kfold:3"),
        ("auto", (9, 2), "kfold:2"),
        ("auto", (1000, 1000), "holdout:0.2"),
        ("auto", (9, 1), "none"),
        ("kfold:5", (9, 1), "none"),
        ("auto", (), "none"),
        ("holdout:.50", (9, 9), "holdout:0.5"),
    ],
)
def test_a_way_to_validate_has_one_spelling(spec, counts, resolved):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert resolve_validation(spec, labels) == resolved
    assert (validation_folds(spec, labels, None, 0) is None) == (resolved == "none")


# -- rows that stay on the disk --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stored_rows_are_those_of_the_features(tmp_path, dtype):
    store = sealed(tmp_path / "s.h5", content(50, dtype=dtype))
    rows = RowSet(store, np.arange(3, 50, 2))
    read, whole = StoredRows(rows, None), rows.features(None)
    assert (read.shape, read.dtype) == (whole.shape, np.float32)
    for part in (slice(None), slice(4, 9), slice(20, 99), 0, -1, np.array([1, 5, 20])):
        np.testing.assert_array_equal(read[part], whole[part])
        assert read[part].dtype == np.float32


def test_stored_rows_that_are_not_finite_are_refused(tmp_path):
    store = sealed(tmp_path / "s.h5", content(20))
    read = StoredRows(RowSet(store, np.arange(20)), None)
    mapped = np.memmap(store.path, mode="r+", dtype=np.uint8)  # behind the store's back
    start = store.features().offset + 7 * 8 * 4
    mapped[start : start + 4] = np.frombuffer(np.float32(np.nan).tobytes(), dtype=np.uint8)
    mapped.flush()
    assert read[:7].shape == (7, 8)
    with pytest.raises(FitError, match="1 rows hold features that are not finite"):
        read[5:9]
