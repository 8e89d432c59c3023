"""Damage to every structure of a store, sealed or unfinished: none changes a number silently.

A damaged store is refused or, where the damage hit bytes that HDF5 does not use, gives the very
same content. What is damaged of an unfinished one is computed again: sealed, it has the bytes of
one that was never damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featpipe.errors import StoreError
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.store.layout import partial_path
from featpipe.store.writer import read_blocks
from tests import stores

N = 24


def of_features() -> StoreContent:
    return stores.content(n=N, n_logits=5, folds=(np.array([1, 2, 3]),))


def of_activations() -> StoreContent:
    """Prepared images and the maps of a boundary, as fine-tuning stores them."""
    what = stores.content(n=N, dtype="uint8")
    manifest = {**what.manifest, "layers": ["image", "boundary"]}
    return replace(what, manifest=manifest, shapes={"image": (3, 4, 4), "boundary": (2, 3, 3)})


CONTENTS = {"features": of_features, "activations": of_activations}


def write(path: Path, what: StoreContent) -> StoreWriter:
    """Write all rows, the fourth skipped; not sealed."""
    writer = StoreWriter(path, what)
    finish(writer)
    return writer


def finish(writer: StoreWriter) -> None:
    arrays = stores.features(writer.content)
    if writer.content.dtype == "uint8":
        arrays = {name: values.view(np.uint32) % 256 for name, values in arrays.items()}
    while writer.rows < N:
        rows = range(writer.rows, min(writer.rows + 12, N))
        skipped = {3: "it is a text file"} if 3 in rows else {}
        block = {name: values[rows.start : rows.stop] for name, values in arrays.items()}
        writer.append(block, skipped)


def sealed_regions(path: Path) -> dict[str, range]:
    """Return where the structures of a sealed store are."""
    content = path.read_bytes()
    with h5py.File(path) as file:
        names = ["labels", "record", *(f"features/{name}" for name in file["features"])]
        places = {name: file[name].id.get_offset() for name in names}
        regions = {name: range(places[name], places[name] + file[name].nbytes) for name in names}
        seal = content.index(bytes(file.attrs["seal"]))
    record = regions.pop("record")
    for key in ("ids", "manifest", "digests", "skipped", "run"):
        start = content.index(b'"%s": ' % key.encode(), record.start)
        regions[f"record/{key}"] = range(start, min(start + 90, record.stop))
    return {
        **{"superblock": range(48), "object headers": range(48, min(places.values()))},
        **{"seal": range(seal, seal + 64), **regions},
    }


def partial_regions(path: Path) -> dict[str, range]:
    """Return where the structures of an unfinished store are."""
    content, regions, start = path.read_bytes(), {}, 0
    for number, (facts, rows, end) in enumerate(read_blocks(path)):
        line = end - len(rows)
        regions[f"digest of line {number}"] = range(start, start + 64)
        regions[f"line {number}"] = range(start + 64, line)
        place = content.index(str(facts["rows"]).encode(), content.index(b'"rows"', start))
        regions[f"number of rows {number}"] = range(place, place + 2)
        if rows:
            regions[f"rows {number}"] = range(line, end)
        start = end
    return regions


def damages(region: range, seed: int, times: int) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yield ways to damage a file in a region, by name."""
    rng = np.random.default_rng(seed)

    def changed(start: int, stop: int, new: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        return lambda b: b[:start] + new(b[start:stop]) + b[stop:]

    def other_digits(text: bytes) -> bytes:
        return bytes(48 + (byte - 47) % 10 if 48 <= byte < 58 else byte for byte in text)

    for _ in range(times):
        place, bit = int(rng.choice(region)), int(rng.integers(8))
        yield (
            f"bit {bit} of {place}",
            changed(place, place + 1, lambda b, bit=bit: bytes([b[0] ^ 1 << bit])),
        )
        yield f"two bytes from {place} exchanged", changed(place, place + 2, lambda b: b[::-1])
        yield f"digits from {place} changed", changed(place, place + 4, other_digits)
        yield f"4 zeros at {place}", changed(place, place + 4, lambda b: bytes(len(b)))
        yield f"removed at {place}", changed(place, place + 3, lambda b: b"")
        yield f"doubled at {place}", changed(place, place + 3, lambda b: b + b)
    yield "zeros", changed(region.start, region.stop, lambda b: bytes(len(b)))
    yield "ones", changed(region.start, region.stop, lambda b: b"\xff" * len(b))
    yield "cut before", lambda b: b[: region.start]
    yield "cut within", lambda b: b[: (region.start + region.stop) // 2]


def is_silent(path: Path, state: str, what: StoreContent, wanted: list[Any]) -> bool:
    """Return whether a damaged file gives another store than the undamaged one."""
    try:
        if state == "sealed":
            return stores.everything(FeatureStore(path)) != wanted
    except StoreError as error:
        return error.details["where"] != str(path)
    with StoreWriter(path, what) as writer:
        finish(writer)
        return stores.everything(writer.seal(stores.RUN)) != wanted


@pytest.mark.parametrize("times", [2, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.parametrize("state", ["sealed", "unfinished", "sealed without its name"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_no_damage_is_silent(
    tmp_path: Path, kind: str, state: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the only thing that takes time
    path, what = tmp_path / "a.h5", CONTENTS[kind]()
    with write(path, what) as writer:
        if state == "unfinished":
            content, regions = (
                (partial := partial_path(path)).read_bytes(),
                partial_regions(partial),
            )
        store = writer.seal(stores.RUN)
        wanted = stores.everything(store)
        if state != "unfinished":
            content, regions = path.read_bytes(), sealed_regions(path)
    place = path if state == "sealed" else partial_path(path)
    damaged = {
        f"{name}: {how}": damage(content)
        for number, (name, region) in enumerate(regions.items())
        for how, damage in damages(region, number, times)
    }
    damaged |= {f"{len(more)} bytes more": content + more for more in (b"\0", bytes(4096), content)}
    damaged = {how: new for how, new in damaged.items() if new != content}
    assert len(damaged) > 130
    print(len(damaged), "damaged files")
    silent = []
    for how, new in damaged.items():
        path.unlink(missing_ok=True)
        place.write_bytes(new)
        if is_silent(path, state, what, wanted):
            silent.append(how)
    assert not silent
