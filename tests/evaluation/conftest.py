"""Stores with leaks, and whole results with all their files."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from featpipe.workspace import Workspace
from tests.evaluation.methods import evaluated, pair
from tests.images import pictures
from tests.looks import seen


@pytest.fixture
def leaky(tmp_path):
    """Two splits; the first ten test images are training images, too."""
    many = list(pictures(90, 16))
    train = seen(tmp_path / "train.h5", many[:60], noise=6.0, seed=1)
    images = [*many[:10], *many[60:80]]
    test = seen(tmp_path / "test.h5", images, split="test", noise=6.0, seed=2)
    return train, test


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One result of each of three methods, with all files, that no test changes."""
    folder = tmp_path_factory.mktemp("original")
    stores = pair(folder / "data" / "features" / "toy" / "toynet")
    results = [evaluated(step, folder, *stores) for step in (Centroid(), Svm(c=(0.01,)), Knn())]
    return SimpleNamespace(folder=folder, stores=stores, results=results)


@pytest.fixture
def copy(original: Any, tmp_path: Path) -> Workspace:
    """A copy of the workspace with all results."""
    for name in ("results", "models"):
        shutil.copytree(original.folder / "data" / name, tmp_path / "data" / name)
    return Workspace(tmp_path)
