"""A source is refused where classes, ids, labels and folds do not fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featpipe.datasets.source import ArraySource, Identity, row_ids
from featpipe.errors import DataError

PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def source(pixels: np.ndarray = PIXELS, **changes: Any) -> ArraySource:
    facts = {"classes": ("ant", "bee"), "ids": ["a", "b", "c"], "labels": [0, 1, -1], **changes}
    return ArraySource(Identity("toy", "train", **facts), pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "no class names"),
        ({"classes": ("ant", " ")}, "blank name"),
        ({"classes": ("ant", "b\0")}, "is not text"),
        ({"classes": ("ant", "b\udc80")}, "is not text"),
        ({"classes": ("ant", "ant")}, "not unique"),
        ({"labels": [0, 2, -1]}, "name no class"),
        ({"labels": [0, -2, 1]}, "name no class"),
        ({"labels": [0, 1]}, "has one label"),
        ({"ids": ["a", "b", "a"]}, "same id"),
        ({"folds": (np.array([0, 0]),)}, "Fold 0"),
        ({"folds": (np.array([0]), np.array([3]))}, "Fold 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ("ant", "cat")},
        {"ids": ["a", "b", "d"]},
        {"labels": [0, 1, 1]},
        {"folds": (np.array([0]),)},
        {"pixels": PIXELS + 1},
    ],
    ids=str,
)
def test_the_fingerprint_follows_whatever_makes_the_images_what_they_are(
    changes: dict[str, Any],
) -> None:
    assert source().fingerprint == source().fingerprint
    assert source(**changes).fingerprint != source().fingerprint


def test_unlabelled_images_need_no_classes() -> None:
    assert source(classes=(), labels=[-1, -1, -1]).classes == ()


def test_grey_becomes_three_channels_and_belongs_to_the_reader() -> None:
    images = source()
    image = images.read(1)
    np.testing.assert_array_equal(image, np.repeat(PIXELS[1][..., None], 3, axis=2))
    image[:] = 0
    assert images.read(1).any()


def test_row_ids_tell_splits_apart() -> None:
    assert row_ids("test", 2) == ("test/00000", "test/00001")
