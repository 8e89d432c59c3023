"""A store is sealed only when it is whole, and nothing that was written is ever lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import featpipe.store.writer as writing
from featpipe.errors import StoreError
from featpipe.store import FeatureStore, StoreWriter
from featpipe.store.layout import partial_path
from tests import stores
from tests.store.damage import DAMAGE, damage, relaxed

KILLING = Path(__file__).with_name("killing.py")


def part(arrays: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: values[start:stop] for name, values in arrays.items()}


def assert_same(store: FeatureStore, arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(store.features(), arrays["avgpool"])
    if "logits" in arrays:
        np.testing.assert_array_equal(store.logits, arrays["logits"])


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folds = (np.array([0, 3, 5]), np.array([1, 2]))
    what = stores.content(n=30, n_logits=4, folds=folds)
    store = stores.sealed(tmp_path / "new" / "a.h5", what)
    assert_same(store, stores.features(what))
    assert store.ids == list(what.ids)
    assert store.classes == what.classes
    assert store.labels.tolist() == what.labels.tolist()
    assert [fold.tolist() for fold in store.folds] == [[0, 3, 5], [1, 2]]
    assert store.source_classes == what.source_classes
    assert store.manifest == what.manifest
    assert store.fingerprint == what.fingerprint
    assert store.run == stores.RUN
    assert store.skipped == {}
    assert [path.name for path in store.path.parent.iterdir()] == ["a.h5"]
    store.verify()


def test_features_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    features = stores.sealed(tmp_path / "a.h5").features()
    assert isinstance(features, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        features[0, 0] = 1


def test_closing_and_opening_continues(tmp_path: Path) -> None:
    what = stores.content(n_logits=3)
    arrays = stores.features(what)
    for start in (0, 20, 40):
        with StoreWriter(tmp_path / "a.h5", what) as writer:
            assert writer.rows == start
            writer.append(part(arrays, start, start + 20))
            if start == 40:
                writer.seal(stores.RUN)
    assert_same(FeatureStore(tmp_path / "a.h5"), arrays)


def test_skipped_rows_survive_a_break_and_hold_zeros(tmp_path: Path) -> None:
    what = stores.content()
    arrays = stores.features(what)
    arrays["avgpool"][[1, 45]] = np.nan
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(arrays, 0, 30), {1: "it is a text file"})
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(arrays, 30, 60), {45: "cut off"})
        store = writer.seal(stores.RUN)
    assert store.skipped == {1: "it is a text file", 45: "cut off"}
    assert not store.features()[[1, 45]].any()
    assert set(store.usable) == set(range(60)) - {1, 45}


def test_another_fingerprint_starts_over(tmp_path: Path) -> None:
    what = stores.content()
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(stores.features(what), 0, 20))
    with StoreWriter(tmp_path / "a.h5", stores.content(dims=9)) as writer:
        assert writer.rows == 0


def test_missing_rows_are_never_sealed(tmp_path: Path) -> None:
    what = stores.content()
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(stores.features(what), 0, 59))
        with pytest.raises(StoreError, match="rows are missing"):
            writer.seal(stores.RUN)
    with pytest.raises(StoreError, match="unfinished"):
        FeatureStore(tmp_path / "a.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_the_image(
    tmp_path: Path, value: float
) -> None:
    what = stores.content()
    arrays = stores.features(what)
    arrays["avgpool"][7, 3] = value
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        with pytest.raises(StoreError, match=r"train/7\.png.*not finite") as caught:
            writer.append(arrays)
        assert writer.rows == 0
    assert "weights" in caught.value.details["next"]


def test_an_overflow_of_half_precision_says_what_to_do(tmp_path: Path) -> None:
    what = stores.content(dtype="float16")
    arrays = stores.features(what)
    arrays["avgpool"][7, 3] = 1e6
    with (
        StoreWriter(tmp_path / "a.h5", what) as writer,
        pytest.raises(StoreError, match="not finite") as caught,
    ):
        writer.append(arrays)
    assert "--dtype float32" in caught.value.details["next"]


def test_rows_that_changed_on_the_disk_are_not_sealed(tmp_path: Path) -> None:
    what = stores.content()
    partial = partial_path(tmp_path / "a.h5")
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(stores.features(what), 0, 40))
        writer.append(part(stores.features(what), 40, 60))
        content = partial.read_bytes()
        partial.write_bytes(content[:-9] + b"\0" + content[-8:])
        with pytest.raises(StoreError, match="missing or damaged") as caught:
            writer.seal(stores.RUN)
    assert caught.value.details["got"] == "40 rows"
    assert list(tmp_path.iterdir()) == [partial]
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert writer.rows == 40
        assert "damaged" in writer.note


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        StoreWriter(tmp_path / "a.h5", stores.content()) as writer,
        pytest.raises(StoreError, match="unexpected shape"),
    ):
        writer.append({"avgpool": np.zeros((3, 9), np.float32)})


@pytest.mark.parametrize("rows", [0, 20])
def test_a_second_writer_is_told_and_harms_nothing(tmp_path: Path, rows: int) -> None:
    what = stores.content()
    arrays = stores.features(what)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(part(arrays, 0, rows)) if rows else None
        with pytest.raises(StoreError, match="Another process is writing"):
            StoreWriter(tmp_path / "a.h5", what)
        writer.append(part(arrays, rows, 60))
        store = writer.seal(stores.RUN)
    assert_same(store, arrays)


def test_a_writer_that_was_refused_leaves_no_lock(tmp_path: Path) -> None:
    what = stores.content()
    with StoreWriter(tmp_path / "a.h5", what), pytest.raises(StoreError):
        StoreWriter(tmp_path / "a.h5", what)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        writer.append(stores.features(what))
        writer.seal(stores.RUN)


def unfinished(path: Path, what: Any) -> dict[str, np.ndarray]:
    """Leave a store of six blocks of ten rows, not sealed."""
    arrays = stores.features(what)
    with StoreWriter(path, what) as writer:
        for start in range(0, 60, 10):
            writer.append(part(arrays, start, start + 10))
    return arrays


def test_a_sealed_store_that_only_lacks_its_name_gets_it(tmp_path: Path) -> None:
    """A kill between the two renames; the lines of killing.py meet this state as well."""
    path = tmp_path / "a.h5"
    with StoreWriter(path, stores.content()) as writer:
        writer.append(stores.features(stores.content()), {3: "damaged"})
        whole = writer.seal(stores.RUN).path.read_bytes()
    path.rename(partial_path(path))
    with StoreWriter(path, stores.content()) as writer:
        assert (writer.rows, writer.skipped) == (60, {3: "damaged"})
        writer.seal({"another": "run"})
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_sealed_store_of_other_content_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stores.sealed(path, stores.content(dims=9)).path.rename(partial_path(path))
    with StoreWriter(path, stores.content()) as writer:
        assert writer.rows == 0
        assert "another store" in writer.note


def test_what_an_interrupted_sealing_wrote_is_written_again(tmp_path: Path) -> None:
    what = stores.content(n_logits=5)
    arrays = unfinished(tmp_path / "a.h5", what)
    (tmp_path / "a.h5.sealing").write_bytes(b"half of an HDF5 file")
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert (writer.rows, writer.note) == (60, "")
        assert_same(writer.seal(stores.RUN), arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def check_damaged_partial(folder: Path, how: tuple[Any, ...]) -> None:
    """Damaged blocks are never used: the run ends in the bytes of an undisturbed one."""
    what = stores.content(n_logits=5)
    path, partial = folder / "a.h5", partial_path(folder / "a.h5")
    arrays = unfinished(path, what)
    content = partial.read_bytes()
    blocks = writing.read_blocks(partial)
    ends = {0: 0} | {end: facts["first"] + facts["rows"] for facts, _, end in blocks}
    damaged = damage(content, how)
    partial.write_bytes(damaged)
    good = max(end for end in ends if damaged[:end] == content[:end])
    with StoreWriter(path, what) as writer:
        assert writer.rows == ends[good]
        assert bool(writer.note) == (good < len(damaged))
        writer.append(part(arrays, writer.rows, 60))
        store = writer.seal(stores.RUN)
    assert_same(store, arrays)
    assert store.path.read_bytes() == stores.sealed(folder / "b.h5", what).path.read_bytes()


@settings(relaxed, max_examples=60)
@given(how=DAMAGE)
def test_damaged_blocks_are_not_used(tmp_path_factory: Any, how: tuple[Any, ...]) -> None:
    check_damaged_partial(tmp_path_factory.mktemp("damaged"), how)


@pytest.mark.long
@settings(relaxed, max_examples=500)
@given(how=DAMAGE)
def test_damaged_blocks_are_not_used_long(tmp_path_factory: Any, how: tuple[Any, ...]) -> None:
    check_damaged_partial(tmp_path_factory.mktemp("damaged"), how)


def test_a_digit_of_a_line_that_changed_is_noticed(tmp_path: Path) -> None:
    """A block said to have 20 rows instead of 10, a row skipped that was not, a later start."""
    what = stores.content()
    unfinished(tmp_path / "a.h5", what)
    partial = partial_path(tmp_path / "a.h5")
    whole = partial.read_bytes()
    for old, new in ((b'"rows": 10', b'"rows": 20'), (b'"first": 20', b'"first": 10')):
        assert old in whole
        partial.write_bytes(whole.replace(old, new))
        with StoreWriter(tmp_path / "a.h5", what) as writer:
            assert writer.rows == (0 if old == b'"rows": 10' else 20)
            assert f"continuing at row {writer.rows}" in writer.note
        partial.write_bytes(whole)


def test_blocks_out_of_order_are_not_used(tmp_path: Path) -> None:
    what = stores.content()
    unfinished(tmp_path / "a.h5", what)
    partial = partial_path(tmp_path / "a.h5")
    ends = [0] + [end for _, _, end in writing.read_blocks(partial)]
    whole = partial.read_bytes()
    blocks = [whole[start:end] for start, end in pairwise(ends)]
    partial.write_bytes(b"".join([*blocks[:3], blocks[4], blocks[3], *blocks[5:]]))
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert writer.rows == 20
    partial.write_bytes(b"".join(blocks[1:]))  # without the one that says what it is
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert writer.rows == 0


def line(**facts: Any) -> bytes:
    text = json.dumps(facts).encode() + b"\n"
    return hashlib.sha256(text).hexdigest().encode() + b" " + text


FORGED = {
    "no facts": {"first": None},
    "a size beyond memory": {"n_bytes": 1 << 62, "rows": 1 << 57},
    "a negative size": {"n_bytes": -1},
    "fewer bytes than rows": {"rows": 60},
    "more rows than the store": {"rows": 61},
    "rows that are text": {"rows": "10"},
    "a row skipped that is elsewhere": {"skipped": {"59": "why"}},
    "a row skipped that is no row": {"skipped": {"x": "why"}},
    "a reason that is a number": {"skipped": {"1": 7}},
    "skipped rows as a list": {"skipped": [1]},
}


@pytest.mark.parametrize("facts", [*FORGED.values(), [1]], ids=[*FORGED, "a list"])
def test_blocks_with_right_checksums_that_make_no_sense_are_not_used(
    tmp_path: Path, facts: Any
) -> None:
    what = stores.content()
    StoreWriter(tmp_path / "a.h5", what).close()
    rows = np.ones(10, what.row_dtype).tobytes()
    block = {"first": 0, "rows": 10, "n_bytes": len(rows), "skipped": {}, "seconds": 1.0}
    block["sha256"] = hashlib.sha256(rows).hexdigest()
    with partial_path(tmp_path / "a.h5").open("ab") as file:
        file.write(line(**{**block, **facts}) if isinstance(facts, dict) else line(a=facts))
        file.write(rows)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert writer.rows == 0
        assert "damaged" in writer.note
        writer.append(stores.features(what))
        assert_same(writer.seal(stores.RUN), stores.features(what))


def test_a_sealed_store_without_its_name_is_compared_before_it_gets_it(tmp_path: Path) -> None:
    what = stores.content()
    path = stores.sealed(tmp_path / "a.h5", what).path
    content = bytearray(path.read_bytes())
    content[stores.FeatureStore(path).features().offset] ^= 1
    path.unlink()
    partial_path(path).write_bytes(content)
    with StoreWriter(path, what) as writer:
        assert writer.rows == 0
        writer.append(stores.features(what))
        assert_same(writer.seal(stores.RUN), stores.features(what))


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"featpipe feature store\n", b"{}\n[]\n"])
def test_an_unfinished_file_of_something_else_is_replaced(tmp_path: Path, content: bytes) -> None:
    """An unfinished store of featpipe 0.1 among them, which begins with zeros."""
    what = stores.content()
    partial_path(tmp_path / "a.h5").write_bytes(content)
    with StoreWriter(tmp_path / "a.h5", what) as writer:
        assert writer.rows == 0
        assert bool(writer.note) == bool(content)
        writer.append(stores.features(what))
        assert_same(writer.seal(stores.RUN), stores.features(what))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    what = stores.content(n=10_000, dims=1 << 28)
    with pytest.raises(StoreError, match="Too little disk space") as caught:
        StoreWriter(tmp_path / "a.h5", what)
    assert "float16" in caught.value.details["next"]
    assert "for the finished file" in caught.value.details["expected"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter(tmp_path / "data" / "a.h5", stores.content())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    free = shutil.disk_usage(disk).free
    (disk / "filling").write_bytes(b"x" * (free - leave))
    return disk / "filling"


@pytest.mark.parametrize("leave", [0, 8 << 10, 600 << 10, 1600 << 10])
def test_a_disk_too_full_at_the_start_leaves_nothing_behind(small_disk: Path, leave: int) -> None:
    what = stores.content(n=2000, dims=64)
    filling = fill(small_disk, leave=leave)
    with pytest.raises(StoreError, match="disk") as caught:
        StoreWriter(small_disk / "a.h5", what)
    assert "free some space" in caught.value.details["next"]
    assert list(small_disk.iterdir()) == [filling]
    filling.unlink()
    assert_same(stores.sealed(small_disk / "a.h5", what), stores.features(what))


@pytest.mark.parametrize("leave", [0, 8 << 10, 600 << 10, 1000 << 10])
def test_a_quota_that_nobody_announced_is_met_before_hdf5(
    small_disk: Path, leave: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = stores.content(n=4000, dims=64)
    filling = fill(small_disk, leave=leave)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(StoreError, match="The disk is full"):
        StoreWriter(small_disk / "a.h5", what)
    assert list(small_disk.iterdir()) == [filling]


def test_a_disk_full_on_the_way_keeps_every_row(small_disk: Path) -> None:
    what = stores.content(n=2000, dims=64)
    arrays = stores.features(what)
    with StoreWriter(small_disk / "a.h5", what) as writer:
        writer.append(part(arrays, 0, 1000))
        writer.sync()
        filling = fill(small_disk, leave=0)
        with pytest.raises(StoreError, match="disk is full"):
            writer.append(part(arrays, 1000, 1100))
    filling.unlink()
    with StoreWriter(small_disk / "a.h5", what) as writer:
        assert writer.rows == 1000
        writer.append(part(arrays, 1000, 2000))
        assert_same(writer.seal(stores.RUN), arrays)


@pytest.mark.parametrize("leave", [0, 4 << 10, 8 << 10, 12 << 10, 16 << 10, 60 << 10])
def test_a_disk_full_while_sealing_is_made_good(small_disk: Path, leave: int) -> None:
    what = stores.content(n=1000, dims=64)
    arrays = stores.features(what)
    with StoreWriter(small_disk / "a.h5", what) as writer:
        writer.append(arrays)
        writer.sync()
        filling = fill(small_disk, leave=leave)
        with pytest.raises(StoreError, match="disk is full"):
            writer.seal(stores.RUN)
    assert not (small_disk / "a.h5").exists()
    filling.unlink()
    with StoreWriter(small_disk / "a.h5", what) as writer:
        assert writer.rows == 1000
        assert_same(writer.seal(stores.RUN), arrays)


def test_a_limit_on_the_size_of_files_is_explained(tmp_path: Path) -> None:
    """As ``ulimit -f`` sets it; needs no rights."""
    code = (
        "import resource, sys, pathlib; from tests import stores\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from featpipe.errors import StoreError\n"
        "try: stores.sealed(pathlib.Path(sys.argv[1]), stores.content(n=3000, dims=64))\n"
        "except StoreError as error: print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.h5"],
        cwd=KILLING.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "The disk is full" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def killed(folder: Path, *arguments: object) -> dict[str, int]:
    ended = subprocess.run(
        [sys.executable, KILLING, folder, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.timeout(1200)
def test_every_row_survives_kills_at_random_moments(tmp_path: Path, kills: int) -> None:
    met = killed(tmp_path, "random", kills, 1)
    assert sum(met.values()) == kills
    assert met.get("sealed", 0) < kills  # most kills came before the end


@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.timeout(1200)
def test_a_kill_at_any_line_changes_nothing(tmp_path: Path, step: int) -> None:
    met = killed(tmp_path, "lines", step)
    assert {"nothing kept", "rows kept", "sealing", "sealed"} <= set(met)
    assert step > 1 or "sealed without its name" in met
