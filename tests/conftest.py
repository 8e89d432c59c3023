"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from featpipe.store import FeatureStore

REPOSITORY = Path(__file__).resolve().parents[1]

# What a script starts in the background ignores SIGINT, and so does all that it starts in turn;
# with a handler of its own, this process passes on the default.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def let_files_settle() -> Callable[[], None]:
    """Return a function that waits until files just written may be remembered.

    One that changed within the clock's resolution is read again: it may have changed unseen.
    """
    return lambda: time.sleep(0.1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real material (datasets and published weights); skips where it is absent."""
    folder = Path(os.environ.get("FEATPIPE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real material is not here: {folder} (set FEATPIPE_SHARED to its folder)")
    return folder


@pytest.fixture(scope="session")
def stl10_resnet18_store(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """ResNet-18 features and logits of 200 real STL-10 images, 20 of each class."""
    from featpipe.api import extract

    (store,) = extract(
        "stl10",
        "resnet18",
        data=shared / "data",
        weights=shared / "weights" / "resnet18-imagenet-pqf.safetensors",
        split="train",
        limit=200,
        workspace=tmp_path_factory.mktemp("stl10-resnet18"),
    )
    return store


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of the server, with an empty bucket ``shelf``."""
    import boto3
    import s3fs
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()
    client = boto3.client("s3")
    client.create_bucket(Bucket="shelf")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
