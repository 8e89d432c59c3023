"""A store in shards is the store without them: in every number, for everything that reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featpipe
from featpipe.cli.main import featpipe as program
from featpipe.errors import (
    DataError,
    ImageError,
    MissingExtraError,
    StoreError,
    StoreInUseError,
    UsageError,
)
from featpipe.extraction import Extract
from featpipe.progress import Event, Progress
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreWriter
from featpipe.store.layout import StoreContent
from featpipe.urls import Place
from featpipe.workspace import Workspace
from tests.images import photo_folder

Extracted = Callable[..., list[FeatureStore]]


@pytest.fixture
def extracted(tmp_path: Path) -> Extracted:
    """Extract glyphnet's features of handwritten digits into shards of 400 rows."""

    def extract(workspace: str = "shards", **options: Any) -> list[FeatureStore]:
        given = {"dataset": "digits", "model": "glyphnet", "shard_rows": 400, **options}
        return featpipe.extract(workspace=tmp_path / workspace, **given)

    return extract


def shard_times(store: FeatureStore) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.shards}


def test_everything_is_that_of_the_store_without_shards(extracted: Extracted) -> None:
    for whole, store in zip(extracted("whole", shard_rows=None), extracted(), strict=True):
        assert (store.fingerprint, store.manifest) == (whole.fingerprint, whole.manifest)
        assert (store.ids, store.classes) == (whole.ids, whole.classes)
        np.testing.assert_array_equal(store.labels, whole.labels)
        for layer in ("avgpool", "logits"):
            np.testing.assert_allclose(store.features(layer), whole.features(layer), atol=1e-5)
        assert store.digests is not None
        np.testing.assert_array_equal(store.digests, whole.digests)
        np.testing.assert_array_equal(store.looks("thumbnail"), whole.looks("thumbnail"))
        store.verify()
    assert [path.name for path in store.shards] == [
        "0000000000-0000000400.h5",
        "0000000400-0000000539.h5",
    ]
    assert store.run["shards"] == 2
    arrays = [np.asarray(store.features(layer)) for layer in ("avgpool", "logits")]
    assert store.n_bytes > sum(array.nbytes for array in arrays)


def test_probe_audit_report_and_export_read_it(extracted: Extracted, tmp_path: Path) -> None:
    answers = {}
    for workspace, rows in (("whole", None), ("shards", 400)):
        train, test = extracted(workspace, shard_rows=rows)
        root = tmp_path / workspace
        results = [
            featpipe.evaluate(method, train, test, workspace=root) for method in ("svm", "knn")
        ]
        curve = featpipe.evaluate("centroid", train, test, workspace=root, train_per_class=[2, 5])
        page = featpipe.report([*results, curve], root / "page", workspace=root)
        assert "SVM" in page.read_text(encoding="utf-8")
        for command in (
            ["audit", "--dataset", "digits"],
            ["store", "verify", str(test.path)],
            ["store", "info", str(test.path)],
            ["store", "export", str(test.path), str(root / "test.npz")],
        ):
            # `store` finds its workspace by the path it is given.
            where = ["--workspace", str(root)] if command[0] == "audit" else []
            outcome = CliRunner().invoke(program, [*command, *where])
            assert outcome.exit_code == 0, outcome.output
        predictions = [result.summary["accuracy"]["value"] for result in (*results, curve)]
        with np.load(root / "test.npz") as exported:
            answers[workspace] = predictions, exported["ids"].tolist(), exported["labels"].tolist()
    assert answers["whole"] == answers["shards"]


def test_finished_shards_are_never_made_again(extracted: Extracted) -> None:
    store, _ = extracted()
    before = shard_times(store)
    lost = store.shards[1]
    lost.unlink()
    with pytest.raises(StoreError, match="0000000400-0000000800") as raised:
        FeatureStore(store.path).features()
    assert "only they are made again" in raised.value.details["next"]
    with pytest.raises(StoreError, match="1 of 4"):
        store.verify()
    again, _ = extracted()
    after = shard_times(again)
    assert [name for name in after if after[name] != before[name]] == [lost.name]
    again.verify()


