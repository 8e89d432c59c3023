"""What an unfinished store promises, and how an interrupted sealing is taken back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.store.layout import journal_path, partial_path, undo_path
from featpipe.store.seal import Place, gaps
from featpipe.workspace import atomic_write


@dataclass
class Journal:
    """What a store that is being written promises: rows on the disk, rows skipped and why."""

    fingerprint: str
    rows: int = 0
    seconds: float = 0.0
    skipped: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """Return the journal of a store, or ``None`` where there is none that can be trusted."""
        try:
            raw = json.loads(journal_path(path).read_text(encoding="utf-8"))
            return cls(
                str(raw["fingerprint"]),
                int(raw["rows"]),
                float(raw["seconds"]),
                {int(row): str(reason) for row, reason in raw["skipped"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the journal of a store, atomically."""
        with atomic_write(journal_path(path)) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")


def save_undo(path: Path, arrays: Iterable[Place]) -> None:
    """Keep a copy of everything in an unfinished store but its arrays.

    Sealing changes the structure of the HDF5 file by a dozen writes; a kill between two of them
    would leave a file that no library opens, with all rows inside.
    """
    partial = partial_path(path)
    kept: dict[str, Any] = {}
    with partial.open("rb") as file:
        for start, stop in gaps(arrays, 0, partial.stat().st_size):
            file.seek(start)
            kept[str(start)] = np.frombuffer(file.read(stop - start), np.uint8)
    kept["size"] = np.array(partial.stat().st_size)
    with atomic_write(undo_path(path)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **kept)


def undo_sealing(path: Path) -> None:
    """Take back what an interrupted sealing did; harmless where none was interrupted.

    Raises
    ------
    ValueError
        If what is there cannot be the file whose sealing was interrupted.
    """
    if not undo_path(path).exists():
        return
    with (
        np.load(undo_path(path), allow_pickle=False) as kept,
        partial_path(path).open("rb+") as file,
    ):
        if file.seek(0, os.SEEK_END) < kept["size"]:  # sealing only ever makes a file longer
            raise ValueError(f"{undo_path(path)} belongs to another file")
        file.truncate(int(kept["size"]))
        for start in kept.files:
            if start != "size":
                file.seek(int(start))
                file.write(kept[start].tobytes())
        file.flush()
        os.fsync(file.fileno())
    undo_path(path).unlink()
