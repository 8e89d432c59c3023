"""Names in natural order, and classes where a dataset has only names or only numbers."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.datasets.naming import (
    classes_by_name,
    classes_by_number,
    natural_key,
    ordered_splits,
)
from featpipe.errors import DataError


def test_natural_key_is_a_total_order():
    names = ["a1", "A1", "a01", "a10", "a9", "1a", "10", "9", "", "a", "é", "ß"]
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
    assert len({str(natural_key(name)) for name in names}) == len(names)


def test_numbers_in_names_are_ordered_by_their_value():
    names = ["cat.9.jpg", "cat.10.jpg", "Cat.11.jpg", "cat.100.jpg", "dog.1.jpg"]
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == names


def test_digits_that_are_not_ascii_are_text():
    assert sorted(["٣", "²", "x1", "1x"], key=natural_key) == ["1x", "x1", "²", "٣"]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["val", "test", "train"], ("train", "test", "val")),
        (["fold10", "val", "fold9", "train", "fold9"], ("train", "val", "fold9", "fold10")),
        (["validation", "Train"], ("Train", "validation")),
        ([], ()),
    ],
)
def test_the_usual_splits_come_first(names, order):
    assert ordered_splits(names) == order
    assert ordered_splits(iter(names)) == order


def test_classes_are_those_of_all_splits_and_labels_those_of_one():
    every = ["b10", None, "b9", "b10", "a"]
    assert classes_by_name(["b10", None, "a"], every) == (("a", "b9", "b10"), [2, -1, 0])
    assert classes_by_name([None], iter([None])) == ((), [-1])


@pytest.mark.parametrize("labels", [[2, 0, -1], [2, 2]])
def test_numbers_up_to_the_largest_are_classes(labels):
    assert classes_by_number(np.array(labels), "x.npz") == ("0", "1", "2")


def test_rows_without_a_label_have_no_class():
    assert classes_by_number(np.array([-1, -1]), "x.npz") == ()


def test_numbers_that_count_no_classes_are_refused():
    assert len(classes_by_number(np.array([99_999]), "x.npz")) == 100_000
    with pytest.raises(DataError, match="not small numbers") as caught:
        classes_by_number(np.array([0, 100_000]), "x.npz")
    assert caught.value.details["where"] == "x.npz"
    assert caught.value.details["got"] == "100000"
