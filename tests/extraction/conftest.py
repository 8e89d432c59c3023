"""A small network and a few photos, and how their features are extracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featpipe.extraction import Extract
from featpipe.steps import Context, Outcome
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests import images


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.weights_file(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.photo_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def extract(weights: Path, photos: Path, tmp_path: Path) -> Any:
    """Return a function that runs the step in a workspace of its own."""

    def run(**options: Any) -> Outcome:
        step = {"model": images.MODEL, "weights": weights, "dataset": f"folder:{photos}", **options}
        step["weights"] = str(step["weights"])
        return Extract(device="cpu", **step).run(Context(Workspace(tmp_path / "work")))

    return run


def only_store(outcome: Outcome) -> FeatureStore:
    (path,) = outcome.paths
    return FeatureStore(path)
