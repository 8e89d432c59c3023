"""Batches come out in order, whatever is read and embedded at once, and whatever fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Lock

import numpy as np
import pytest
import torch

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import ImageError
from featpipe.extraction.batches import (
    SKIP_HINT,
    Batch,
    ExtractOptions,
    batch_rows,
    read_batches,
    work_on_batches,
)


class Slow:
    """Work of which the first batches take the longest; it keeps count of what runs at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.lock = Lock()

    def __call__(self, batch: Batch) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.12 - 0.02 * batch.rows.start)
        with self.lock:
            self.running -= 1
        return batch.rows.start


def numbered(stop: int | None = None) -> Iterator[Batch]:
    for row in range(6):
        if row == stop:
            raise KeyboardInterrupt
        yield Batch(range(row, row + 1), [], None, {})


def test_batches_are_embedded_at_the_same_time_and_come_out_in_order() -> None:
    slow = Slow()
    assert [made for _, made in work_on_batches(numbered(), slow, 3)] == [0, 1, 2, 3, 4, 5]
    assert slow.most == 3


def test_the_last_rows_are_shared_by_the_batches_that_run_at_once() -> None:
    assert [len(part) for part in batch_rows(range(41), 8, 2)] == [8, 8, 8, 8, 5, 4]


def test_what_was_read_before_an_error_comes_out_before_it() -> None:
    batches = work_on_batches(numbered(4), Slow(), 3)
    assert [next(batches)[1] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        next(batches)


def read(row: int, side: int | None) -> np.ndarray:
    """Return an image that shows its row; of rows 3, 4 and 5 none can be read."""
    assert side is None
    if row in (3, 4, 5):
        raise ImageError("Not an image.", where=f"/home/anna/{row}.png", got="no  header")
    return np.full((8, 8, 3), row, np.uint8)


def batches(on_error: str) -> Iterator[Batch]:
    options = ExtractOptions(on_error=on_error, workers=2)
    return read_batches(read, range(1, 8), Preprocessing(8, 8), 2, options)


class Mean:
    """A network that gives the mean of each image, in every layer."""

    def embed(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
        mean = images.float().mean(dim=(1, 2, 3)).numpy()
        return dict.fromkeys(layers, mean[:, None])


def test_rows_that_cannot_be_read_stay_zero_and_the_others_keep_their_places() -> None:
    made = list(batches("skip"))
    assert [[*batch.rows] for batch in made] == [[1, 2], [3, 4], [5, 6], [7]]
    assert [batch.read for batch in made] == [[1, 2], [], [6], [7]]
    assert made[1].images is None
    found = [batch.embed(Mean(), {"a": (1,), "b": (1,)}) for batch in made]  # type: ignore[arg-type]
    for layer in ("a", "b"):
        values = np.concatenate([one[layer] for one in found])
        assert values.dtype == np.float32
        assert values.ravel().tolist() == [1, 2, 0, 0, 0, 6, 7]


def test_why_a_row_was_skipped_is_kept_without_its_path() -> None:
    skipped = {row: why for batch in batches("skip") for row, why in batch.skipped.items()}
    assert skipped == dict.fromkeys((3, 4, 5), "Not an image (no header)")


def test_an_image_that_cannot_be_read_ends_it_unless_it_may_be_skipped() -> None:
    made = batches("fail")
    assert next(made).read == [1, 2]
    with pytest.raises(ImageError) as caught:
        next(made)
    assert caught.value.details["where"] == "/home/anna/3.png"
    assert caught.value.details["next"] == SKIP_HINT
