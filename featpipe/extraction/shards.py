"""Extraction in shards: ranges of rows, each a sealed store of its own, presented as one store.

Which rows are in which shard follows from their number alone, so ids and order never depend on who
computed what; a shard that is sealed is never computed again.
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

# Rows of a shard, unless they are given: few enough that many can work and little is repeated
# after a failure, and enough that opening and sealing it takes no time to speak of.
_MOST_ROWS, _FEWEST_ROWS, _SHARDS = 50_000, 500, 64
# What a shard's run record holds beside what that of all shards holds.
_OF_A_SHARD = ("command", "source", "request")


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a store, and the file that they are in."""

    split: str
    rows: range
    path: Path
    at: str = ""  # URL of the folder that it is put into; "": it stays where it was made

    @property
    def is_done(self) -> bool:
        """Whether it is sealed, and where it belongs."""
        return Place(self.at).has(self.path.name) if self.at else self.path.exists()

    def deliver(self) -> None:
        """Put the sealed file where it belongs."""
        if self.at:
            Place(self.at).put(self.path)
            self.path.unlink()

    @property
    def label(self) -> str:
        """What distinguishes it from all others."""
        return f"{self.split} {self.path.stem}"


@dataclass(frozen=True)
class Sharding:
    """How stores are divided into shards, and where these are kept."""

    rows: int | None = None  # of a shard; None: chosen by the number of images
    at: str = ""  # URL of a folder, in which each store has one of its own; "": beside the store

    def ranges(self, n: int) -> list[range]:
        """Return the rows of each shard of a store with ``n``."""
        rows = self.rows or min(max(-(-n // _SHARDS), _FEWEST_ROWS), _MOST_ROWS)
        return [range(*edge) for edge in pairwise([*range(0, n, rows), n])]

    def place_of(self, path: Path) -> str:
        """Return the URL that the shards of the store at ``path`` are put into, if at one."""
        names = (*path.parts[-3:-1], shard_folder(path).name)  # as in the workspace
        return self.at and "/".join([self.at.rstrip("/"), *names])

    def sealed(self, path: Path) -> set[str]:
        """Return the names of the shards of the store at ``path`` that are where they belong."""
        at, folder = self.place_of(path), shard_folder(path)
        names = Place(at).names() if at else {file.name for file in folder.glob("*")}
        return {name for name in names if name.endswith(".h5")}


@dataclass
class Together:
    """The progress of all shards as that of one task, whoever computes them."""

    progress: Progress
    task: Task
    _done: dict[str, int] = field(default_factory=dict)  # rows, by label of the shard's events
    _rates: dict[str, float] = field(default_factory=dict)  # images/s, by who computes
    _said: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _began: float | None = None

    @property
    def seconds(self) -> float:
        """Time since the first shard began."""
        return max(time.monotonic() - (self._began or 0.0), 1e-9)

    def listen(self, label: str, event: Event, worker: str = "") -> None:
        """Take an event of the shard called ``label`` that ``worker`` computes."""
        with self._lock:
            self._began = self._began or time.monotonic()
            if event.event == "note":
                if event.message not in self._said:  # every shard has the same to say
                    self.progress.note(event.message)
                self._said.add(event.message)
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


# Takes the label of a shard, an event of it and perhaps the name of who computes it.
Listen = Callable[..., None]
# Seals each shard that it is given, and returns facts for the run record: who did it.
Make = Callable[[Sequence[Shard], Listen], Mapping[str, Any]]


def extract_shards(
    wanted: Iterable[tuple[Path, StoreContent, ImageSource]],
    sharding: Sharding,
    make: Make,
    *,
    record: Mapping[str, Any],
    label: str,
    progress: Progress,
) -> list[FeatureStore]:
    """Have the missing shards of stores made, all together, and seal the stores.

    ``label`` names the work in the progress.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(_Sharded(*one, sharding))) for one in wanted]
        missing = [shard for store in stores for shard in store.missing]
        shards = [shard for store in stores for shard in store.shards]
        n, to_do = (sum(len(shard.rows) for shard in some) for some in (shards, missing))
        if kept := len(shards) - len(missing):
            progress.note(
                f"resuming: {kept} of {len(shards)} shards ({n - to_do} images) are there"
            )
        facts: dict[str, Any] = {}
        if missing:
            with progress.task(label, n, n - to_do) as task:
                together = Together(progress, task)
                facts |= make(missing, together.listen)
            facts["images_per_s"] = round(to_do / together.seconds, 2)
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
        path.unlink(missing_ok=True)  # if it is there, it names a shard that is lost
        self._writer = StoreWriter(path, content, sharded=True, elsewhere=bool(at))
        self.close = self._writer.close
        sealed = sharding.sealed(path)
        self.missing = [shard for shard in self.shards if shard.path.name not in sealed]

    def seal(self, record: Mapping[str, Any]) -> FeatureStore:
        """Seal the store when all its shards are; remove what is left of other ones."""
        images = {one.path: subset_fingerprint(self._source, one.rows) for one in self.shards}
        shards = describe_shards(self._content, images, self._at)
        for left in set(self._folder.glob("*")) - set(images):
            left.unlink()  # of another number of rows
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
