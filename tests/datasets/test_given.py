"""Images that Python hands over: paths, PIL images, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featpipe.api import evaluate, extract, open_source, report
from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.given import register_images
from featpipe.errors import DataError, FeatpipeError, UsageError
from tests.datasets.conftest import pictures, save

HOW = {"model": "glyphnet", "device": "cpu", "runtime": "torch"}


@pytest.fixture
def folder(tmp_path):
    """Sixteen pictures of two classes, the second ones darker."""
    for number, image in enumerate(pictures(16, 32)):
        name = ("bright", "dark")[number % 2]
        save(tmp_path / "photos" / name / f"{number:02d}.png", image // (1 + number % 2))
    return tmp_path / "photos"


def test_the_same_features_as_those_of_the_folder(folder, tmp_path):
    paths = sorted(folder.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    (wanted,) = extract(f"folder:{folder}", workspace=tmp_path, **HOW)
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in opened]
    for images in (paths, [str(path) for path in paths], opened, arrays, np.stack(arrays)):
        (store,) = extract(images, labels=labels, workspace=tmp_path, **HOW)
        np.testing.assert_array_equal(store.features(), wanted.features())
        assert store.classes == wanted.classes
        assert store.labels.tolist() == wanted.labels.tolist()
        if isinstance(images[0], Path | str):
            assert list(store.ids) == [str(path) for path in paths]
        else:
            assert store.ids[3].startswith("00003-")


def test_a_result_and_its_page_show_the_images(folder, tmp_path):
    images = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    (store,) = extract(images, labels=[0, 0, 1, 1] * 4, workspace=tmp_path, **HOW)
    result = evaluate("centroid", store, workspace=tmp_path)
    assert result.dataset["name"].startswith("images:")
    page = report([result], tmp_path / "page", workspace=tmp_path)
    assert "data:image" in page.read_text()


def test_what_is_up_to_date_is_found_again(folder, tmp_path):
    paths = sorted(folder.rglob("*.png"))
    first, again, other = (
        extract([Image.open(path) for path in chosen], workspace=tmp_path, **HOW)[0].path
        for chosen in (paths, paths, paths[1:])
    )
    assert first == again != other


def test_labels_are_names_or_numbers():
    images = list(pictures(3))
    for labels, classes, numbers in [
        (["b10", None, "b9"], ("b9", "b10"), [1, -1, 0]),
        (np.array([2, -1, 0]), ("0", "1", "2"), [2, -1, 0]),
        (None, (), [-1, -1, -1]),
    ]:
        source = open_source(register_images(images, labels), "all", DatasetOptions())
        assert (source.classes, source.labels.tolist()) == (classes, numbers)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ([], None, "an empty list"),
        ([np.zeros((4, 4, 3))], None, "float64, (4, 4, 3)"),
        ([np.zeros((3, 4, 4), np.uint8)], None, "uint8, (3, 4, 4)"),
        (["a.png", np.zeros((4, 4, 3), np.uint8)], None, "1 paths among 2 images"),
        ([3], None, "int"),
        (Path("photos"), None, "extract('folder:photos')"),
        (pictures(2), ["cat"], "2 labels, one per image"),
        (pictures(2), [0.5, 1.0], "0.5"),
        (["no such.png"], None, "no such.png"),
        ("digits", [1, 2], "has its own labels"),
    ],
)
def test_anything_but_a_list_of_images_is_refused(images, labels, says, tmp_path):
    with pytest.raises(FeatpipeError) as caught:
        extract(images, labels=labels, workspace=tmp_path, **HOW)
    assert says in str(caught.value)


@pytest.mark.parametrize("named", [{"name": "mine"}, {"fingerprint": "1"}])
@pytest.mark.parametrize("images", [pictures(2), "digits"])
def test_what_only_a_module_has_is_not_ignored(images, named, tmp_path):
    with pytest.raises(UsageError, match="describe a module"):
        extract(images, workspace=tmp_path, **HOW, **named)


def test_an_image_that_was_changed_meanwhile_is_refused():
    images = pictures(2)
    source = open_source(register_images(images), "all", DatasetOptions())
    images[1] += 1
    source.read(0)
    with pytest.raises(DataError, match="changed after it was given"):
        source.read(1)


def test_the_list_of_another_process_is_not_here():
    with pytest.raises(DataError, match="another Python process"):
        open_source("images:01234567", "all", DatasetOptions())


def test_probes_need_labels(tmp_path):
    (store,) = extract(pictures(4), workspace=tmp_path, **HOW)
    with pytest.raises((FeatpipeError, UsageError), match="label"):
        evaluate("svm", store, workspace=tmp_path)
