"""What a file says of itself is checked: no store is refused by name, a forged one as damaged."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featpipe.errors import StoreError
from featpipe.fingerprint import of_mapping
from featpipe.store import FeatureStore
from tests import stores


def foreign_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["labels"] = np.arange(3)


def another_schema(path: Path) -> None:
    stores.sealed(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = np.int64(99)


def of_featpipe_0_1(path: Path) -> None:
    path.write_bytes(b'featpipe feature store\n{"schema": 1}\n'.ljust(4096, b"\0") + b"\x89HDF")


def without_seal(path: Path) -> None:
    stores.sealed(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["seal"]


def unfinished(path: Path) -> None:
    stores.StoreWriter(path, stores.content()).close()


def renamed_unfinished(path: Path) -> None:
    unfinished(path)
    path.with_name(path.name + ".partial").rename(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such feature store"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "not a sealed feature store"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 99), "not a sealed feature store"),
        (lambda path: path.write_text("id,label\n1,2\n"), "not a sealed feature store"),
        (foreign_hdf5, "not a sealed feature store"),
        (without_seal, "not a sealed feature store"),
        (another_schema, "another schema"),
        (of_featpipe_0_1, "written by featpipe 0.1"),
        (unfinished, "unfinished"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (renamed_unfinished, "not a sealed feature store"),
        (
            lambda path: path.write_bytes(stores.sealed(path).path.read_bytes()[:-1]),
            "bytes instead",
        ),
    ],
)
def test_what_is_no_store_is_refused_by_name(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "a.h5"
    make(path)
    with pytest.raises(StoreError, match=says) as caught:
        FeatureStore(path)
    assert caught.value.details["where"] == str(path)


def test_a_file_of_the_users_is_never_said_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("my only copy")
    with pytest.raises(StoreError) as caught:
        FeatureStore(tmp_path / "a.h5")
    assert "rm" not in caught.value.details["next"]


def replace_array(file: h5py.File, record: dict[str, Any], name: str, values: np.ndarray) -> None:
    """Put another array under a name, with its digest."""
    del file[name]
    file[name] = values
    record["digests"][name] = hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def replace_dataset(create: Callable[[h5py.File, h5py.Dataset], None]) -> Callable[..., None]:
    """Return a change that creates the features in another manner."""

    def change(file: h5py.File, _: dict[str, Any]) -> None:
        old = file["features/avgpool"]
        file["moved"] = old
        del file["features/avgpool"]
        create(file, old)

    return change


def external_bytes(file: h5py.File, old: h5py.Dataset) -> None:
    outside = Path(file.filename).with_name("outside.bin")
    outside.write_bytes(old[()].tobytes())
    file.create_dataset(
        "features/avgpool", old.shape, old.dtype, external=[(str(outside), 0, old.nbytes)]
    )


def virtual(file: h5py.File, old: h5py.Dataset) -> None:
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[...] = h5py.VirtualSource(file.filename, "moved", old.shape)
    file.create_virtual_dataset("features/avgpool", layout)


def external_link(file: h5py.File, _: h5py.Dataset) -> None:
    file["features/avgpool"] = h5py.ExternalLink("another.h5", "features/avgpool")


def external_group(file: h5py.File, _: dict[str, Any]) -> None:
    file.move("features", "moved")
    file["features"] = h5py.ExternalLink(file.filename, "moved")


def soft_link(file: h5py.File, _: h5py.Dataset) -> None:
    file["features/avgpool"] = h5py.SoftLink("/moved")


def compressed(file: h5py.File, old: h5py.Dataset) -> None:
    file.create_dataset("features/avgpool", data=old[()], compression="gzip")


def objects(file: h5py.File, old: h5py.Dataset) -> None:
    file.create_dataset("features/avgpool", old.shape, h5py.string_dtype())


def never_written(file: h5py.File, old: h5py.Dataset) -> None:
    file.create_dataset("features/avgpool", old.shape, old.dtype)


def group(file: h5py.File, _: h5py.Dataset) -> None:
    file.create_group("features/avgpool")


def null_space(file: h5py.File, _: h5py.Dataset) -> None:
    file["features/avgpool"] = h5py.Empty("float32")


def array(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    return lambda file, record: replace_array(file, record, name, make(file[name][()]))


def entry(name: str, make: Callable[[Any], Any]) -> Callable[..., None]:
    def change(_: h5py.File, record: dict[str, Any]) -> None:
        *parts, last = name.split("/")
        for part in parts:
            record = record[part]
        record[last] = make(record.get(last))

    return change


def another_array(file: h5py.File, record: dict[str, Any]) -> None:
    file["features/more"] = np.zeros((40, 2), np.float32)
    record["digests"]["features/more"] = hashlib.sha256(bytes(320)).hexdigest()


FEATURES, LOGITS = "features/avgpool", "features/logits"
FORGED = {
    "external bytes": replace_dataset(external_bytes),
    "virtual dataset": replace_dataset(virtual),
    "external link": replace_dataset(external_link),
    "external group": external_group,
    "soft link": replace_dataset(soft_link),
    "compressed": replace_dataset(compressed),
    "objects": replace_dataset(objects),
    "never written": replace_dataset(never_written),
    "group": replace_dataset(group),
    "null dataspace": replace_dataset(null_space),
    "float64": array(FEATURES, lambda x: x.astype("float64")),
    "int32": array(FEATURES, lambda x: x.astype("int32")),
    "big-endian": array(FEATURES, lambda x: x.astype(">f4")),
    "complex": array(FEATURES, lambda x: x.astype("complex64")),
    "structured": array(FEATURES, lambda x: x.view([("a", "f4")])),
    "too few rows": array(FEATURES, lambda x: x[1:]),
    "one dimension": array(FEATURES, lambda x: x[:, 0]),
    "half logits": array(LOGITS, lambda x: x.astype("float16")),
    "too few logits": array(LOGITS, lambda x: x[:, 1:]),
    "labels of another type": array("labels", lambda x: x.astype("int32")),
    "labels of a class too many": array("labels", lambda x: x + 1),
    "labels below -1": array("labels", lambda x: x - 2),
    "labels of two dimensions": array("labels", lambda x: x[:, None]),
    "a label too many": array("labels", lambda x: np.append(x, 0)),
    "no digest of labels": entry("digests", lambda d: {k: d[k] for k in d if k != "labels"}),
    "no digests": entry("digests", lambda _: None),
    "no features": entry("digests", lambda d: {"labels": d["labels"]}),
    "an id too few": entry("ids", lambda x: x[1:]),
    "ids as one text": entry("ids", lambda x: "x" * len(x)),
    "a number as id": entry("ids", lambda x: [1, *x[1:]]),
    "a number as class": entry("classes", lambda x: [*x, 7]),
    "no classes": entry("classes", lambda _: None),
    "a fold behind the end": entry("folds", lambda _: [[0, 40]]),
    "a fold before the start": entry("folds", lambda _: [[-1]]),
    "a fold of fractions": entry("folds", lambda _: [[0.5]]),
    "a fold of folds": entry("folds", lambda _: [[[1], [2]]]),
    "a fold that is a number": entry("folds", lambda _: [1]),
    "skipped behind the end": entry("skipped", lambda _: {"rows": [40], "reasons": ["damaged"]}),
    "skipped before the start": entry("skipped", lambda _: {"rows": [-1], "reasons": ["damaged"]}),
    "skipped by name": entry("skipped", lambda _: {"rows": ["x.png"], "reasons": ["damaged"]}),
    "skipped without reason": entry("skipped", lambda _: {"rows": [3], "reasons": []}),
    "reasons of another type": entry("skipped", lambda _: {"rows": [3], "reasons": [3]}),
    "skipped as list": entry("skipped", lambda _: [1]),
    "fewer source classes": entry("source_classes", lambda x: [x[0][1:], x[1][1:]]),
    "fewer source names": entry("source_classes", lambda x: [x[0], x[1][1:]]),
    "source classes of one kind": entry("source_classes", lambda x: [x[0]]),
    "manifest as text": entry("manifest", lambda _: "text"),
    "no layers": entry("manifest/layers", lambda _: []),
    "layers as text": entry("manifest/layers", lambda _: "avgpool"),
    "another layer": entry("manifest/layers", lambda _: ["avgpool", "layer4"]),
    "more images": entry("manifest/dataset/images", lambda n: n + 1),
    "dataset as text": entry("manifest/dataset", lambda _: "toy"),
    "run as list": entry("run", lambda _: [1]),
    "no fingerprint": entry("fingerprint", lambda _: None),
    "a fingerprint of something else": entry("fingerprint", lambda _: "0" * 64),
    "no manifest": lambda _, record: record.pop("manifest"),
    "no backbone": entry("manifest/backbone", lambda _: None),
    "a backbone without name": entry("manifest/backbone", lambda _: {"weights": {}}),
    "a split that is a number": entry("manifest/dataset/split", lambda _: 7),
    "a dataset without fingerprint": entry("manifest/dataset/fingerprint", lambda _: None),
    "images that are text": entry("manifest/dataset/images", str),
    "a layer twice": entry("manifest/layers", lambda _: ["avgpool", "avgpool"]),
    "a layer outside": entry("manifest/layers", lambda _: ["../labels"]),
    "another precision than said": entry("manifest/dtype", lambda _: "float16"),
    "an unknown precision": entry("manifest/dtype", lambda _: "O"),
    "an array that nothing implies": another_array,
    "logits that nothing implies": entry("source_classes", lambda _: None),
    "rows of no numbers": array(FEATURES, lambda x: x[:, :0]),
    "a digest that is a number": entry("digests/labels", lambda _: 7),
    "a run without a date": entry("run", lambda _: {}),
    "a run that was asked for by a number": entry("run/request", lambda _: 7),
    "a fold of truths": entry("folds", lambda _: [[True]]),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_nothing_a_file_says_is_believed(
    whole: Path, tmp_path: Path, forge: Callable[..., None]
) -> None:
    """Even where every checksum is right, as in a file that somebody made on purpose."""
    path = tmp_path / "a.h5"
    path.write_bytes(whole.read_bytes())
    seal_again(path, lambda *_: None)
    assert stores.everything(FeatureStore(path)) == stores.everything(FeatureStore(whole))
    seal_again(path, forge)
    with pytest.raises(StoreError, match="damaged") as caught:
        FeatureStore(path)
    assert caught.value.details["where"] == str(path)


def seal_again(path: Path, change: Callable[[h5py.File, dict[str, Any]], None]) -> None:
    """Change a sealed store and make its record and seal fit what it then is."""
    with h5py.File(path, "r+") as file:
        record = json.loads(file["record"][()])
        before = record["fingerprint"]
        change(file, record)
        if record.get("fingerprint") == before and "manifest" in record:
            record["fingerprint"] = of_mapping(record["manifest"])
        text = json.dumps(record).encode()
        del file["record"]
        file["record"] = np.array(text)
        file.attrs["seal"] = np.bytes_(hashlib.sha256(text).hexdigest())


@pytest.mark.parametrize("record", [np.arange(3), np.array(b"no JSON"), np.array(b"[1]")])
def test_a_record_that_is_none_is_refused(whole: Path, tmp_path: Path, record: np.ndarray) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["record"]
        file["record"] = record
        file.attrs["seal"] = np.bytes_(hashlib.sha256(record.tobytes()).hexdigest())
    with pytest.raises(StoreError, match="damaged"):
        FeatureStore(path)


def lookup3(data: bytes) -> int:
    """Return the checksum of HDF5's structures (Jenkins, lookup3.c, hashlittle)."""

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> 32 - k) & 0xFFFFFFFF

    a = b = c = 0xDEADBEEF + len(data)
    data = data.ljust(max(12, -(-len(data) // 12) * 12), b"\0")
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    for i in range(0, len(words), 3):
        a, b, c = (x + y & 0xFFFFFFFF for x, y in zip((a, b, c), words[i : i + 3], strict=True))
        if i + 3 < len(words):
            for k in (4, 6, 8, 16, 19, 4):
                a, c = (a - c & 0xFFFFFFFF) ^ rotated(c, k), c + b & 0xFFFFFFFF
                a, b, c = b, c, a
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotated(b, k)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def with_features(path: Path, shape: tuple[int, ...], *, allocated: bool) -> None:
    """Put an array of zeros that nobody wrote into a store; a sparse file where allocated."""

    def change(file: h5py.File, _: dict[str, Any]) -> None:
        del file["features/avgpool"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.CONTIGUOUS)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        if allocated:
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        file.create_dataset("features/avgpool", shape, "float32", dcpl=plan)

    seal_again(path, change)


def opened_in_little_memory(path: Path) -> str:
    """Open a store and look at its last features, in 200 MB; return what it says."""
    code = (
        "import pathlib, re, sys; from featpipe.store import FeatureStore\n"
        "try: print(FeatureStore(sys.argv[1]).extents('features/avgpool')[0].map()[-1, -1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "if status.exists():\n"
        "    peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', status.read_text())[1])\n"
        "    assert peak < 200_000, peak"
    )
    arguments = [sys.executable, "-c", code, path]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def test_an_array_of_zeros_without_end_is_mapped_and_not_read(tmp_path: Path) -> None:
    path = stores.sealed(tmp_path / "a.h5", stores.content(n=4)).path
    with_features(path, (4, 1 << 32), allocated=True)
    assert path.stat().st_size > 1 << 36
    assert opened_in_little_memory(path) == "0.0\n"


@pytest.mark.parametrize("width", [1 << 32, 1 << 50])
def test_a_size_that_is_only_declared_is_refused(tmp_path: Path, width: int) -> None:
    path = stores.sealed(tmp_path / "a.h5", stores.content(n=4)).path
    with_features(path, (4, width), allocated=False)
    assert "bytes of features/avgpool are not in the file" in opened_in_little_memory(path)


def test_an_offset_behind_the_end_is_refused(tmp_path: Path) -> None:
    """Every checksum is right, HDF5's own of the changed structure too."""
    path = stores.sealed(tmp_path / "a.h5", stores.content(n=4)).path
    with h5py.File(path) as file:
        features = file["features/avgpool"]
        extent = struct.pack("<QQ", features.id.get_offset(), features.nbytes)
    content = bytearray(path.read_bytes())
    place = content.index(extent)
    start = content.rindex(b"OHDR", 0, place)
    width = 1 << (content[start + 5] & 3)
    assert not content[start + 5] & 0x30  # no times or phases between the flags and the size
    end = start + 6 + width + int.from_bytes(content[start + 6 : start + 6 + width], "little")
    assert lookup3(content[start:end]) == int.from_bytes(content[end : end + 4], "little")
    content[place : place + 8] = struct.pack("<Q", len(content) - 8)
    content[end : end + 4] = struct.pack("<I", lookup3(content[start:end]))
    path.write_bytes(content)
    assert "StoreError" in opened_in_little_memory(path)


def test_a_record_without_end_is_not_read(tmp_path: Path) -> None:
    path = stores.sealed(tmp_path / "a.h5", stores.content(n=4)).path
    with h5py.File(path, "r+") as file:
        del file["record"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        kind = h5py.string_dtype("utf-8", (1 << 31) - 1)
        file.create_dataset("record", (), kind, dcpl=plan)
    assert "its record has 2147483647 bytes" in opened_in_little_memory(path)
