"""Lower precision: int8 is calibrated on training images, and its cost is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.source import ArraySource, Identity, ImageSource
from featpipe.errors import DataError, ImageError
from featpipe.extraction.engine import calibration, cost_of_precision
from featpipe.steps import Context
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests import images
from tests.extraction.conftest import only_store

SMALL = Preprocessing(8, 8)
RARE = 200  # brightness of the images of a class that has few


def source(n: int = 400) -> ArraySource:
    """Return images of which every fortieth is of the second class."""
    labels = (np.arange(n) % 40 == 0).astype(int)
    pixels = np.tile((RARE * labels).astype(np.uint8)[:, None, None, None], (1, 8, 8, 3))
    ids = [f"{row}.png" for row in range(n)]
    return ArraySource(Identity("toy", "train", ("ant", "bee"), ids, labels), pixels)


class Unreadable(ImageSource):
    """A source of which some images cannot be read."""

    def __init__(self, source: ImageSource, rows: Sequence[int]) -> None:
        self.__dict__.update(source.__dict__)
        self.inner, self.damaged = source, rows

    def read(self, row: int) -> Any:
        if row in self.damaged:
            raise ImageError("Not an image.", where=f"row {row}")
        return self.inner.read(row)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Workspace(tmp_path / "work"))


@pytest.fixture
def toy(tmp_path: Path) -> SourceRequest:
    """A dataset on the disk with the splits train and test."""
    split = np.array(["train"] * 8 + ["test"] * 4)
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.pictures(12, 8), labels=np.arange(12) % 3, split=split)
    return SourceRequest(f"npz:{path}")


def test_int8_is_fitted_to_training_images_whatever_is_embedded(
    toy: SourceRequest, context: Context
) -> None:
    train, test = toy.open_all(None, context, download=False)
    wanted = torch.stack([SMALL.prepare(train.read(row)) for row in range(len(train))])
    fingerprints = set()
    for opened in ([train, test], [test], []):
        made = calibration(toy, opened, context, download=False)
        assert torch.equal(made.images(SMALL), wanted)
        fingerprints.add(made.fingerprint)
    assert len(fingerprints) == 1


def test_int8_is_fitted_to_some_images_of_every_class(toy: SourceRequest, context: Context) -> None:
    many = source()
    shown = calibration(toy, [many], context, download=False).images(SMALL)
    assert len(shown) < len(many)
    assert shown.shape[1:] == (3, 8, 8)
    assert int((shown[:, 0, 0, 0] == RARE).sum()) == int(many.labels.sum())


def test_what_cannot_be_read_is_left_out(toy: SourceRequest, context: Context) -> None:
    def shown(damaged: Sequence[int]) -> torch.Tensor:
        train = Unreadable(source(20), damaged)
        return calibration(toy, [train], context, download=False).images(SMALL)

    assert len(shown([0, 3])) == 18
    assert not shown([0, 3]).any(), "the first one is bright"
    with pytest.raises(DataError, match="None of 20 images can be read"):
        shown(range(20))


class Turned:
    """A network of which one layer is exact, and the other one turns every second image."""

    preprocessing = SMALL

    def reference(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {layer: np.ones((len(images), 2, 1), np.float32) for layer in layers}

    def embed(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
        made = self.reference(images, layers)
        made["turned"][::2, 1] = 0
        return made


def test_the_cost_is_the_cosine_to_float32_of_each_layer() -> None:
    cost = cost_of_precision(source(10), Turned(), ("exact", "turned"))  # type: ignore[arg-type]
    assert cost["images"] == 10
    least = round(0.5**0.5, 5)
    assert cost["cosine"] == {
        "exact": {"mean": 1.0, "min": 1.0},
        "turned": {"mean": pytest.approx((1 + least) / 2, abs=1e-5), "min": least},
    }


def test_a_lower_precision_says_what_it_costs(extract: Any, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    split = np.array(["train"] * 20 + ["test"] * 10)
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.pictures(30, 32), labels=np.arange(30) % 3, split=split)
    plain = extract(dataset=f"npz:{path}")
    test = extract(dataset=f"npz:{path}", precision="int8", split="test")
    assert only_store(test).path not in plain.paths
    both = extract(dataset=f"npz:{path}", precision="int8")
    assert test.paths[0] == both.paths[1], "both are fitted to the training images"
    for outcome in (test, both):
        store = FeatureStore(outcome.paths[-1])
        described = store.manifest["backbone"]
        assert (described["runtime"], described["precision"]) == ("openvino", "int8")
        against = store.run["against_float32"]
        assert against["images"] == 10
        assert 0.9 < against["cosine"]["avgpool"]["min"] <= against["cosine"]["avgpool"]["mean"] < 1
    assert extract(dataset=f"npz:{path}", precision="int8").status == "up to date"