def test_a_damaged_shard_is_named(extracted: Extracted, tmp_path: Path) -> None:
    store, _ = extracted()
    content = bytearray(store.shards[2].read_bytes())
    content[store.extents("features/avgpool")[2].offset + 99] ^= 1
    store.shards[2].write_bytes(content)
    for look in (lambda: FeatureStore(store.path).features(), store.verify):
        with pytest.raises(StoreError, match="1 of 4: 0000000800-0000001200"):
            look()
    store.shards[2].unlink()  # as the message says
    extracted()[0].verify()


def test_an_interrupted_run_continues_with_what_is_missing(
    extracted: Extracted, tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if event.done > 800:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extracted(progress=Progress(interrupt, 0))
    (folder,) = (tmp_path / "shards").rglob("train-*.shards")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    assert len(kept) == 2
    step = Extract(dataset="digits", model="glyphnet", shard_rows=400)
    status = step.status(Context(Workspace(tmp_path / "shards")))
    assert "2 of 4 shards exist" in status.why
    notes: list[str] = []
    store, _ = extracted(progress=Progress(lambda event: notes.append(event.message), 0))
    assert any(note.startswith("resuming: 2 of 6 shards (800 images)") for note in notes)
    assert kept.items() <= shard_times(store).items()


def test_shards_of_another_size_are_replaced(extracted: Extracted, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.done > 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extracted(progress=Progress(stop, 0))
    store, _ = extracted(shard_rows=1000)
    assert len(store.shards) == 2
    assert sorted(store.path.with_suffix(".shards").iterdir()) == store.shards


def test_a_sealed_store_stays_whatever_size_is_asked_for(extracted: Extracted) -> None:
    before = shard_times(extracted()[0])
    assert shard_times(extracted(shard_rows=17)[0]) == before
    assert shard_times(extracted(shard_rows=None)[0]) == before


def test_unreadable_images_follow_the_policy(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos")
    broken = sorted(folder.rglob("*.png"))[7]
    broken.write_bytes(broken.read_bytes()[:60])
    given: dict[str, Any] = {"dataset": f"folder:{folder}", "model": "glyphnet", "shard_rows": 5}
    with pytest.raises(ImageError):
        featpipe.extract(**given, workspace=tmp_path)
    (store,) = featpipe.extract(**given, workspace=tmp_path, on_error="skip")
    (whole,) = featpipe.extract(
        **given | {"shard_rows": None}, workspace=tmp_path / "whole", on_error="skip"
    )
    assert store.skipped == whole.skipped
    assert len(store.skipped) == 1
    np.testing.assert_allclose(store.features(), whole.features(), atol=1e-5)
    with pytest.raises(ImageError, match="1 of 12 images cannot be read"):
        featpipe.extract(**given, workspace=tmp_path)


def test_two_runs_at_one_target(extracted: Extracted, tmp_path: Path) -> None:
    whole, _ = extracted("whole", shard_rows=None)
    content = StoreContent(
        whole.ids, whole.labels, whole.classes, whole.shapes, "float32", whole.manifest
    )
    path = tmp_path / "shards" / whole.path.relative_to(tmp_path / "whole")
    with StoreWriter(path, content, sharded=True), pytest.raises(StoreInUseError):
        extracted()
    extracted()[0].verify()


def test_a_shard_of_other_rows_is_not_taken(extracted: Extracted) -> None:
    store, other = extracted()
    taken = store.shards[0]
    taken.write_bytes(other.shards[0].read_bytes())
    store.shards[1].unlink()
    with pytest.raises(StoreError, match="does not contain the expected rows") as raised:
        extracted()
    assert taken.name in raised.value.details["next"]
    taken.unlink()
    extracted()[0].verify()


def test_a_shard_of_other_images_is_not_taken(tmp_path: Path) -> None:
    """Their ids, labels and shapes are the same: only the pixels are others."""
    given: dict[str, Any] = {"model": "glyphnet", "shard_rows": 5}
    stores = []
    for number, name in enumerate(("one", "other")):
        folder = photo_folder(tmp_path / name / "photos")
        if number:
            for path in folder.rglob("*.png"):
                Image.open(path).rotate(90).save(path)
        workspace = tmp_path / name
        stores += featpipe.extract(f"folder:{folder}", workspace=workspace, **given)
    one, other = stores
    other.shards[1].write_bytes(one.shards[1].read_bytes())
    other.shards[0].unlink()
    with pytest.raises(StoreError, match="does not contain the expected rows"):
        featpipe.extract(f"folder:{tmp_path / 'other' / 'photos'}", workspace=workspace, **given)


PLACES = ["file://{folder}/bucket", "memory://bucket/features/", "s3://shelf/features"]


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet."""
    place: str = request.param.format(folder=tmp_path)
    if (protocol := place.partition(":")[0]) != "file":
        request.getfixturevalue(protocol)
    return place


def test_shards_at_a_url(extracted: Extracted, url: str) -> None:
    whole, _ = extracted("whole", shard_rows=None)
    store, _ = extracted(shards_at=url)
    there = Place(store.shards_at)
    inside = "/digits/glyphnet/" + store.shards[0].parent.name
    assert store.shards_at == url.rstrip("/") + inside
    assert there.names() == {path.name for path in store.shards}, "no temporary ones"
    assert not any(path.exists() for path in store.shards), "until they are needed"
    assert not store.lost_shards
    assert (store.fingerprint, store.ids) == (whole.fingerprint, whole.ids)
    assert store.n_bytes > whole.features().nbytes
    np.testing.assert_allclose(store.features(), whole.features(), atol=1e-5)
    assert [path.exists() for path in store.shards] == [True] * 4
    store.shards[1].unlink()
    store.verify()
    svm = [
        featpipe.evaluate("svm", *extracted(workspace, shard_rows=None))
        for workspace in ("whole", "shards")
    ]
    assert svm[0].summary["accuracy"] == svm[1].summary["accuracy"]


def test_what_is_lost_at_a_url_is_made_again_alone(extracted: Extracted, url: str) -> None:
    store, _ = extracted(shards_at=url)
    there, lost = Place(store.shards_at), store.shards[1]
    before = {name: there.read(f"{there.path}/{name}") for name in there.names()}
    damaged = bytearray(before[lost.name])
    damaged[store.extents("features/avgpool")[1].offset + 99] ^= 1
    there.fs.pipe_file(f"{there.path}/{lost.name}", bytes(damaged))
    with pytest.raises(StoreError, match=f"1 of 4: {lost.name}") as raised:
        store.features()
    assert there.url in raised.value.details["next"]
    there.fs.rm_file(f"{there.path}/{lost.name}")
    lost.unlink()
    assert FeatureStore(store.path).lost_shards == [lost]
    again, _ = extracted(shards_at=url)
    again.verify()
    kept = {name: there.read(f"{there.path}/{name}") for name in before if name != lost.name}
    assert kept.items() <= before.items()


def test_a_shard_that_was_not_put_where_it_belongs(
    extracted: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is complete, but the process died, or the storage did not answer."""

    def fail(self: Place, file: Path) -> None:
        raise DataError("The storage cannot be read.")

    url = f"file://{tmp_path}/bucket"
    with monkeypatch.context() as patch:
        patch.setattr(Place, "put", fail)
        with pytest.raises(DataError):
            extracted(shards_at=url)
    (made,) = (tmp_path / "shards").rglob("*.shards/*.h5")
    content = made.read_bytes()
    step = Extract(dataset="digits", model="glyphnet", shard_rows=400, shards_at=url)
    assert "0 of 4 shards" in step.status(Context(Workspace(tmp_path / "shards"))).why
    store, _ = extracted(shards_at=url)
    there = Path(store.shards_at.removeprefix("file://"))
    assert (there / made.name).read_bytes() == content
    store.verify()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shards_at": "s3://shelf/x", "shard_rows": None}, "which this is not"),
        ({"shards_at": "shelf/x"}, "is not a URL"),
        ({"shards_at": "simplecache::s3://shelf/x"}, "is not a URL"),
        ({"shards_at": "nonsense://shelf"}, "cannot be read here"),
        ({"shards_at": "ftp://me:secret@host/x"}, "holds a password"),
    ],
)
def test_places_for_shards_are_checked(
    given: dict[str, Any], message: str, extracted: Extracted
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        extracted(**given)
    assert "secret" not in str(raised.value)


def test_a_bucket_needs_its_extra(extracted: Extracted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featpipe.lazy.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="s3fs") as raised:
        extracted(shards_at="s3://shelf/x")
    assert raised.value.details["next"] == 'pip install "featpipe[s3]"'
