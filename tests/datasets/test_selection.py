"""Subsets, chosen classes, balanced rows and stratified splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.datasets.selection import (
    Subset,
    choose_classes,
    class_balanced_rows,
    keep_classes,
    seeded_order,
    stratified_split,
)
from featpipe.datasets.source import ArraySource, Identity
from featpipe.errors import UnknownNameError, UsageError

CLASSES = ("ant", "bee", "cat", "dog")
FROZEN = [1, 3, 6, 7, 4, 2, 0, 5]
label_lists = st.lists(st.integers(-1, 3), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


def source_of(labels, folds=()):
    """Make images whose every pixel is their row number."""
    n = len(labels)
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 2, 2))
    ids = [f"image {row}" for row in range(n)]
    folds = tuple(np.array(fold, dtype=np.int64) for fold in folds)
    return ArraySource(Identity("toy", "train", CLASSES, ids, labels, folds), pixels, "v1", "here")


@given(label_lists, st.data())
def test_a_subset_is_the_chosen_rows(labels, data):
    n = len(labels)
    rows = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, n))]
    fold = data.draw(st.lists(st.sampled_from(range(n)), unique=True))
    source = source_of(labels, [fold])
    subset = Subset(source, rows)
    assert len(subset) == len(rows)
    assert list(subset.ids) == [source.ids[row] for row in rows]
    assert subset.labels.tolist() == [labels[row] for row in rows]
    assert [subset.read(at)[0, 0, 0] for at in range(len(rows))] == rows
    in_fold = [subset.ids[at] for at in subset.folds[0]]
    assert in_fold == [source.ids[row] for row in fold if row in rows]


@given(label_lists, st.data())
def test_a_subset_of_a_subset(labels, data):
    n = len(labels)
    outer = data.draw(st.permutations(range(n)))
    inner = data.draw(st.permutations(range(n)))[: n // 2]
    source = source_of(labels)
    nested = Subset(Subset(source, outer), inner)
    direct = Subset(source, [outer[at] for at in inner])
    assert list(nested.ids) == list(direct.ids)
    assert nested.labels.tolist() == direct.labels.tolist()


def test_different_subsets_have_different_fingerprints():
    source = source_of([0, 1, 2, 3])
    prints = {Subset(source, rows).fingerprint for rows in ([0, 1], [1, 0], [0, 1, 2], [2, 3])}
    assert len(prints | {source.fingerprint}) == 5
    assert Subset(source, [0, 1]).fingerprint == Subset(source_of([0, 1, 2, 3]), [0, 1]).fingerprint


@pytest.mark.parametrize("rows", [[4], [-1], [0, 0]])
def test_rows_that_cannot_be_taken(rows):
    with pytest.raises(UsageError):
        Subset(source_of([0, 1, 2, 3]), rows)


@given(label_lists, st.integers(1, 60), seeds)
def test_balanced_rows_are_as_even_as_they_can_be(labels, n, seed):
    labels = np.array(labels)
    usable = labels >= 0 if (labels >= 0).any() else labels >= -1
    if n > usable.sum():
        with pytest.raises(UsageError, match="That many"):
            class_balanced_rows(labels, n, seed)
        return
    rows = class_balanced_rows(labels, n, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == n
    assert usable[rows].all()
    taken = {int(c): int((labels[rows] == c).sum()) for c in np.unique(labels[usable])}
    has_more = {c: taken[c] < (labels == c).sum() for c in taken}
    for c in taken:
        assert all(taken[other] <= taken[c] + 1 for other in taken if has_more[c])


@given(label_lists, seeds)
def test_balanced_rows_depend_on_the_seed_alone(labels, seed):
    n = max(1, sum(label >= 0 for label in labels) // 2)
    first = class_balanced_rows(labels, n, seed)
    np.testing.assert_array_equal(class_balanced_rows(np.array(labels), n, seed), first)


def test_another_seed_chooses_other_rows():
    labels = np.arange(1000) % 4
    first, second = (class_balanced_rows(labels, 100, seed) for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert np.bincount(labels[first]).tolist() == [25] * 4


def test_fewer_rows_than_classes_are_of_different_classes():
    labels = np.repeat(np.arange(10), 5)
    assert len(set(labels[class_balanced_rows(labels, 7, seed=3)])) == 7


def test_the_drawn_order_never_changes():
    """A library's next version must not move images from the test split to the training split."""
    names = [f"cat.{number}.jpg" for number in range(8)]
    assert seeded_order(names, seed=0).tolist() == FROZEN
    left = seeded_order(names[:-1], seed=0).tolist()
    assert left == [row for row in FROZEN if row != 7], "one image more does not reshuffle"


@given(label_lists, st.floats(0.1, 0.9), seeds)
@settings(max_examples=50)
def test_a_stratified_split_parts_every_class_alike(labels, share, seed):
    ids = [str(row) for row in range(len(labels))]
    train, test = stratified_split(ids, labels, share, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label in set(labels):
        members = labels.count(label)
        assert sum(labels[row] == label for row in test) == round(members * share)


@given(label_lists, st.sets(st.sampled_from(CLASSES), min_size=1))
def test_kept_classes_keep_their_images(labels, names):
    source = source_of(labels)
    kept = keep_classes(source, ",".join(sorted(names, reverse=True)))
    assert kept.classes == tuple(name for name in CLASSES if name in names)
    before = {source.ids[row]: label for row, label in enumerate(labels)}
    for at, label in enumerate(kept.labels):
        was = before.pop(kept.ids[at])
        assert (label == was == -1) or kept.classes[label] == CLASSES[was]
    assert not any(label >= 0 and CLASSES[label] in names for label in before.values())


def test_all_classes_are_the_source_itself():
    source = source_of([0, 1])
    assert keep_classes(source, "first:4") is source


@pytest.mark.parametrize("chosen", ["first:0", "first:5", "first:", "first:two", "first:-1"])
def test_impossible_numbers_of_classes(chosen):
    with pytest.raises(UsageError, match="not possible") as caught:
        choose_classes(chosen, CLASSES)
    assert "from 1 to 4" in str(caught.value)


def test_unknown_classes_are_named():
    with pytest.raises(UnknownNameError, match="'bea'") as caught:
        choose_classes("ant,bea", CLASSES)
    assert "did you mean 'bee'?" in str(caught.value)
