"""folder:URL: a folder in a bucket, in memory and as file:// gives what the folder itself gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featpipe.api import extract
from featpipe.cli import main
from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import SourceRequest, open_source, splits_of
from featpipe.datasets.remote import RemoteFolder, as_listed
from featpipe.errors import DataError, ImageError, MissingExtraError, UnknownNameError, UsageError
from tests.datasets.conftest import pictures, png, save, write_shard

HOW = {"model": "glyphnet", "device": "cpu", "runtime": "torch"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two splits, with odd names, a stray and what is hidden."""
    root = tmp_path / "photos"
    for number, image in enumerate(pictures(12, 32)):
        name = ("birne 10", "Äpfel")[number % 2]
        save(root / ("train", "test")[number // 2 % 2] / name / f"{number}.png", image)
    save(root / "train" / "Äpfel" / "deep" / "er" / "x.png", pictures(1, 32, seed=9)[0])
    save(root / "train" / "stray.png", pictures(1)[0])
    save(root / "train" / "Äpfel" / ".hidden.png", pictures(1)[0])
    (root / "train" / "Äpfel" / "notes.txt").write_text("none")
    return root


def upload(client, root: Path, prefix: str = "photos") -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(root).as_posix()}"
            client.put_object(Bucket="shelf", Key=key, Body=path.read_bytes())
    client.put_object(Bucket="shelf", Key=f"{prefix}/train/", Body=b"")  # as consoles make folders


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, folder) -> str:
    """The same folder at a URL."""
    if request.param == "file":
        return f"file://{folder}"
    if request.param == "memory":
        request.getfixturevalue("memory").put(str(folder), "/photos", recursive=True)
        return "memory://photos"
    upload(request.getfixturevalue("s3"), folder)
    return "s3://shelf/photos/"


def test_a_url_gives_what_the_folder_gives(url, folder, options, listener):
    options = replace(options, progress=listener)
    plain = f"folder:{folder}"
    assert splits_of(f"folder:{url}", options) == splits_of(plain, options) == ("train", "test")
    for split in ("train", "test"):
        source = open_source(f"folder:{url}", split, options)
        wanted = open_source(plain, split, options)
        assert source.name == f"folder:{url}"
        assert (list(source.ids), source.classes) == (list(wanted.ids), wanted.classes)
        assert source.labels.tolist() == wanted.labels.tolist()
        assert source.size == wanted.size == (32, 32)
        for row in range(len(source)):
            np.testing.assert_array_equal(source.read(row), wanted.read(row))
    assert [note.replace(url.rstrip("/"), str(folder)) for note in listener.notes[::2]] == (
        listener.notes[1::2]
    )


def test_a_file_url_is_the_folder_itself(folder, options):
    sources = [open_source(f"folder:{at}{folder}", "train", options) for at in ("", "file://")]
    assert sources[0].fingerprint == sources[1].fingerprint


def test_the_fingerprint_is_of_the_content(url, folder, options, request):
    def fingerprint(at=url):
        return open_source(f"folder:{at}", "train", options).fingerprint

    before, image = fingerprint(), folder / "train" / "birne 10" / "0.png"
    assert fingerprint() == before
    image.write_bytes(png(255 - pictures(1, 32)[0]))
    key = "photos/train/birne 10/0.png"
    if url.startswith("memory"):
        request.getfixturevalue("memory").pipe(f"/{key}", image.read_bytes())
    elif url.startswith("s3"):
        request.getfixturevalue("s3").put_object(Bucket="shelf", Key=key, Body=image.read_bytes())
    assert fingerprint() != before


def test_a_copy_elsewhere_has_the_same_fingerprint(folder, options, s3, memory):
    upload(s3, folder, "here")
    upload(s3, folder, "there")
    memory.put(str(folder), "/here", recursive=True)
    memory.put(str(folder), "/there", recursive=True)
    for at in ("s3://shelf", "memory:/"):
        here, there = (
            open_source(f"folder:{at}/{name}", "test", options).fingerprint
            for name in ("here", "there")
        )
        assert here == there


def test_images_without_labels(memory, options):
    for name in ("b10.png", "b9.png", "b9.txt"):
        memory.pipe(f"/flat/{name}", png(pictures(1)[0]))
    source = open_source("folder:memory://flat", "all", options)
    assert (list(source.ids), source.classes) == (["b9.png", "b10.png"], ())
    assert source.labels.tolist() == [-1, -1]


