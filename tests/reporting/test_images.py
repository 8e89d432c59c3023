"""The images of a page are those that were tested, each embedded once and small."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from featpipe.evaluation.result import Result
from featpipe.reporting.data import ReportData
from featpipe.reporting.images import ThumbnailSheet
from featpipe.reporting.step import Report
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests.reporting.conftest import Made, Page


def test_missing_images_and_stores_are_named(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.world.workspace.root, tmp_path / "moved")
    world = replace(made.world, workspace=Workspace(tmp_path / "moved"))
    result = Result.load(world.workspace.results / "svm.json")
    result.stores[-1]["path"] = "gone.h5"
    result.stores[-1]["run"]["source"] = {"dataset": f"npz:{tmp_path / 'gone.npz'}"}
    page = Page(world.report([result], tmp_path / "r"))
    assert "No images:" in page.text
    assert "no image" in page.text
    assert "feature store was deleted or moved" in page.text
    result.stores[-1]["run"]["source"] = {"dataset": f"npz:{tmp_path / 'elsewhere' / 'toy.npz'}"}
    moved = world.report([result], tmp_path / "r", data=tmp_path / "moved")
    assert Page(moved).count("symbol") > 0


def test_changed_images_are_doubted(made: Made) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    result.dataset["test"] = {**result.dataset["test"], "fingerprint": "0" * 64}
    data = made.data([result])
    images = data.images(data.groups[0])
    assert images.missing is None
    assert "differs from the one that was tested" in str(images.doubt)


def test_an_image_of_another_class_is_another_image(made: Made) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    result.dataset["classes"] = [f"other {name}" for name in result.dataset["classes"]]
    data = ReportData.load([result], Report(), Context(made.world.workspace))
    images = data.images(data.groups[0])
    assert "holds no images with these ids and classes" in str(images.missing)
    assert images.thumbnail(str(data.groups[0].ids[0])) is None


def test_a_thumbnail_is_embedded_once_and_small() -> None:
    sheet = ThumbnailSheet()
    large = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    first = sheet.add("a", large)
    assert sheet.add("a", large) is first
    assert (first.width, first.height, first.tiny) == (96, 64, False)
    assert sheet.add("b", large[:20, :20]).tiny
    assert list(sheet) == ["a", "b"]


def test_each_thumbnail_is_embedded_once(made: Made) -> None:
    page = Page(made.page)
    embedded = [attrs["href"] for tag, attrs in page.elements if tag == "image"]
    used = [attrs["href"] for tag, attrs in page.elements if tag == "use"]
    names = {attrs["id"] for tag, attrs in page.elements if tag == "symbol"}
    assert 20 < len(embedded) == len(set(embedded)) < len(used)
    assert {str(name).removeprefix("#") for name in used} == names
