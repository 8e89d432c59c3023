"""A store in shards: rows in sealed stores of their own, presented as those of one.

The store itself holds ids, labels and all other records, and says of every array where it is in
which shard, with its digest: no shard is opened to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featpipe.errors import StoreError
from featpipe.store.layout import Shards, StoreContent, shard_folder
from featpipe.store.reader import FeatureStore


def shard_path(path: Path, rows: range) -> Path:
    """Return the file of the shard that holds some rows of the store at ``path``."""
    return shard_folder(path) / f"{rows.start:010d}-{rows.stop:010d}.h5"


def describe_shards(content: StoreContent, shards: Mapping[Path, str], at: str = "") -> Shards:
    """Return what a store says of its shards, given in their order.

    ``shards`` gives the fingerprint of the images whose rows are in each file.
    StoreError, if a shard is missing or damaged, or does not hold the rows that are due.
    """
    found = Shards([], {}, [], at)
    first, row = 0, content.row_dtype
    for file, images in shards.items():
        shard = FeatureStore(file, at=at)
        last, where = first + len(shard), {}
        fits = shard.manifest["dataset"]["fingerprint"] == images
        fits &= shard.ids == list(content.ids[first:last])
        fits &= np.array_equal(shard.labels, content.labels[first:last])
        fits &= shard.manifest["backbone"] == content.manifest["backbone"]
        for name in row.names or ():
            (extent,) = shard.extents(name)
            fits &= np.dtype((extent.dtype, extent.shape[1:])) == row[name]
            where[name] = extent.offset, extent.sha256
        if not fits:
            what = "A shard does not hold the rows that are due."
            there = f"{at}/{file.name}" if at else str(file)
            hint = f"delete {there!r}, and extract again: only it is made again"
            raise StoreError(what, where=there, next_step=hint)
        found.described.append({"file": file.name, "rows": len(shard), "arrays": where})
        found.skipped.update({first + row: reason for row, reason in shard.skipped.items()})
        found.runs.append(shard.run)
        first = last
    return found
