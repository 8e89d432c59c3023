"""What every registered dataset must do. The registry is the list of tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import DatasetOptions, open_source, splits_of
from featpipe.errors import DataError, UnknownNameError, UsageError
from featpipe.extraction import Extract

KINDS = DATASETS.names()
PATHS = ["folder", "csv", "npz", "wds", "hf"]
NOWHERE = ["digits", "images"]  # on no disk
WITHOUT = pytest.mark.skipif(find_spec("datasets") is None, reason="the extra hf is not installed")
PATH_KINDS = [*PATHS[:-1], pytest.param("hf", marks=WITHOUT)]


@pytest.fixture(params=KINDS)
def made(request, make):
    return make(request.param)


def test_images_and_labels_are_those_that_were_written(made, options_for):
    options = options_for(made)
    for split in (*splits_of(made.spec, options), *(made.images.keys() & {"unlabeled"})):
        source = open_source(made.spec, split, options)
        assert len(source) == len(source.ids) == len(made.images[split])
        assert source.labels.tolist() == made.labels[split]
        assert source.classes == made.classes
        for row in {0, len(source) // 2, len(source) - 1}:
            np.testing.assert_array_equal(source.read(row), made.images[split][row])


def test_identity_is_complete(made, options_for):
    options = options_for(made)
    ids = []
    for split in splits_of(made.spec, options):
        source = open_source(made.spec, split, options)
        assert (source.name, source.split) == (made.spec, split)
        assert source.labels.dtype == np.int64
        assert all(isinstance(name, str) for name in (*source.ids, *source.classes))
        ids += source.ids
    assert len(set(ids)) == len(ids), "ids tell the splits' images apart"


def test_an_image_belongs_to_the_reader(made, options_for):
    options = options_for(made)
    source = open_source(made.spec, splits_of(made.spec, options)[0], options)
    image = source.read(0)
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.flags.c_contiguous
    before = image.copy()
    image[:] = 255 - image
    np.testing.assert_array_equal(source.read(0), before)


def test_reading_from_threads_gives_the_same(made, options_for):
    options = options_for(made)
    source = open_source(made.spec, splits_of(made.spec, options)[0], options)
    rows = list(range(min(len(source), 12))) * 4
    with ThreadPoolExecutor(4) as pool:
        for row, image in zip(rows, pool.map(source.read, rows), strict=True):
            np.testing.assert_array_equal(image, source.read(row))


def test_fingerprint_is_of_the_content(made, options_for):
    options = options_for(made)
    splits = splits_of(made.spec, options)
    first = {split: open_source(made.spec, split, options).fingerprint for split in splits}
    again = {split: open_source(made.spec, split, options).fingerprint for split in splits}
    assert first == again
    assert len(set(first.values())) == len(splits)
    if made.change is not None:
        made.change()
        changed = open_source(made.spec, splits[0], options).fingerprint
        assert changed != first[splits[0]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOWHERE])
def test_fingerprint_does_not_depend_on_the_place(kind, make, options_for, tmp_path):
    made = make(kind)
    options = options_for(made)
    split = splits_of(made.spec, options)[0]
    before = open_source(made.spec, split, options).fingerprint
    shutil.copytree(tmp_path / "made", tmp_path / "elsewhere")
    spec = made.spec.replace(str(tmp_path / "made"), str(tmp_path / "elsewhere"))
    moved = replace(options, data=made.data and tmp_path / "elsewhere")
    assert open_source(spec, split, moved).fingerprint == before


def test_the_workspace_is_the_second_place(kind_in_raw, options):
    assert len(open_source(kind_in_raw, splits_of(kind_in_raw, options)[0], options)) > 0


@pytest.fixture(params=[kind for kind in KINDS if kind not in (*PATHS, *NOWHERE)])
def kind_in_raw(request, make, tmp_path):
    spec = make(request.param).spec
    (tmp_path / "made").rename(tmp_path / "raw")
    return spec


def test_classes_can_be_chosen(made, options_for):
    options = options_for(made)
    split = splits_of(made.spec, options)[0]
    full = open_source(made.spec, split, options)
    n = len(full.classes) - 1
    some = open_source(made.spec, split, replace(options, classes=f"first:{n}"))
    assert some.classes == full.classes[:n]
    kept = np.flatnonzero(full.labels < n)  # the unlabelled ones stay
    assert some.labels.tolist() == full.labels[kept].tolist()
    assert list(some.ids) == [full.ids[row] for row in kept]
    np.testing.assert_array_equal(some.read(0), full.read(kept[0]))
    assert some.fingerprint != full.fingerprint


def test_an_unknown_class_is_named(made, options_for):
    options = options_for(made, classes="no such class")
    split = splits_of(made.spec, options)[0]
    with pytest.raises(UnknownNameError, match="no such class"):
        open_source(made.spec, split, options)


def test_an_unknown_split_is_named_with_the_nearest(made, options_for):
    with pytest.raises(UnknownNameError, match=r"no split 'trian'") as caught:
        open_source(made.spec, "trian", options_for(made))
    if "train" in made.images:
        assert "did you mean 'train'?" in str(caught.value)
    assert made.spec in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*PATHS, *NOWHERE)])
def test_an_absent_dataset_says_where_it_was_looked_for(kind, options, tmp_path):
    (tmp_path / "empty").mkdir()
    options = replace(options, data=tmp_path / "empty")
    spec = "torchvision:DTD" if kind == "torchvision" else kind
    with pytest.raises(DataError, match="is not here") as caught:
        open_source(spec, "train", options)
    message = str(caught.value)
    assert str(tmp_path / "empty") in message
    assert str(options.raw) in message
    assert "--data" in message


@pytest.mark.parametrize("kind", PATH_KINDS)
def test_a_path_that_does_not_exist(kind, options, tmp_path):
    with pytest.raises(DataError) as caught:
        splits_of(f"{kind}:{tmp_path / 'nowhere'}", options)
    assert "nowhere" in str(caught.value)


@pytest.mark.parametrize("kind", PATH_KINDS)
def test_a_path_is_needed(kind, options):
    with pytest.raises(UsageError, match=r"needs a (path|dataset)"):
        splits_of(kind, options)


@pytest.mark.parametrize("kind", PATH_KINDS)
def test_a_relative_path_is_looked_for_in_the_data_folder_first(kind, make, options):
    made = make(kind)
    name, _, path = made.spec.rpartition("/")
    data = name.partition(":")[2]
    options = replace(options, data=type(options.raw)(data))
    spec = f"{kind}:{path}"
    assert len(open_source(spec, "train", options)) == len(made.images["train"])


def test_an_argument_too_many(options):
    with pytest.raises(UsageError, match="takes no argument"):
        splits_of("digits:8", options)


def test_an_unknown_dataset_is_named_with_the_nearest(options):
    with pytest.raises(UnknownNameError, match="no dataset named 'stl-10'") as caught:
        open_source("stl-10", "train", options)
    assert "did you mean 'stl10'?" in str(caught.value)


def test_a_data_folder_that_does_not_exist(options, tmp_path):
    with pytest.raises(DataError, match="data folder does not exist"):
        open_source("stl10", "train", replace(options, data=tmp_path / "typo"))


def test_a_path_in_the_place_of_a_name_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.csv").touch()
    for path, meant in (("photos", "folder:photos"), ("list.csv", "csv:list.csv")):
        with pytest.raises(UnknownNameError) as caught:
            Extract(model="glyphnet", dataset=path)
        assert caught.value.details["next"] == f"did you mean {meant!r}?"
    with pytest.raises(UnknownNameError) as caught:
        Extract(model="glyphnet", dataset="nothing")
    assert "next" not in caught.value.details


def test_nothing_heavy_is_imported():
    script = (
        "import sys, featpipe.datasets as d\n"
        "light = set(sys.modules)\n"
        "assert 'numpy' not in light\n"
        "for kind in d.DATASETS: kind.name\n"
        "from featpipe.datasets.dataset import DatasetOptions, open_source\n"
        "open_source('digits', 'test', DatasetOptions()).read(0)\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'pandas', 'h5py', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_default_options_remember_nothing_and_download_nothing():
    options = DatasetOptions()
    assert options.hashes.cache is None
    assert not options.download
