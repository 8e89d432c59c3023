"""Extraction in shards: each range of rows is a sealed store, and together they are one store.

Which rows are in which shard follows from their number alone, so ids and order do not depend on
who computed what. A sealed shard is never computed again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from featpipe.datasets.selection import subset_fingerprint
from featpipe.datasets.source import ImageSource
from featpipe.progress import Event, Progress, Task
from featpipe.provenance import now
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.store.layout import shard_folder, shard_path
from featpipe.store.writer import describe_shards
from featpipe.urls import Place

# Default rows per shard: few enough for many workers and for little repetition after a failure,
# and so many that the time to open and seal a shard is negligible.
_MOST_ROWS, _FEWEST_ROWS, _SHARDS = 50_000, 500, 64
# Keys of a shard's run record that the run record of the whole store does not take from it.
_OF_A_SHARD = ("command", "source", "request")


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a store, and the file that they are in."""

    split: str
    rows: range
    path: Path
    at: str = ""  # URL of the folder that it is moved to; "": it stays at ``path``

    @property
    def is_done(self) -> bool:
        """Whether it is sealed and delivered."""
        return Place(self.at).has(self.path.name) if self.at else self.path.exists()

    def deliver(self) -> None:
        """Move the sealed file to its URL, if it has one."""
        if self.at:
            Place(self.at).put(self.path)
            self.path.unlink()

    @property
    def label(self) -> str:
        """Unique name among all shards of an extraction."""
        return f"{self.split} {self.path.stem}"


@dataclass(frozen=True)
class Sharding:
    """How stores are divided into shards, and where the shards are kept."""

    rows: int | None = None  # per shard; None: chosen by the number of images
    at: str = ""  # URL of a folder with a subfolder for each store; "": beside the store

    def ranges(self, n: int) -> list[range]:
        """Return the rows of each shard of a store with ``n`` rows."""
        rows = self.rows or min(max(-(-n // _SHARDS), _FEWEST_ROWS), _MOST_ROWS)
        return [range(*edge) for edge in pairwise([*range(0, n, rows), n])]

    def place_of(self, path: Path) -> str:
        """Return the URL of the folder of the shards of the store at ``path``, or ``""``."""
        names = (*path.parts[-3:-1], shard_folder(path).name)  # as in the workspace
        return self.at and "/".join([self.at.rstrip("/"), *names])

    def sealed(self, path: Path) -> set[str]:
        """Return the names of the sealed and delivered shards of the store at ``path``."""
        at, folder = self.place_of(path), shard_folder(path)
        names = Place(at).names() if at else {file.name for file in folder.glob("*")}
        return {name for name in names if name.endswith(".h5")}


@dataclass
class ShardProgress:
    """The progress of all shards as one task, whoever computes them."""

    progress: Progress
    task: Task
    _done: dict[str, int] = field(default_factory=dict)  # rows, by label of the shard
    _rates: dict[str, float] = field(default_factory=dict)  # images/s, by worker
    _notes: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _began: float | None = None

    @property
    def seconds(self) -> float:
        """Time since the first shard began."""
        return max(time.monotonic() - (self._began or 0.0), 1e-9)

    def listen(self, label: str, event: Event, worker: str = "") -> None:
        """Take an event of the shard with this label, which ``worker`` computes."""
        with self._lock:
            self._began = self._began or time.monotonic()
            if event.event == "note":
                if event.message not in self._notes:  # all shards have the same notes
                    self.progress.note(event.message)
                self._notes.add(event.message)
                return
            before, self._done[label] = self._done.get(label, 0), event.done
            if rate := event.facts.get("rate"):
                self._rates[worker] = float(rate.partition(" ")[0])
            rates = self._rates.values()
            facts = {"rate": f"{sum(rates):.1f} images/s"}
            if len(rates) > 1:
                facts["actors"] = f"{len(rates)} actors, {min(rates):.1f} to {max(rates):.1f} each"
            elif shares := event.facts.get("shares"):
                facts["shares"] = shares
            self.task.advance(event.done - before, **facts)


Listen = Callable[..., None]  # such as ShardProgress.listen
# Seals each given shard, and returns facts about the workers for the run record.
Make = Callable[[Sequence[Shard], Listen], Mapping[str, Any]]


def extract_shards(
    wanted: Iterable[tuple[Path, StoreContent, ImageSource]],
    sharding: Sharding,
    make: Make,
    record: Mapping[str, Any],
    label: str,
    progress: Progress,
) -> list[FeatureStore]:
    """Make the missing shards of several stores as one task, and seal the stores.

    ``label`` is the name of the task.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(_Sharded(*one, sharding))) for one in wanted]
        missing = [shard for store in stores for shard in store.missing]
        shards = [shard for store in stores for shard in store.shards]
        n, to_do = (sum(len(shard.rows) for shard in some) for some in (shards, missing))
        if kept := len(shards) - len(missing):
            progress.note(f"resuming: {kept} of {len(shards)} shards ({n - to_do} images) exist")
        facts: dict[str, Any] = {}
        if missing:
            with progress.task(label, n, n - to_do) as task:
                whole = ShardProgress(progress, task)
                facts |= make(missing, whole.listen)
            facts["images_per_s"] = round(to_do / whole.seconds, 2)
        return [store.seal({**facts, **record}) for store in stores]


class _Sharded:
    """A store whose rows are in shards, locked until it is sealed."""

    def __init__(
        self, path: Path, content: StoreContent, source: ImageSource, sharding: Sharding
    ) -> None:
        split, parts = content.manifest["dataset"]["split"], sharding.ranges(len(content.ids))
        self._folder, self._content, self._source = shard_folder(path), content, source
        self._at = at = sharding.place_of(path)
        self.shards = [Shard(split, part, shard_path(path, part), at) for part in parts]
        path.unlink(missing_ok=True)  # an existing store has lost a shard
        self._writer = StoreWriter(path, content, sharded=True, elsewhere=bool(at))
        self.close = self._writer.close
        sealed = sharding.sealed(path)
        self.missing = [shard for shard in self.shards if shard.path.name not in sealed]

    def seal(self, record: Mapping[str, Any]) -> FeatureStore:
        """Seal the store when all its shards are sealed; remove files of other shard sizes."""
        images = {one.path: subset_fingerprint(self._source, one.rows) for one in self.shards}
        shards = describe_shards(self._content, images, self._at)
        for left in set(self._folder.glob("*")) - set(images):
            left.unlink()
        runs = shards.runs
        spent = {part: sum(each["shares"][part] for each in runs) for part in runs[-1]["shares"]}
        run = {
            **{key: value for key, value in runs[-1].items() if key not in _OF_A_SHARD},
            "created": now(),
            "seconds": round(sum(each["seconds"] for each in runs), 3),
            "shares": {part: round(seconds, 3) for part, seconds in spent.items()},
            "shards": len(images),
            **record,
        }
        return self._writer.seal(run, shards)
