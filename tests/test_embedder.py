"""The transformer keeps scikit-learn's contract, and embeds each image once."""

from __future__ import annotations

import pickle
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn
from torchvision.transforms import v2

from featpipe import embedder as embedder_module
from featpipe.api import extract
from featpipe.backbones.base import Backbone
from featpipe.embedder import Embedder
from featpipe.errors import FeatpipeError, ImageError, StoreError, UsageError, WeightsError
from tests import images

# Rows of random numbers are images one pixel high, as dark and as bright as they come.
LINES = Embedder("glyphnet", device="cpu", image_shape=(1, -1), pixel_range="fit")
# By default such rows are refused.
IMAGES = Embedder("glyphnet", device="cpu")
_RANGE = "sends numbers below 0 or above 1, which are no brightness"
_SHAPE = "sends rows that are no square, so no image"
EXPECTED_FAILED_CHECKS = {  # name of a check → why it cannot hold
    **dict.fromkeys(
        (
            "check_dont_overwrite_parameters", "check_estimators_pickle",
            "check_f_contiguous_array_estimator", "check_fit2d_1feature", "check_fit2d_predict1d",
            "check_dict_unchanged", "check_methods_sample_order_invariance",
            "check_methods_subset_invariance", "check_n_features_in_after_fitting",
            "check_pipeline_consistency", "check_positive_only_tag_during_fit",
            "check_transformer_data_not_an_array", "check_transformer_general",
        ),
        _RANGE,
    ),
    **dict.fromkeys(
        (
            "check_dtype_object", "check_estimators_dtypes", "check_estimators_fit_returns_self",
            "check_estimators_overwrite_params", "check_fit2d_1sample",
            "check_fit_check_is_fitted", "check_fit_idempotent", "check_n_features_in",
            "check_readonly_memmap_input",
        ),
        _SHAPE,
    ),
}  # fmt: skip


@parametrize_with_checks(
    [LINES, IMAGES],
    expected_failed_checks=lambda one: EXPECTED_FAILED_CHECKS if one is IMAGES else {},
)
def test_it_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_only_checks_that_send_no_images_are_expected_to_fail():
    """A check that would hold, or fails for another reason, is not excused."""
    outcomes = check_estimator(
        IMAGES, expected_failed_checks=EXPECTED_FAILED_CHECKS, on_fail=None, on_skip=None
    )
    failed = {one["check_name"]: str(one["exception"]) for one in outcomes if one["exception"]}
    failed = {name: text for name, text in failed.items() if "SCIPY_ARRAY_API" not in text}
    assert {*failed} == {*EXPECTED_FAILED_CHECKS}
    for text in failed.values():
        assert re.search("not square images|outside of their range|negative input values", text)


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    """Forget what was embedded; return a list that gets the number of images of every batch."""
    monkeypatch.setattr(embedder_module, "IN_MEMORY", {})
    counts = []
    original = Backbone.embed

    def embed(self, prepared, layers=None):
        counts.append(len(prepared))
        return original(self, prepared, layers)

    monkeypatch.setattr(Backbone, "embed", embed)
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images.photo_folder(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture
def paths(folder):
    return sorted(folder.rglob("*.png"))


def labels(paths):
    return [path.parent.name for path in paths]


def glyphnet(**options):
    return Embedder("glyphnet", device="cpu", **options)


def test_every_image_is_embedded_once_in_cross_validation(paths, embedded):
    scores = cross_val_score(make_pipeline(glyphnet(), LinearSVC()), paths, labels(paths), cv=3)
    assert len(scores) == 3
    assert sum(embedded) == len(paths)


def test_every_image_is_embedded_once_for_each_candidate_that_needs_it(paths, embedded):
    pipeline = make_pipeline(glyphnet(), LogisticRegression())
    grid = {"embedder__layer": ["layer2", "avgpool"], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(paths, labels(paths))
    assert set(search.best_params_) == set(grid)
    assert sum(embedded) == 2 * len(paths)


def test_features_are_those_of_extraction(paths, folder, tmp_path):
    (store,) = extract(f"folder:{folder}", "glyphnet", device="cpu", workspace=tmp_path)
    names = [str(path.relative_to(folder)) for path in paths]
    rows = [store.ids.index(name) for name in names]
    made = glyphnet().fit_transform(paths)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, store.features()[rows], atol=1e-5)


def test_paths_pillow_and_arrays_give_the_same(paths, embedded):
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    table = np.array(list(map(str, paths)), dtype=object)
    first = glyphnet().fit_transform(paths)
    for given in (list(map(str, paths)), table, table[:, None], [Image.open(p) for p in paths]):
        np.testing.assert_allclose(glyphnet().fit_transform(given), first, atol=1e-5)
    done = sum(embedded)
    for given in (pixels, list(pixels), pixels / 255, pixels.reshape(len(pixels), -1)):
        np.testing.assert_allclose(glyphnet().fit_transform(given), first, atol=1e-5)
    assert sum(embedded) == done == 2 * len(paths)  # files, and pixels


def test_grey_images_and_ranges_of_other_numbers():
    digits = load_digits()
    known = glyphnet().fit_transform((digits.images[:9] * (255 / 16)).round().astype(np.uint8))
    asked = glyphnet(pixel_range=(0, 16))
    for given in (digits.images[:9], digits.data[:9], list(digits.images[:9])):
        np.testing.assert_array_equal(asked.fit_transform(given), known)
    learned = glyphnet(pixel_range="fit").fit(digits.data[:9])
    np.testing.assert_array_equal(learned.transform(digits.data[:9]), known)
    wide = glyphnet(image_shape=(4, 16), pixel_range="fit").fit(digits.data[:9])
    assert wide.transform(digits.data[:2] + 99).shape == (2, 128)  # clipped


def test_auto_fit_is_decided_by_the_images_of_fit():
    small, large = images.pictures(3, side=24), images.pictures(3, side=48)

    def fingerprint(pictures, fit="auto"):  # of a network whose preprocessing cuts a margin
        network = Embedder("resnet18", weights="none", image_fit=fit, device="cpu")
        return network.fit(pictures).fingerprint_

    cropped, whole = fingerprint(small, "crop"), fingerprint(small, "whole")
    assert fingerprint([*small, *large]) == cropped
    assert fingerprint(large, "whole") == whole
    assert len({cropped, whole, fingerprint(small)}) == 3


def test_a_folder_keeps_features_between_processes(paths, tmp_path, embedded):
    first = glyphnet(cache=tmp_path / "kept").fit_transform(paths)
    again = glyphnet(cache=tmp_path / "kept").fit_transform(paths[::-1])
    np.testing.assert_array_equal(again, first[::-1])
    assert sum(embedded) == len(paths)
    glyphnet(cache=tmp_path / "kept", layer="layer2").fit_transform(paths)
    assert sum(embedded) == 2 * len(paths)
    Image.fromarray(images.pictures(1, seed=9)[0]).save(tmp_path / "new.png")
    glyphnet(cache=tmp_path / "kept").fit_transform([*paths, tmp_path / "new.png"])
    assert sum(embedded) == 2 * len(paths) + 1


def test_what_is_damaged_in_a_folder_is_embedded_again(paths, tmp_path, embedded):
    expected = glyphnet(cache=tmp_path).fit_transform(paths)
    (file,) = [path for path in tmp_path.glob("*.sqlite") if path.stem != "hashes"]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("update vectors set vector = zeroblob(512) where rowid = 1")
    np.testing.assert_allclose(glyphnet(cache=tmp_path).fit_transform(paths), expected, atol=1e-5)
    assert sum(embedded) == len(paths) + 1
    file.write_text("no database " * 99)
    with pytest.raises(StoreError, match="cache of features") as caught:
        glyphnet(cache=tmp_path).fit_transform(paths)
    assert str(file) in str(caught.value)


def test_nothing_is_kept_where_that_is_asked_for(paths, embedded):
    for _ in range(2):
        glyphnet(cache=None).fit_transform(paths)
    assert sum(embedded) == 2 * len(paths)


def test_it_is_cloned_pickled_and_named(paths):
    fitted = glyphnet(layer="layer2").fit(paths)
    assert clone(fitted).get_params() == fitted.get_params()
    thawed = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(thawed.transform(paths), fitted.transform(paths))
    names = fitted.get_feature_names_out()
    assert names[0] == "embedder0"
    table = fitted.set_output(transform="pandas").transform(paths)
    assert list(table.columns) == list(names)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_a_module_embeds_with_its_own_transform(paths, embedded):
    torch.manual_seed(0)
    module = Small()
    transform = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, True)])
    own = Embedder(module, preprocess=transform, device="cpu")
    scores = cross_val_score(make_pipeline(own, LinearSVC()), paths, labels(paths), cv=2)
    assert len(scores) == 2
    assert sum(embedded) == len(paths)
    before = own.fit_transform(paths)
    with torch.no_grad():
        expected = module.eval()(torch.stack([transform(Image.open(path)) for path in paths]))
        module.conv.weight.mul_(2)
    np.testing.assert_allclose(before, expected, atol=1e-5)
    assert not np.allclose(clone(own).fit_transform(paths), before)
    with pytest.raises(UsageError, match="prepared for the module"):
        Embedder(module).fit(paths)


