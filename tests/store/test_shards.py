"""A store is sealed over shards only if they contain exactly the expected rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from featpipe.errors import StoreError
from featpipe.store import StoreContent, StoreWriter
from featpipe.store.layout import shard_path
from featpipe.store.writer import describe_shards
from tests import stores

EDGES = (0, 4, 5, 10)
WHOLE = stores.content(n=10, n_logits=3)

Write = Callable[..., dict[Path, str]]


def images_of(rows: range) -> str:
    return f"fingerprint of images {rows.start} to {rows.stop}"


def part_of(rows: range) -> StoreContent:
    """Return what the shard of some rows holds."""
    dataset = {"images": len(rows), "fingerprint": images_of(rows)}
    manifest = {**WHOLE.manifest, "dataset": {**WHOLE.manifest["dataset"], **dataset}}
    here = slice(rows.start, rows.stop)
    return replace(WHOLE, ids=WHOLE.ids[here], labels=WHOLE.labels[here], manifest=manifest)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Seal the shards of a store, perhaps the middle one with another content."""

    def write(**changes: Any) -> dict[Path, str]:
        every, shards = stores.features(WHOLE), {}
        for rows in (range(*edge) for edge in pairwise(EDGES)):
            path = shard_path(tmp_path / "a.h5", rows)
            content = replace(part_of(rows), **changes) if rows.start == 4 else part_of(rows)
            arrays = {
                name: np.resize(every[name][rows.start : rows.stop], (len(rows), *shape))
                for name, shape in content.shapes.items()
            }
            with StoreWriter(path, content) as writer:
                writer.append(arrays, {0: "damaged"} if rows.start == 4 else {})
                writer.seal({**stores.RUN, "host": f"of row {rows.start}"})
            shards[path] = images_of(rows)
        return shards

    return write


def test_rows_name_the_file_and_names_sort_as_rows_do(tmp_path: Path) -> None:
    rows = [range(0, 7), range(7, 14), range(14, 1_000_000), range(1_000_000, 1_000_001)]
    paths = [shard_path(tmp_path / "train-0123.h5", one) for one in rows]
    assert paths[1] == tmp_path / "train-0123.shards" / "0000000007-0000000014.h5"
    assert sorted(paths) == paths


def test_shards_are_the_store_that_they_were_cut_from(write: Write, tmp_path: Path) -> None:
    described = describe_shards(WHOLE, write())
    with StoreWriter(tmp_path / "a.h5", WHOLE, sharded=True) as writer:
        store = writer.seal(stores.RUN, described)
    store.verify()
    whole = stores.sealed(tmp_path / "whole.h5", WHOLE)
    for layer in ("avgpool", "logits"):
        wanted = whole.features(layer).copy()
        wanted[4] = 0  # it was skipped
        np.testing.assert_array_equal(store.features(layer), wanted)
    assert (store.ids, store.fingerprint) == (whole.ids, whole.fingerprint)
    assert [path.name for path in store.shards] == [
        "0000000000-0000000004.h5",
        "0000000004-0000000005.h5",
        "0000000005-0000000010.h5",
    ]


def test_rows_are_counted_from_the_first_of_the_store(write: Write) -> None:
    described = describe_shards(WHOLE, write())
    assert [shard["rows"] for shard in described.described] == [4, 1, 5]
    assert described.skipped == {4: "damaged"}
    assert [run["host"] for run in described.runs] == ["of row 0", "of row 4", "of row 5"]


MIDDLE = part_of(range(4, 5))
OTHERS: dict[str, dict[str, Any]] = {
    "ids": {"ids": ["train/3.png"]},
    "labels": {"labels": MIDDLE.labels + 1},
    "backbone": {"manifest": {**MIDDLE.manifest, "backbone": {"model": "another"}}},
    "images": {"manifest": part_of(range(1)).manifest},
    "width": {"shapes": {**MIDDLE.shapes, "avgpool": (9,)}},
    "precision": {"dtype": "float16", "manifest": {**MIDDLE.manifest, "dtype": "float16"}},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_rows_are_not_taken(write: Write, changes: dict[str, Any]) -> None:
    shards = write(**changes)
    with pytest.raises(StoreError, match="does not contain the expected rows") as caught:
        describe_shards(WHOLE, shards)
    assert caught.value.details["where"] == str(list(shards)[1])
    assert caught.value.details["where"] in caught.value.details["next"]


def test_shards_in_another_order_are_not_taken(write: Write) -> None:
    with pytest.raises(StoreError, match="does not contain the expected rows"):
        describe_shards(WHOLE, dict(reversed(write().items())))


def test_a_shard_that_is_missing_or_damaged_is_named(write: Write) -> None:
    shards = write()
    _, middle, last = shards
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged") as caught:
        describe_shards(WHOLE, shards)
    assert caught.value.details["where"] == str(last)
    middle.unlink()
    with pytest.raises(StoreError, match="no such feature store") as caught:
        describe_shards(WHOLE, shards)
    assert caught.value.details["where"] == str(middle)


def test_shards_at_a_url_are_described_there(
    write: Write, memory: fsspec.AbstractFileSystem
) -> None:
    shards = write()
    here = describe_shards(WHOLE, shards)
    for path in shards:
        memory.put_file(str(path), f"/shelf/{path.name}")
        path.unlink()
    there = describe_shards(WHOLE, shards, "memory://shelf")
    assert there == replace(here, at="memory://shelf")
    first, second, _ = (f"/shelf/{path.name}" for path in shards)
    memory.pipe_file(second, memory.cat_file(first))
    with pytest.raises(StoreError, match="does not contain the expected rows") as caught:
        describe_shards(WHOLE, shards, "memory://shelf")
    assert "delete 'memory://shelf/0000000004-0000000005.h5'" in caught.value.details["next"]