def test_classes_follow_the_rules_of_folders(memory, options):
    memory.pipe("/p/train/a/1.png", b"x")
    memory.pipe("/p/test/b/1.png", b"x")
    with pytest.raises(DataError, match="'test' has classes") as caught:
        open_source("folder:memory://p", "test", options)
    assert "memory://p/test" in str(caught.value)
    memory.pipe("/q/a/1.png", b"x")
    memory.makedirs("/q/empty")
    with pytest.raises(DataError, match="class folder has no images"):
        open_source("folder:memory://q", "all", options)


def test_extract_reads_a_bucket_end_to_end(s3, folder, tmp_path, capsys):
    upload(s3, folder)
    command = ["extract", "--model", "glyphnet", "--dataset", "folder:s3://shelf/photos"]
    command += ["--workspace", str(tmp_path / "work"), "--device", "cpu", "--json"]
    for status in ("done", "up to date"):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert not caught.value.code, capsys.readouterr()
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert status in json.dumps(events)
    remote = extract("folder:s3://shelf/photos", workspace=tmp_path / "work", **HOW)
    local = extract(f"folder:{folder}", workspace=tmp_path / "local", **HOW)
    for store, wanted in zip(remote, local, strict=True):
        assert store.manifest["dataset"]["name"] == "folder:photos"
        assert store.run["source"]["dataset"] == "folder:s3://shelf/photos"
        assert (list(store.ids), store.classes) == (list(wanted.ids), wanted.classes)
        np.testing.assert_array_equal(store.features(), wanted.features())


def test_an_image_that_vanishes_can_be_skipped(s3, folder, options):
    upload(s3, folder)
    source = open_source("folder:s3://shelf/photos", "train", options)
    s3.delete_object(Bucket="shelf", Key=f"photos/{source.ids[0]}")
    with pytest.raises(ImageError, match="not there any more") as caught:
        source.read(0)
    assert f"s3://shelf/photos/{source.ids[0]}" in str(caught.value)
    assert source.read(1).shape == (32, 32, 3)


@pytest.mark.parametrize("same_size", [True, False])
def test_an_image_that_changes_stops_the_run(s3, memory, options, same_size):
    old, new = b"x" * 10, b"y" * (10 if same_size else 9)
    s3.put_object(Bucket="shelf", Key="photos/1.png", Body=old)
    memory.pipe("/photos/1.png", old)
    sources = [
        open_source(f"folder:{at}", "all", options)
        for at in ("s3://shelf/photos", "memory://photos")
    ]
    s3.put_object(Bucket="shelf", Key="photos/1.png", Body=new)
    memory.pipe("/photos/1.png", new)
    for source in sources:
        with pytest.raises(DataError, match="has changed") as caught:
            source.read(0)
        assert not isinstance(caught.value, ImageError)


def test_an_etag_that_is_not_a_digest_is_compared_with_the_current_one(
    memory, options, monkeypatch
):
    memory.pipe("/photos/1.png", png(pictures(1)[0]))
    kind, find, info = type(memory), memory.find, memory.info
    etag = {"ETag": f'"{"0" * 32}"'}  # as of an encrypted object (SSE-KMS)

    def find_with_etag(system, path, **options):
        return {name: found | etag for name, found in find(path, **options).items()}

    asked = []

    def info_with_etag(system, path, **options):
        asked.append(path)
        return info(path, **options) | etag

    monkeypatch.setattr(kind, "find", find_with_etag)
    monkeypatch.setattr(kind, "info", info_with_etag)
    source = open_source("folder:memory://photos", "all", options)
    asked.clear()
    np.testing.assert_array_equal(source.read(0), pictures(1)[0])
    assert asked == ["/photos/1.png"]
    etag["ETag"] = f'"{"1" * 32}"'
    with pytest.raises(DataError, match="has changed"):
        source.read(0)


def test_damaged_images_are_skipped_as_files_are(s3, folder, tmp_path):
    (folder / "test" / "birne 10" / "2.png").write_bytes(b"no image")
    upload(s3, folder)
    stores = extract(
        "folder:s3://shelf/photos", workspace=tmp_path / "work", on_error="skip", **HOW
    )
    assert [len(store.skipped) for store in stores] == [0, 1]


