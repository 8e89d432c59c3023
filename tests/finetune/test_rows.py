"""Rows as batches: those asked for, augmented in training only, held out by class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featpipe.finetune.rows import RowBatches, hold_out


def test_batches_are_rows_of_the_array_augmented_in_training_only():
    array, labels = np.arange(20).reshape(10, 2), np.arange(10)
    rows = RowBatches(array, labels, np.array([7, 2, 5]), augment=lambda batch: -batch)
    values, y = rows.__getitems__([2, 0])
    assert (len(rows), rows.labels.tolist(), y.tolist()) == (3, [7, 2, 5], [5, 7])
    assert values.tolist() == [[10, 11], [14, 15]]
    assert replace(rows, training=True).__getitems__([2])[0].tolist() == [[-10, -11]]


@given(st.integers(2, 6), st.integers(4, 30), st.floats(0.05, 0.5), st.integers(0, 9))
def test_a_hold_out_takes_every_row_once_and_every_class(n_classes, each, share, seed):
    y = np.repeat(np.arange(n_classes), each)
    rows = np.flatnonzero(y >= 0)[::-1].copy()
    train, valid = hold_out(RowBatches(np.zeros((len(y), 1)), y, rows), share, seed)
    assert sorted([*train.rows, *valid.rows]) == sorted(rows)
    assert set(valid.labels) == set(train.labels) == set(range(n_classes))
