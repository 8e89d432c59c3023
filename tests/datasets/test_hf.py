"""hf:DATASET: local folders and files of the datasets library, and what was fetched before."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featpipe.api import extract
from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import SourceRequest, open_source, splits_of
from featpipe.errors import DataError, ImageError, MissingExtraError, UnknownNameError
from tests.datasets.conftest import pictures, save, write_parquet

library = pytest.importorskip("datasets", reason="the extra hf is not installed")

PETS = {"label": library.ClassLabel(names=["cat", "dog"])}
HOW = {"model": "glyphnet", "device": "cpu", "runtime": "torch"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pets.parquet"
    write_parquet(path, list(pictures(6, 32)), {"label": [0, 1] * 3}, PETS)
    return path


def test_the_same_features_as_the_folder_of_the_same_images(tmp_path):
    for number, image in enumerate(pictures(12, 24)):
        name = ("cat", "dog")[number % 2]
        split = ("train", "test")[number // 2 % 2]
        save(tmp_path / "photos" / split / name / f"{number:02d}.png", image)
    wanted = extract(f"folder:{tmp_path / 'photos'}", workspace=tmp_path, **HOW)
    folder = library.load_dataset(str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    for split in folder:
        folder[split].to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    folder.save_to_disk(tmp_path / "saved")
    for kind in ("photos", "parquet", "saved"):
        stores = extract(f"hf:{tmp_path / kind}", workspace=tmp_path, **HOW)
        for store, other in zip(stores, wanted, strict=True):
            np.testing.assert_array_equal(store.features(), other.features())
            np.testing.assert_array_equal(store.labels, other.labels)
            assert (store.classes, kind != "photos" or store.ids) == (
                other.classes,
                kind != "photos" or other.ids,
            )


def test_one_file_is_mapped_and_its_size_known(file, options):
    assert splits_of(f"hf:{file}", options) == ("train",)
    source = open_source(f"hf:{file}", "train", options)
    assert (len(source), source.size, source.ids[5]) == (6, (32, 32), "train/00005")
    (arrow,) = (options.raw / "hf-files").rglob("*.arrow")
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            assert str(arrow) in maps.read()


def test_a_row_without_an_image_is_unreadable(tmp_path, options):
    path = tmp_path / "gaps.parquet"
    features = library.Features({"image": library.Image(), **PETS})
    rows = {"image": [Image.fromarray(pictures(1)[0]), None], "label": [0, None]}
    library.Dataset.from_dict(rows, features=features).to_parquet(path)
    source = open_source(f"hf:{path}", "train", options)
    assert source.labels.tolist() == [0, -1]
    assert source.unreadable == {1: "The row holds no image."}
    with pytest.raises(ImageError, match="holds no image"):
        source.read(1)


@pytest.mark.parametrize(
    ("columns", "types", "classes", "labels"),
    [
        ({"label": ["b10", None, "b9"]}, {"label": "string"}, ("b9", "b10"), [1, -1, 0]),
        ({"labels": [2, 0, None]}, {"labels": "int64"}, ("0", "1", "2"), [2, 0, -1]),
        ({}, {}, (), [-1, -1, -1]),
    ],
)
def test_labels_that_have_no_classes_of_their_own(
    columns, types, classes, labels, tmp_path, options
):
    types = {name: library.Value(kind) for name, kind in types.items()}
    write_parquet(tmp_path / "some.parquet", list(pictures(3)), columns, types)
    source = open_source(f"hf:{tmp_path / 'some.parquet'}", "train", options)
    assert (source.classes, source.labels.tolist()) == (classes, labels)


def test_of_several_kinds_of_labels_the_one_called_label_counts(tmp_path, options):
    types = {name: library.ClassLabel(names=["a", "b"]) for name in ("coarse", "label")}
    columns = {"coarse": [0, 0], "label": [1, 0]}
    write_parquet(tmp_path / "some.parquet", list(pictures(2)), columns, types)
    assert open_source(f"hf:{tmp_path / 'some.parquet'}", "train", options).labels.tolist() == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("columns", "wanted"), [(("caption",), "labels"), (("mask", "label"), "images")]
)
def test_ambiguous_columns_are_listed(columns, wanted, tmp_path, options):
    kinds = {
        "caption": (library.Value("float32"), [0.5]),
        "label": (PETS["label"], [0]),
        "mask": (library.Image(), [Image.fromarray(pictures(1)[0])]),
    }
    values = {name: kinds[name][1] for name in columns}
    types = {name: kinds[name][0] for name in columns}
    write_parquet(tmp_path / "some.parquet", list(pictures(1)), values, types)
    with pytest.raises(DataError, match=f"holds the {wanted}") as caught:
        open_source(f"hf:{tmp_path / 'some.parquet'}", "train", options)
    got = caught.value.details["got"]
    assert all(name in got for name in ("image (Image)", *columns))


def configured(folder):
    """Write a folder with two configurations."""
    for name in ("small", "large"):
        write_parquet(folder / name / "train.parquet", list(pictures(2)), {"label": [0, 1]}, PETS)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet\n---\n"
    )
    return folder


def test_configurations(tmp_path, options):
    folder = configured(tmp_path / "sizes")
    assert len(open_source(f"hf:{folder}:large", "train", options)) == 2
    with pytest.raises(UnknownNameError, match="no configuration 'larg'") as caught:
        splits_of(f"hf:{folder}:larg", options)
    assert caught.value.details["next"] == "did you mean 'large'?"
    with pytest.raises(UnknownNameError, match="several configurations") as caught:
        splits_of(f"hf:{folder}", options)
    assert caught.value.details["next"] == f"--dataset hf:{folder}:small"


def test_what_was_fetched_before_is_found_without_a_network(tmp_path, options):
    folder = configured(tmp_path / "sizes")
    for name in ("small", "large"):
        cache = str(options.raw / "hf")
        library.load_dataset_builder(str(folder), name, cache_dir=cache).download_and_prepare()
    assert len(open_source("hf:sizes:small", "train", options)) == 2
    with pytest.raises(DataError, match="is not here") as caught:
        open_source("hf:sizes", "train", options)
    assert "large, small" in caught.value.details["got"].replace("small, large", "large, small")
    with pytest.raises(DataError, match="is not here") as caught:
        open_source("hf:size:small", "train", options)
    assert caught.value.details["next"] == "did you mean 'sizes'?"


def test_the_hub_is_asked_only_where_that_is_allowed(file, options, monkeypatch, listener):
    asked = []
    load = library.load_dataset_builder

    def hub(path, name=None, cache_dir=None):
        asked.append((path, name, cache_dir))
        return load("parquet", data_files=str(file), cache_dir=cache_dir)

    monkeypatch.setattr(library, "load_dataset_builder", hub)
    with pytest.raises(DataError, match="is not here"):
        splits_of("hf:org/pets", options)
    assert not asked
    allowed = replace(options, download=True, progress=listener)
    assert len(open_source("hf:org/pets:one", "train", allowed)) == 6
    assert asked == [("org/pets", "one", str(options.raw / "hf"))]
    assert listener.notes == ["hf:org/pets:one is fetched from the Hugging Face hub"]


def test_errors_of_the_library_are_quoted(tmp_path, options):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be opened") as caught:
        splits_of(f"hf:{tmp_path / 'damaged.parquet'}", options)
    assert "arquet" in caught.value.details["got"]
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="This file is not a dataset"):
        splits_of(f"hf:{tmp_path / 'notes.txt'}", options)


def test_a_script_is_never_run(tmp_path, options):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="cannot be opened"):
        splits_of(f"hf:{folder}", options)
    assert not (tmp_path / "ran").exists()


def test_the_name_of_a_local_dataset_is_its_last_part(file, tmp_path):
    assert short_name(f"hf:{file}") == "hf:pets.parquet"
    assert short_name("hf:org/pets:large") == "hf:org/pets:large"
    assert slug("hf:org/pets:large") == "hf-org-pets-large"
    asked = SourceRequest("hf:pets.parquet", data=tmp_path).as_dict()
    assert asked["dataset"] == f"hf:{file}"
    assert SourceRequest("hf:org/pets").moved(tmp_path).dataset == "hf:org/pets"


def test_without_the_library_the_extra_is_named(monkeypatch, options):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("featpipe.lazy.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        splits_of("hf:mnist", options)
    assert caught.value.details["next"] == 'pip install "featpipe[hf]"'