@pytest.mark.parametrize("spec", ["folder:s3://nobody/photos", "wds:s3://nobody/x.tar"])
def test_a_bucket_that_does_not_exist(s3, options, spec):
    with pytest.raises(DataError, match="Nothing was found at this location") as caught:
        splits_of(spec, options)
    assert {"where", "expected", "got", "next"} <= set(caught.value.details)
    assert "s3://nobody" in str(caught.value)


@pytest.mark.parametrize("at", ["s3://shelf/nowhere", "memory://nowhere"])
def test_a_folder_that_does_not_exist(s3, memory, options, at):
    with pytest.raises(DataError, match="Nothing was found at this location"):
        splits_of(f"folder:{at}", options)


def test_a_file_is_not_a_folder(memory, options):
    memory.pipe("/x.tar", b"x")
    with pytest.raises(DataError, match="a file, not a folder"):
        splits_of("folder:memory://x.tar", options)


def test_a_store_that_denies_access_meanwhile_stops_the_run(s3, folder, options, monkeypatch):
    from moto import settings

    upload(s3, folder)
    images = {path.name: path.read_bytes() for path in (folder / "test").rglob("*.png")}
    write_shard(folder.parent / "x.tar", images)
    s3.upload_file(str(folder.parent / "x.tar"), "shelf", "x.tar")
    sources = [
        open_source(spec, split, options)
        for spec, split in (("folder:s3://shelf/photos", "train"), ("wds:s3://shelf/x.tar", "all"))
    ]
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    for source in sources:
        with pytest.raises(DataError, match="was denied") as caught:
            source.read(0)
        assert not isinstance(caught.value, ImageError), "an image that may be skipped"


def test_a_package_that_is_missing(options, monkeypatch):
    monkeypatch.setattr("featpipe.lazy.find_spec", lambda name: None)
    for spec in ("folder:s3://shelf/photos", "wds:s3://shelf/x.tar"):
        with pytest.raises(MissingExtraError) as caught:
            splits_of(spec, options)
        assert caught.value.details["next"] == 'pip install "featpipe[s3]"'


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_what_is_read_from_this_machine_only(kind, options):
    with pytest.raises(UsageError, match="not read from a URL"):
        splits_of(f"{kind}:memory://x.{kind}", options)


def test_names_of_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = "folder:s3://shelf/My photos"
    assert (short_name(spec), slug(short_name(spec))) == ("folder:My photos", "folder-My-photos")
    assert short_name("folder:s3://shelf/photos/") == "folder:photos"
    assert short_name("folder:s3://shelf") == "folder:shelf"
    assert short_name(f"folder:file://{tmp_path}/photos") == "folder:photos"
    request = SourceRequest(spec, data=tmp_path)
    kept = SourceRequest.from_dict(request.as_dict())
    assert kept.dataset == spec
    (tmp_path / "My photos").mkdir()
    assert kept.moved(tmp_path).dataset == f"folder:{tmp_path / 'My photos'}"


def test_a_url_in_the_place_of_a_name(options):
    with pytest.raises(UnknownNameError) as caught:
        splits_of("memory://photos", options)
    assert caught.value.details["next"] == "write folder:memory://… or wds:memory://…"


@pytest.mark.parametrize(
    ("said", "mark"),
    [
        ({"ETag": '"abc-2"', "VersionId": "7"}, "etag:abc-2"),
        ({"md5Hash": "q0==", "etag": "CJ", "generation": 5}, "md5hash:q0=="),
        ({"crc32c": "x", "etag": "y"}, "crc32c:x"),
        ({"VersionId": None, "generation": 5}, "generation:5"),
        ({"created": 1.0}, ""),
    ],
)
def test_which_mark_identifies_the_content(said, mark):
    assert as_listed({"name": "x", "size": 3, **said}) == ("x", 3, mark)


def test_a_listing_is_asked_for_again_by_the_next_dataset(s3):
    s3.put_object(Bucket="shelf", Key="p/1.png", Body=b"x")
    assert RemoteFolder("s3://shelf/p").images() == ["1.png"]
    s3.put_object(Bucket="shelf", Key="p/2.png", Body=b"x")
    assert RemoteFolder("s3://shelf/p").images() == ["1.png", "2.png"]
