"""Places at URLs: what is a URL, files read from and put into one, and what can go wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import fsspec
import pytest

from featpipe import lazy
from featpipe.errors import DataError, ImageError, MissingExtraError, UsageError
from featpipe.urls import Place, check_protocol, is_url, plain_path, protocol_of, translate_errors


@pytest.mark.parametrize(
    ("text", "protocol", "path", "url"),
    [
        ("s3://shelf/photos", "s3", None, True),
        ("github+v2.1-x://a", "github+v2.1-x", None, True),
        ("file:///data/photos", None, "/data/photos", True),
        ("local:///data/photos", None, "/data/photos", True),
        ("/data/s3://photos", None, None, False),
        ("data/photos", None, None, False),
        ("C:/photos", None, None, False),
        ("s3:shelf", None, None, False),
        ("s3://", "s3", None, False),
        ("simplecache::s3://shelf/photos", None, None, False),
    ],
)
def test_urls_are_distinguished_from_paths(
    text: str, protocol: str | None, path: str, url: bool
) -> None:
    assert protocol_of(text) == protocol
    assert plain_path(text) == (path or text)
    assert is_url(text) == url


PLACES = ["file://{folder}/shelf/photos", "memory://shelf/photos/", "s3://shelf/photos"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that is not there yet."""
    url: str = request.param.format(folder=tmp_path)
    if protocol := protocol_of(url):
        request.getfixturevalue(protocol)
    return Place(url)


def test_what_is_put_is_there_under_its_name_alone(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    assert place.names() == set()
    assert not place.has("a.bin")
    for content in (b"first", b"0123456789"):
        file.write_bytes(content)
        place.put(file)
        assert Place(place.url).names() == {"a.bin"}, "no temporary ones"
    assert place.has("a.bin")
    assert not place.has("b.bin")
    path = f"{place.path}/a.bin"
    assert place.info(path)["size"] == 10
    assert (place.read(path), place.read(path, 2, 5)) == (b"0123456789", b"234")
    with place.opened("a.bin") as stream:
        stream.seek(7)
        assert stream.read() == b"789"
    place.fetch("a.bin", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == b"0123456789"
    assert Place(place.where("a.bin")).path == Place(place.url_of(path)).path == path


def test_what_is_not_there_is_named_and_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for look in (
        lambda: place.fetch("a.bin", tmp_path / "here" / "a.bin"),
        lambda: place.opened("a.bin").__enter__(),
        lambda: place.info(f"{place.path}/a.bin"),
    ):
        with pytest.raises(DataError, match="Nothing was found at this location") as caught:
            look()
        assert caught.value.details["where"].endswith("shelf/photos/a.bin")
    assert not list((tmp_path / "here").iterdir())


def test_files_that_came_later_are_seen(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/shelf/a", b"")
    assert Place("memory://shelf").names() == {"a"}
    memory.pipe("/shelf/b", b"")
    assert Place("memory://shelf").names() == {"a", "b"}


class NoCredentialsError(Exception):
    """As a storage's own library calls it."""


@pytest.mark.parametrize(
    ("url", "error", "says", "hint"),
    [
        ("s3://shelf", FileNotFoundError("no bucket"), "Nothing was found", "correct the URL"),
        ("s3://shelf", PermissionError("Forbidden"), "was denied", "AWS_ACCESS_KEY_ID"),
        ("gs://shelf", PermissionError("Forbidden"), "was denied", "gcloud auth"),
        ("ftp://host", PermissionError("Forbidden"), "was denied", "the file system's own way"),
        (
            "s3://shelf",
            type("NoCredentialsError", (Exception,), {})(),
            "was denied",
            "aws configure",
        ),
        ("s3://shelf", TimeoutError("too late"), "cannot be read", "network"),
        ("s3://shelf", ValueError("odd\n answer"), "ValueError: odd answer", "network"),
    ],
    ids=str,
)
def test_errors_of_file_systems_say_what_to_do(
    url: str, error: Exception, says: str, hint: str
) -> None:
    with pytest.raises(DataError, match=says) as caught, translate_errors(url):
        raise error
    assert caught.value.details["where"] == url
    assert hint in caught.value.details["next"]
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ImageError("It is explained."), KeyboardInterrupt()], ids=repr)
def test_what_needs_no_explanation_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_errors("s3://shelf"):
        raise error
    assert caught.value is error


def test_credentials_that_are_missing_or_wrong(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    from moto import settings

    s3.put_object(Bucket="shelf", Key="photos/a/1.png", Body=b"x")
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(DataError, match="was denied") as caught:
        Place("s3://shelf/photos").names()
    assert "AWS_ACCESS_KEY_ID" in caught.value.details["next"]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="was denied") as caught:
        Place("s3://shelf/photos").names()
    assert "testing" not in str(caught.value)


def test_a_server_that_does_not_answer(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="cannot be read") as caught:
        Place("s3://shelf/photos").names()
    assert "network" in caught.value.details["next"]


@pytest.mark.parametrize(
    ("at", "extra"), [("s3", "s3"), ("s3a", "s3"), ("gs", "gcs"), ("gcs", "gcs")]
)
def test_a_package_that_is_missing(at: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        lazy, "find_spec", lambda name: None if name in ("s3fs", "gcsfs") else found(name)
    )
    with pytest.raises(MissingExtraError) as caught:
        check_protocol(f"{at}://shelf/photos")
    assert caught.value.details["next"] == f'pip install "featpipe[{extra}]"'
    for place in ("memory://shelf", "file:///shelf", "/shelf", "nix://shelf"):
        check_protocol(place)


def test_other_protocols() -> None:
    with pytest.raises(UsageError, match="nix://") as caught:
        Place("nix://shelf/photos")
    assert "Protocol not known" in caught.value.details["got"]
    with pytest.raises(UsageError, match="password") as caught:
        Place("ftp://me:secret@host/photos")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://[shelf", "memory://photos[1/x", "ftp://me:secret@[::1/x"])
def test_what_cannot_be_a_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not a URL") as caught:
        Place(url)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_put_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    (tmp_path / "a.bin").write_bytes(b"content")
    place = Place(f"file://{tmp_path}/shelf")
    monkeypatch.setattr(place.fs, "mv", fail)
    with pytest.raises(DataError, match="cannot be read"):
        place.put(tmp_path / "a.bin")
    assert not list((tmp_path / "shelf").iterdir())