def test_weights_that_change_after_fit_are_refused(paths, tmp_path):
    weights = images.weights_file(tmp_path / "own.safetensors")
    own = Embedder(images.MODEL, weights=weights, device="cpu").fit(paths)
    images.weights_file(weights, seed=1)
    with pytest.raises(WeightsError, match="was fitted with"):
        own.transform(paths)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "There are no images"),
        (np.zeros((0, 4, 4)), "There are no images"),
        (["missing.jpg"], "does not exist"),
        (["missing.jpg", np.zeros((4, 4), np.uint8)], "Some of the images are paths"),
        (np.zeros((2, 4, 4)) - 1, "outside of their range"),
        (np.full((2, 4, 4), np.nan), "outside of their range"),
        (np.zeros((2, 4, 4, 4), np.uint8), "not an image"),
        (np.zeros((2, 7)), "not square images"),
        (np.array([[["a", "b"]]]), "not numbers"),
        ("one/path.jpg", r"sequence of images(.|\n)*\['one/path.jpg'\]"),
        (Path("one/path.jpg"), r"sequence of images(.|\n)*\['one/path.jpg'\]"),
        (Image.new("L", (8, 8)), r"sequence of images(.|\n)*\[image\]"),
    ],
)
def test_what_is_no_image_is_named(given, message):
    with pytest.raises((UsageError, ImageError), match=message):
        glyphnet().fit_transform(given)


def test_a_file_that_is_damaged_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(FeatpipeError, match=r"notes\.png"):
        glyphnet().fit_transform([tmp_path / "notes.png"])


@pytest.mark.real
def test_photos_through_resnet18_are_embedded_once(shared, embedded):
    root = next((shared / "data" / "imagenette-val500").glob("**/n0*")).parent
    paths = [path for name in sorted(root.iterdir())[:3] for path in sorted(name.iterdir())[:12]]
    weights = shared / "weights" / "resnet18-imagenet-pqf.safetensors"
    probe = make_pipeline(Embedder("resnet18", weights=weights), LinearSVC())
    assert cross_val_score(probe, paths, labels(paths), cv=3).mean() > 0.9
    assert sum(embedded) == len(paths)
