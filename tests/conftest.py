"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

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
