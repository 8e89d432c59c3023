"""Extraction: the right numbers, continued after any break, and never a stale store."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.backbones import load_backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError, ImageError, StoreError, UnknownNameError, UsageError
from featpipe.extraction import Extract
from featpipe.extraction.batches import ExtractOptions
from featpipe.extraction.engine import content_of, extract_source
from featpipe.progress import Event, Progress
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreWriter
from featpipe.workspace import Workspace
from tests import images, stores
from tests.extraction.conftest import only_store

REPOSITORY = Path(__file__).resolve().parents[2]


def test_features_are_those_of_the_backbone(extract: Any, weights: Path, photos: Path) -> None:
    store = only_store(extract(layer="layer2,avgpool"))
    backbone = load_backbone(images.MODEL, str(weights), device="cpu")
    source = open_source(f"folder:{photos}", "all", DatasetOptions())
    batch = torch.stack([backbone.preprocessing.prepare(source.read(r)) for r in range(12)])
    wanted = backbone.embed(batch, ("layer2", "avgpool", "logits"))
    assert store.layers == ("layer2", "avgpool")
    np.testing.assert_array_equal(store.features("layer2"), wanted["layer2"])
    np.testing.assert_array_equal(store.features("avgpool"), wanted["avgpool"])
    np.testing.assert_array_equal(store.logits, wanted["logits"])
    assert store.ids == list(source.ids)
    assert store.labels.tolist() == source.labels.tolist()
    assert store.classes == ("ant", "bee", "cät")
    assert len(store.source_classes[0]) == 10
    store.verify()


def test_the_run_record_says_how_it_was_made(extract: Any, photos: Path) -> None:
    run = only_store(extract(batch_size=5)).run
    assert run["batch_size"] == 5
    assert run["device"] == "cpu"
    assert set(run["shares"]) == {"read", "compute", "write"}
    assert run["seconds"] > 0
    assert run["source"]["dataset"] == f"folder:{photos}"
    assert "torch" in run["environment"]["packages"]


def test_the_batch_size_changes_nothing(extract: Any, tmp_path: Path) -> None:
    archive = images.photo_archive(tmp_path / "toy.npz", 70)
    one = only_store(extract(dataset=f"npz:{archive}", batch_size=1)).features().copy()
    shutil.rmtree(tmp_path / "work")
    many = only_store(extract(dataset=f"npz:{archive}", batch_size=64)).features()
    assert np.abs(one - many).max() <= 1e-4 * np.abs(many).max()


def test_half_precision_rounds_and_nothing_else(extract: Any) -> None:
    full = only_store(extract()).features()
    half = only_store(extract(dtype="float16"))
    assert half.features().dtype == np.float16
    np.testing.assert_array_equal(half.features(), full.astype(np.float16))
    assert half.logits.dtype == np.float32


def test_a_map_of_a_layer_keeps_its_shape(extract: Any) -> None:
    assert only_store(extract(layer="layer3:map")).features().shape == (12, 64, 8, 8)


def test_logits_can_be_asked_for_as_features(extract: Any) -> None:
    store = only_store(extract(layer="logits"))
    np.testing.assert_array_equal(store.features(), store.logits)


def test_weights_with_other_classes_store_no_logits(extract: Any, tmp_path: Path) -> None:
    own = images.weights_file(tmp_path / "own.safetensors", num_classes=7)
    store = only_store(extract(weights=own))
    assert store.logits is None
    assert store.source_classes is None


# --- up to date, or made anew


def test_the_second_run_finds_the_first(extract: Any) -> None:
    first = extract()
    second = extract()
    assert (first.status, second.status) == ("done", "up to date")
    assert first.paths == second.paths
    assert second.exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"workers": 1},
        {"on_error": "skip"},
        {"layer": "avgpool"},
        {"layer": "avgpool,avgpool"},
        {"limit": 12},
        {"limit": 99},
        {"classes": "ant,bee,cät"},
        {"classes": "first:3"},
        {"split": "all"},
        {"image_size": 32},
    ],
)
def test_what_changes_no_number_is_not_computed_again(extract: Any, options: Any) -> None:
    first = extract()
    second = extract(**options)
    assert second.status == "up to date" or second.paths == first.paths
    assert len(list(first.paths[0].parent.glob("*.h5"))) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"},
        {"layer": "layer3"},
        {"decode": "scaled"},
        {"layer": "avgpool,layer3"},
        {"layer": "avgpool:map"},
        {"fit": "whole"},
        {"image_size": 48},
        {"limit": 6},
        {"limit": 6, "split_seed": 1},
        {"classes": "ant,bee"},
        {"classes": "first:1"},
    ],
    ids=str,
)
def test_a_changed_option_never_reuses_a_store(extract: Any, options: Any) -> None:
    first = extract()
    changed = extract(**options)
    assert changed.status == "done"
    assert changed.paths != first.paths
    assert extract(**options).paths == changed.paths
    assert extract().paths == first.paths


def test_other_weights_under_the_same_name(extract: Any, tmp_path: Path) -> None:
    file = images.weights_file(tmp_path / "w.safetensors", seed=1)
    first = extract(weights=file)
    images.weights_file(file, seed=2)
    second = extract(weights=file)
    assert second.status == "done"
    assert (only_store(first).features() != only_store(second).features()).any()


def test_other_pixels_under_the_same_name_size_and_time(extract: Any, tmp_path: Path) -> None:
    folder = images.photo_folder(tmp_path / "photos")
    first = extract(dataset=f"folder:{folder}")
    file = folder / "ant" / "1.png"
    stat, content = file.stat(), bytearray(file.read_bytes())
    swapped = (folder / "ant" / "2.png").read_bytes()
    content = swapped[: len(content)].ljust(len(content), b"\0")
    Image.open(file)  # both are PNG of one size; the tail is ignored by the decoder
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert extract(dataset=f"folder:{folder}", on_error="skip").paths != first.paths


def test_one_image_more(extract: Any, tmp_path: Path) -> None:
    folder = images.photo_folder(tmp_path / "photos")
    first = extract(dataset=f"folder:{folder}")
    shutil.copy(folder / "ant" / "1.png", folder / "ant" / "9.png")
    assert len(only_store(extract(dataset=f"folder:{folder}"))) == len(only_store(first)) + 1


def test_a_folder_that_moved_is_still_up_to_date(extract: Any, tmp_path: Path) -> None:
    folder = images.photo_folder(tmp_path / "here" / "photos")
    first = extract(dataset=f"folder:{folder}")
    shutil.move(tmp_path / "here", tmp_path / "there")
    second = extract(dataset=f"folder:{tmp_path / 'there' / 'photos'}")
    assert second.status == "up to date"
    assert second.paths == first.paths


def test_a_damaged_store_of_other_options_is_no_obstacle(extract: Any) -> None:
    other = extract(dtype="float16")
    other.paths[0].write_bytes(b"damaged")
    assert extract().status == "done"
    with pytest.raises(StoreError):
        extract(dtype="float16")


# --- how the network runs


@pytest.mark.parametrize("raised", [RuntimeError("the server is gone"), KeyboardInterrupt()])
def test_a_reader_that_dies_ends_the_run_which_continues_later(
    weights: Path, photos: Path, tmp_path: Path, raised: BaseException
) -> None:
    class Failing(ImageSource):
        def __init__(self, source: ImageSource) -> None:
            self.__dict__.update(source.__dict__)
            self.inner = source

        def read(self, row: int) -> Any:
            if row == 9:
                raise raised
            return self.inner.read(row)

    source = open_source(f"folder:{photos}", "all", DatasetOptions())
    backbone = load_backbone(images.MODEL, str(weights), device="cpu")
    options, path = ExtractOptions(batch_size=4), tmp_path / "store.h5"
    kind = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else DataError
    with pytest.raises(kind) as caught:
        extract_source(Failing(source), backbone, path, options)
    if kind is DataError:
        assert caught.value.details["where"] == "row 9"
        assert "RuntimeError: the server is gone" in caught.value.details["got"]
        assert "run the same command again" in caught.value.details["next"]
    with StoreWriter(path, content_of(source, backbone, options)) as writer:
        assert writer.rows == 8, "both whole batches before the row"
    store = extract_source(source, backbone, path, options)
    whole = extract_source(source, backbone, tmp_path / "whole.h5", options)
    np.testing.assert_array_equal(store.features(), whole.features())


def test_jpegs_may_be_decoded_at_a_reduced_scale(extract: Any, tmp_path: Path) -> None:
    folder = tmp_path / "large" / "ant"
    folder.mkdir(parents=True)
    for row, picture in enumerate(images.pictures(3, 160)):
        smooth = Image.fromarray(picture).resize((300, 300), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{row}.jpg", quality=95)
    full, scaled = (
        only_store(extract(dataset=f"folder:{folder.parent}", decode=how))
        for how in ("full", "scaled")
    )
    assert "decode" not in full.manifest["backbone"]["preprocessing"]
    assert scaled.manifest["backbone"]["preprocessing"]["decode"] == "scaled"
    a, b = full.features(), scaled.features()
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert 0.97 < cosines.min() <= cosines.max() < 1 - 1e-9


def test_the_run_record_says_what_ran_and_why(extract: Any) -> None:
    pytest.importorskip("openvino")
    chosen = only_store(extract())
    assert (chosen.run["runtime"], chosen.run["precision"]) == ("torch", "float32")
    assert "32 pixels" in chosen.run["runtime_because"]
    asked = extract(runtime="openvino")
    assert asked.status == "up to date"  # the same numbers, so the same store
    other = only_store(extract(runtime="openvino", layer="layer2"))
    assert (other.run["runtime"], other.run["runtime_because"]) == ("openvino", "asked for")
    assert "runtime" not in other.manifest["backbone"]


# --- splits, subsets, labels


def test_a_limit_is_spread_over_the_classes(extract: Any) -> None:
    assert np.bincount(only_store(extract(limit=6)).labels).tolist() == [2, 2, 2]


def test_every_labelled_split_has_a_store(extract: Any, tmp_path: Path) -> None:
    split = np.array(["train", "test", "ext/ra *"] * 4)
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.pictures(12), labels=np.arange(12) % 3, split=split)
    outcome = extract(dataset=f"npz:{path}")
    found = {FeatureStore(path).manifest["dataset"]["split"] for path in outcome.paths}
    assert found == {"train", "test", "ext/ra *"}
    assert len({path.parent for path in outcome.paths}) == 1
    assert extract(dataset=f"npz:{path}").status == "up to date"
    only = extract(dataset=f"npz:{path}", split="test")
    assert len(only_store(only)) == 4


def test_unlabelled_images_are_embedded_too(extract: Any, tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.pictures(3), labels=[0, -1, 1])
    store = only_store(extract(dataset=f"npz:{path}"))
    assert store.labels.tolist() == [0, -1, 1]
    assert store.usable.tolist() == [0, 2]
    assert np.isfinite(store.features()).all()


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"layer": "avgpol"}, UnknownNameError, "'avgpool'"),
        ({"split": "al"}, UnknownNameError, "'all'"),
        ({"device": "cpux"}, UnknownNameError, "'cpu'"),
        ({"classes": "ant,bea"}, UnknownNameError, "'bee'"),
        ({"image_size": 4}, UsageError, "8 to"),
        ({"dataset": "digts"}, UnknownNameError, "'digits'"),
        ({"model": "resnet51"}, UnknownNameError, "'resnet5"),
    ],
)
def test_wrong_names_say_the_nearest_right_one(
    weights: Path, photos: Path, tmp_path: Path, options: Any, kind: type, says: str
) -> None:
    right = {
        "model": images.MODEL,
        "weights": str(weights),
        "dataset": f"folder:{photos}",
        "device": "cpu",
    }
    with pytest.raises(kind) as caught:
        Extract(**{**right, **options}).run(Context(Workspace(tmp_path)))
    assert says in str(caught.value)
    assert not list(tmp_path.rglob("*.h5*"))


# --- images that cannot be read


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = images.photo_folder(tmp_path / "broken")
    (folder / "bee" / "2.png").write_bytes(b"no image")
    (folder / "cät" / "0.png").write_bytes(b"")
    return folder


def test_fail_keeps_the_rows_so_far_and_says_what_to_do(extract: Any, broken: Path) -> None:
    with pytest.raises(ImageError) as caught:
        extract(dataset=f"folder:{broken}", batch_size=3)
    assert caught.value.details["where"] == str(broken / "bee" / "2.png")
    assert "--on-error skip" in caught.value.details["next"]
    (partial,) = broken.parent.rglob("*.h5.partial")
    assert stores.kept_rows(partial) == 6
    outcome = extract(dataset=f"folder:{broken}", batch_size=3, on_error="skip")
    assert not partial.exists()
    assert sorted(only_store(outcome).skipped) == [6, 8]


def test_skip_says_so_everywhere(extract: Any, broken: Path, extract_whole: np.ndarray) -> None:
    outcome = extract(dataset=f"folder:{broken}", on_error="skip")
    store = only_store(outcome)
    assert outcome.exit_code == 0
    assert "(unreadable images left out: 2)" in outcome.message
    assert outcome.facts["stores"][0]["skipped"] == ["bee/2.png", "cät/0.png"]
    assert {store.ids[row] for row in store.skipped} == {"bee/2.png", "cät/0.png"}
    assert all(str(broken) not in reason for reason in store.skipped.values())
    assert not store.features()[list(store.skipped)].any()
    rest = store.usable
    np.testing.assert_allclose(store.features()[rest], extract_whole[rest], rtol=1e-4, atol=1e-5)
    again = extract(dataset=f"folder:{broken}", on_error="skip")
    assert (again.status, again.exit_code) == ("up to date", 0)
    strictly = extract(dataset=f"folder:{broken}", on_error="skip", strict=True)
    assert (strictly.status, strictly.exit_code) == ("up to date", 3)


@pytest.fixture
def extract_whole(weights: Path, photos: Path, tmp_path: Path) -> np.ndarray:
    backbone = load_backbone(images.MODEL, str(weights), device="cpu")
    source = open_source(f"folder:{photos}", "all", DatasetOptions())
    return extract_source(source, backbone, tmp_path / "whole.h5").features()


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Return a folder with everything that is no readable file, called like an image."""
    folder = images.photo_folder(tmp_path / "odd")
    os.mkfifo(folder / "ant" / "fifo.png")
    (folder / "ant" / "loop.png").symlink_to("loop.png")
    (folder / "ant" / "nowhere.png").symlink_to("gone.png")
    (folder / "bee" / "device.png").symlink_to("/dev/zero")
    (folder / "bee" / "cut.png").write_bytes((folder / "bee" / "0.png").read_bytes()[:50])
    bomb = bytearray((folder / "bee" / "1.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 99_999, 99_999)
    (folder / "bee" / "bomb.png").write_bytes(bomb)
    with open(os.fsencode(folder / "cät") + b"/\xff.png", "wb") as stream:
        stream.write((folder / "cät" / "0.png").read_bytes())
    return folder


@pytest.mark.timeout(120)
def test_everything_unreadable_is_skipped_or_named(extract: Any, odd: Path) -> None:
    with pytest.raises(ImageError, match="5 of 19 images cannot be read") as caught:
        extract(dataset=f"folder:{odd}")
    assert caught.value.details["where"] == "ant/fifo.png"
    assert "--on-error skip" in caught.value.details["next"]
    assert not list(odd.parent.rglob("*.h5*")), "nothing was embedded for it"
    outcome = extract(dataset=f"folder:{odd}", on_error="skip")
    assert outcome.facts["stores"][0]["skipped"] == [
        "ant/fifo.png", "ant/loop.png", "ant/nowhere.png",
        "bee/bomb.png", "bee/cut.png", "bee/device.png", "cät/\\xff.png",
    ]  # fmt: skip
    assert "not valid text" in only_store(outcome).skipped[18]
    assert extract(dataset=f"folder:{odd}", on_error="skip").status == "up to date"


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_image_that_is_not_that_of_the_fingerprint_ends_the_run(
    extract: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """It is replaced after all were hashed and before it is read."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    prepare = Preprocessing.prepare

    def replace_the_last(self: Preprocessing, image: np.ndarray) -> torch.Tensor:
        shutil.copy(photos / "ant" / "0.png", folder / "cät" / "3.png")
        return prepare(self, image)

    monkeypatch.setattr(Preprocessing, "prepare", replace_the_last)
    with pytest.raises(DataError, match="has changed"):
        extract(dataset=f"folder:{folder}", on_error=on_error, workers=1, batch_size=1)
    assert not list(tmp_path.rglob("*.h5"))


def test_what_was_skipped_is_refused_where_skipping_was_not_asked_for(
    extract: Any, broken: Path
) -> None:
    extract(dataset=f"folder:{broken}", on_error="skip")
    with pytest.raises(ImageError, match="2 of 12 images cannot be read") as caught:
        extract(dataset=f"folder:{broken}")
    assert caught.value.details["where"] == "bee/2.png"


# --- interruptions


class Stopping(ImageSource):
    """A source in front of which somebody presses Ctrl-C at one image."""

    def __init__(self, source: ImageSource, at: int) -> None:
        self.__dict__.update(source.__dict__)
        self.inner, self.at = source, at

    def read(self, row: int) -> Any:
        if row == self.at:
            raise KeyboardInterrupt
        return self.inner.read(row)


@pytest.mark.parametrize("at", [0, 7, 29])
def test_ctrl_c_and_again_gives_the_same_features(weights: Path, tmp_path: Path, at: int) -> None:
    archive = images.photo_archive(tmp_path / "toy.npz", 30)
    backbone = load_backbone(images.MODEL, str(weights), device="cpu")
    source = open_source(f"npz:{archive}", "all", DatasetOptions())
    options = ExtractOptions(batch_size=4)
    whole = extract_source(source, backbone, tmp_path / "whole.h5", options)
    with pytest.raises(KeyboardInterrupt):
        extract_source(Stopping(source, at), backbone, tmp_path / "a.h5", options)
    assert stores.kept_rows(tmp_path / "a.h5.partial") == at // 4 * 4
    events: list[Event] = []
    store = extract_source(
        source, backbone, tmp_path / "a.h5", options, progress=Progress(events.append)
    )
    kept = at // 4 * 4
    notes = [event.message for event in events if event.event == "note"]
    assert notes == [f"resuming: {kept} of 30 images already embedded"] * (kept > 0)
    shown = [event for event in events if event.event != "note"]
    assert (shown[0].done, shown[0].total, shown[-1].done) == (kept, 30, 30)
    np.testing.assert_array_equal(store.features(), whole.features())
    np.testing.assert_array_equal(store.logits, whole.logits)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_continues(
    weights: Path, tmp_path: Path, extract: Any, by: signal.Signals
) -> None:
    archive = images.photo_archive(tmp_path / "toy.npz", 700)
    arguments = ["extract", "--model", images.MODEL, "--weights", weights, "--device", "cpu"]
    arguments += ["--dataset", f"npz:{archive}", "--batch-size", "2", "-q"]
    arguments += ["--workspace", tmp_path / "work"]
    process = subprocess.Popen([sys.executable, "-m", "featpipe", *arguments], cwd=REPOSITORY)
    rows = 0
    try:
        while process.poll() is None and not rows:
            time.sleep(0.02)
            for file in (tmp_path / "work").rglob("*.h5.partial"):
                rows = stores.kept_rows(file)
    finally:
        process.send_signal(by)
    assert process.wait() == -by
    assert 0 < rows < 700
    store = only_store(extract(dataset=f"npz:{archive}", batch_size=2))
    backbone = load_backbone(images.MODEL, str(weights), device="cpu")
    source = open_source(f"npz:{archive}", "all", DatasetOptions())
    for part in (range(0, 40), range(max(0, rows - 20), min(700, rows + 60)), range(660, 700)):
        batch = torch.stack([backbone.preprocessing.prepare(source.read(row)) for row in part])
        wanted = backbone.embed(batch)["avgpool"]
        np.testing.assert_allclose(store.features()[part], wanted, rtol=1e-4, atol=1e-5)
    assert not list((tmp_path / "work").rglob("*.partial"))
