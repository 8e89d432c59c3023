"""Batches: threads read and resize images, the runtime embeds several batches at once, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import DataError, FeatpipeError, ImageError
from featpipe.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.backbones.base import FrozenNetwork
    from featpipe.backbones.preprocessing import Preprocessing

T = TypeVar("T")
torch = Lazy("torch")  # not needed to find that everything is up to date
Read = Callable[[int, int | None], NDArray[np.uint8]]  # such as ImageSource.read_scaled
SKIP_HINT = (
    "repair or remove it, or skip unreadable images: --on-error skip "
    "(of a recipe: --set on-error=skip)"
)
_PREFETCH_BATCHES = 3


@dataclass(frozen=True)
class ExtractOptions:
    """How to embed; only layers and ``dtype`` change what is stored."""

    layers: tuple[str, ...] = ()  # empty: the embedder's default layer
    dtype: str = "float32"  # or "float16", "uint8"
    batch_size: int | None = None  # images per forward pass; None: chosen for the device
    on_error: str = "fail"  # or "skip": what to do with an image that cannot be read
    workers: int | None = None  # reading threads; None: one per core


@dataclass(frozen=True)
class Batch:
    """Consecutive rows: the prepared images, and the reasons why some could not be read."""

    rows: range
    read: list[int]
    images: Tensor | None  # (len(read), 3, S, S), uint8; None where no row could be read
    skipped: dict[int, str]

    def embed(
        self, embedder: FrozenNetwork, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the features of all rows; zeros for those that could not be read."""
        rows = len(self.rows)
        arrays = {name: np.zeros((rows, *shape), np.float32) for name, shape in shapes.items()}
        if self.images is not None:
            places = [row - self.rows.start for row in self.read]
            for name, values in embedder.embed(self.images, tuple(shapes)).items():
                arrays[name][places] = values
        return arrays


class Laps:
    """Seconds spent waiting for each part of the work."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self._last = time.perf_counter()

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        return " · ".join(f"{part} {spent / total:.0%}" for part, spent in self.seconds.items())

    def end(self, part: str) -> None:
        """Count the time since the last call for a part."""
        began, self._last = self._last, time.perf_counter()
        self.seconds[part] += self._last - began


def work_on_batches(
    batches: Generator[Batch], work: Callable[[Batch], T], parallel: int, laps: Laps | None = None
) -> Generator[tuple[Batch, T]]:
    """Yield batches with the result of ``work`` for each, in order; several run at once.

    If reading fails, the batches that were read before are yielded before the error is raised.
    ``laps`` counts the time spent waiting for ``"read"`` and ``"compute"``.
    """
    laps = laps or Laps()
    waiting: deque[tuple[Batch, Future[T]]] = deque()
    pool = ThreadPoolExecutor(parallel)
    more, error = True, None
    try:
        while more:
            batch = None
            try:
                batch = next(batches, None)
            except BaseException as raised:  # KeyboardInterrupt, too
                error = raised
            laps.end("read")
            more = batch is not None
            if batch is not None:
                waiting.append((batch, pool.submit(work, batch)))
            # One more than run at once, so that none of them waits for the writer.
            while len(waiting) > (parallel if more else 0):
                done, future = waiting.popleft()
                made = future.result()
                laps.end("compute")
                yield done, made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        batches.close()
    if error is not None:
        raise error


def work_on_images(
    read: Read,
    rows: range,
    embedder: Any,
    work: Callable[[Batch], T],
    options: ExtractOptions,
    laps: Laps | None = None,
) -> Generator[tuple[Batch, T]]:
    """Yield batches of images with the result of ``work`` for each.

    ``embedder`` is any object with the attributes ``preprocessing``, ``batch_size`` and
    ``parallel``. The rest is as in :func:`read_batches` and :func:`work_on_batches`.
    """
    preprocessing, parallel = embedder.preprocessing, embedder.parallel
    batch_size = options.batch_size or embedder.batch_size
    batches = read_batches(read, rows, preprocessing, batch_size, options, parallel)
    return work_on_batches(batches, work, parallel, laps)


def batch_rows(rows: range, batch_size: int, parallel: int) -> list[range]:
    """Return the rows of each batch; the remainder is divided among those that run at once."""
    whole = len(rows) - len(rows) % (batch_size * parallel)
    last = max(1, -(-(len(rows) - whole) // parallel))
    starts = [*range(0, whole, batch_size), *range(whole, len(rows), last), len(rows)]
    return [rows[start:stop] for start, stop in pairwise(starts)]


def read_batches(
    read: Read,
    rows: range,
    preprocessing: Preprocessing,
    batch_size: int,
    options: ExtractOptions,
    parallel: int = 1,
) -> Generator[Batch]:
    """Yield batches of rows, while threads decode and resize the next ones.

    ``read`` returns one image (height, width, 3), given its row and the ``decoded_side`` of the
    preprocessing, and may raise ImageError; other errors that it raises become a DataError.
    ``parallel`` is the number of batches that are worked on at once.
    """
    pool = ThreadPoolExecutor(options.workers or torch.get_num_threads())
    parts = batch_rows(rows, batch_size, parallel)

    def prepare(row: int, place: NDArray[Any]) -> None:
        place[...] = preprocessing.prepare(read(row, preprocessing.decoded_side)).numpy()

    def submit(part: range) -> tuple[NDArray[Any], list[Future[None]]]:
        shape = (len(part), 3, preprocessing.crop, preprocessing.crop)
        images = torch.empty(shape, dtype=preprocessing.dtype).numpy()
        return images, [pool.submit(prepare, *pair) for pair in zip(part, images, strict=True)]

    submitted = map(submit, parts)
    try:
        waiting = deque(islice(submitted, _PREFETCH_BATCHES - 1))
        for part in parts:
            waiting.extend(islice(submitted, 1))
            images, futures = waiting.popleft()
            skipped = {}
            for row, future in zip(part, futures, strict=True):
                try:
                    future.result()
                except ImageError as error:
                    if options.on_error == "fail":
                        error.details.setdefault("next", SKIP_HINT)
                        raise
                    got = error.details.get("got")  # without the path: the store has the id
                    reason = f"{error.what.rstrip('.')} ({got})" if got else error.what
                    skipped[row] = " ".join(reason.split())
                except (FeatpipeError, MemoryError):
                    raise
                except Exception as error:  # a source of another package may raise anything
                    what, got = "Reading an image failed.", f"{type(error).__name__}: {error}"
                    hint = "run the same command again: it continues before this row"
                    raise DataError(what, where=f"row {row}", got=got, next_step=hint) from error
            rest = [row for row in part if row not in skipped]
            if skipped:
                images = images[[row - part.start for row in rest]]
            yield Batch(part, rest, torch.from_numpy(images) if rest else None, skipped)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
