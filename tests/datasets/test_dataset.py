"""Names of datasets, and requests for images: the same ones are found again from anywhere."""

from __future__ import annotations

import pytest
from PIL import Image

from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import SourceRequest
from featpipe.steps import Context
from featpipe.workspace import Workspace


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """Request a folder below ``--data`` from another working directory."""
    for name in ("cat", "dog"):
        path = tmp_path / "d" / "photos" / name / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(path)
    monkeypatch.chdir(tmp_path)
    return SourceRequest("folder:photos", data=tmp_path / "d")


def ids(request, tmp_path):
    return request.open("all", request.options(Context(Workspace(tmp_path / "w")))).ids


def test_what_is_written_down_is_found_from_another_folder(request_for, tmp_path, monkeypatch):
    kept = request_for.as_dict()
    monkeypatch.chdir("/")
    assert ids(SourceRequest.from_dict(kept), tmp_path) == ["cat/1.png", "dog/1.png"]


def test_a_folder_that_moved_is_found_where_it_is_now(request_for, tmp_path):
    kept = SourceRequest.from_dict(request_for.as_dict())
    (tmp_path / "d").rename(tmp_path / "e")
    assert ids(kept.moved(tmp_path / "e"), tmp_path) == ["cat/1.png", "dog/1.png"]
    assert ids(kept.moved(tmp_path / "e" / "photos"), tmp_path) == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("spec", ["stl10", "torchvision:DTD"])
def test_what_is_not_named_by_a_path_is_moved_with_its_data_folder(spec, tmp_path):
    kept = SourceRequest.from_dict(SourceRequest(spec, data=tmp_path / "d").as_dict())
    assert kept == SourceRequest(spec, data=tmp_path / "d")
    assert kept.moved(tmp_path / "e") == SourceRequest(spec, data=tmp_path / "e")


@pytest.mark.parametrize(
    ("dataset", "name", "part"),
    [
        ("stl10", "stl10", "stl10"),
        ("folder:/home/me/My photos/", "folder:My photos", "folder-My-photos"),
        ("folder:/home/me/Völkel ☃", "folder:Völkel ☃", "folder-Völkel"),
        ("npz:data/../toy.npz", "npz:toy.npz", "npz-toy"),
        ("csv:a;rm -rf.csv", "csv:a;rm -rf.csv", "csv-a-rm-rf"),
        ("torchvision:Flowers102", "torchvision:Flowers102", "torchvision-Flowers102"),
        ("gone:no/path.at all", "gone:no/path.at all", "gone-no-path-at-all"),  # uninstalled
    ],
)
def test_names_of_datasets(dataset: str, name: str, part: str) -> None:
    assert short_name(dataset) == name
    assert slug(dataset) == part
