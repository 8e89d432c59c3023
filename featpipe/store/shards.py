"""A store in shards: rows in sealed stores of their own, presented as those of one.

The store itself holds ids, labels and all other records, and says of every array where it is in
which shard, with its digest: no shard is opened to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import StoreError
from featpipe.store.layout import StoreContent, shard_folder
from featpipe.store.reader import FeatureStore


def shard_path(path: Path, rows: range) -> Path:
    """Return the file of the shard that holds some rows of the store at ``path``."""
    return shard_folder(path) / f"{rows.start:010d}-{rows.stop:010d}.h5"


def describe_shards(
    content: StoreContent, shards: Mapping[Path, str]
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return what a store says of its shards, in their order, and which rows have no image.

    ``shards`` gives the fingerprint of the images whose rows are in each file.
    StoreError, if a shard is missing or damaged, or does not hold the rows that are due.
    """
    described: list[dict[str, Any]] = []
    skipped: dict[int, str] = {}
    first, row = 0, content.row_dtype
    for file, images in shards.items():
        shard = FeatureStore(file)
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
            hint = f"rm {str(file)!r}, and extract again: only it is made again"
            raise StoreError(what, where=file, next_step=hint)
        described.append({"file": file.name, "rows": len(shard), "arrays": where})
        skipped |= {first + number: reason for number, reason in shard.skipped.items()}
        first = last
    return described, skipped
