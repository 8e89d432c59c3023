"""An audit finds what was planted, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.audit.audit import COLUMNS, Audit
from featpipe.audit.record import sentences
from featpipe.errors import FitError
from tests.images import pictures
from tests.looks import seen, vectors
from tests.stores import content, sealed

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def planted(tmp_path):
    """Return two splits with one of everything that is odd."""
    images, features = list(pictures(120, 32)), vectors(120, 0)
    tests, tested = list(pictures(60, 32, seed=1)), vectors(60, 1)
    labels = np.arange(120) % 3
    tests[0], tested[0] = images[0], features[0]  # identical, across
    images[10], features[10] = images[7], features[7]  # identical, within, of one class
    images[20], features[20] = images[15], features[15]  # identical, another class
    labels[20] = 1
    assert labels[15] == 0
    tests[3], tested[3] = tests[3][:, ::-1], features[3] * 0.99  # mirrored, across
    tests[3] = images[3][:, ::-1]
    images[30][...] = 7  # blank
    labels[40] = (labels[40] + 1) % 3  # wrong
    train = seen(tmp_path / "a.h5", images, labels, arrays={"avgpool": features}, dims=40)
    test = seen(tmp_path / "b.h5", tests, arrays={"avgpool": tested}, dims=40, split="test")
    return train, test


def test_what_was_planted_is_found(planted):
    audit = Audit(planted, jobs=1)
    found = audit.findings
    assert tuple(found.columns) == COLUMNS

    def of(issue):
        rows = found[found.issue == issue]
        return {
            (r.split, r.id, r.partner_split, r.partner, r.suggestion) for r in rows.itertuples()
        }

    assert of("identical") == {
        ("train", "train/0.png", "test", "test/0.png", "drop"),
        ("train", "train/10.png", "train", "train/7.png", "drop"),
        ("train", "train/20.png", "train", "train/15.png", "check label"),
    }
    assert of("near-duplicate") == {("train", "train/3.png", "test", "test/3.png", "drop")}
    assert [row[1] for row in of("blank")] == ["train/30.png"]
    wrong = found[(found.issue == "label") & (found.id == "train/40.png")]
    assert wrong.likely.tolist() == [CLASSES[40 % 3]]
    assert wrong.score.item() > 0.6
    duplicates = audit.summary["duplicates"]
    assert duplicates["across"] == {"identical": 1, "near": 1}
    assert duplicates["within"] == {"identical": 2, "near": 0}
    assert (duplicates["conflicting"], duplicates["clusters"]) == (1, 4)


def test_clean_data_has_no_duplicates(tmp_path):
    images = list(pictures(90, 32))
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": vectors(90, 0)}, dims=40)
    summary = Audit([store], jobs=1).summary
    assert summary["duplicates"]["clusters"] == 0
    assert summary["duplicates"]["divided_by_folds"] is None
    odd = dict(summary["odd"])
    assert odd.pop("far from all others", 0) <= 1  # one image of any hundred may be
    assert not odd
    assert summary["coverage"] == {"few": [], "clustered": [], "imbalance": []}


def test_pairs_that_folds_divide_are_counted(tmp_path):
    images, features = list(pictures(90, 32)), vectors(90, 0)
    for row, copy in ((0, 30), (1, 31), (2, 5)):
        images[copy], features[copy] = images[row][:, ::-1], features[row]
    folds = (np.arange(45), np.arange(20, 60))
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40, folds=folds)
    assert Audit([store], jobs=1).summary["duplicates"]["divided_by_folds"] == 2


def test_one_picture_under_several_labels_is_a_placeholder(tmp_path):
    images, features = list(pictures(60, 32)), vectors(60, 0)
    for row in (3, 7, 11):
        images[row], features[row] = images[0], features[0]
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40)
    audit = Audit([store], jobs=1)
    rows = audit.findings[audit.findings.issue == "placeholder"]
    assert set(rows.id) == {f"train/{row}.png" for row in (0, 3, 7, 11)}


def test_tiny_images_are_not_called_duplicates(tmp_path):
    images, features = list(pictures(60, 8)), vectors(60, 0)
    images[5], features[5] = images[0][:, ::-1], features[0]
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40)
    summary = Audit([store], jobs=1).summary
    assert summary["duplicates"]["within"]["near"] == 0
    assert summary["duplicates"]["too_small"] == 60


def test_an_image_among_those_of_another_class_is_found(tmp_path):
    features = vectors(90, 0, apart=16)
    labels = np.arange(90) % 3
    labels[4] = 0  # it looks like a bee
    images = list(pictures(90, 32))
    store = seen(tmp_path / "a.h5", images, labels, arrays={"avgpool": features}, dims=40)
    findings = Audit([store], jobs=1).findings
    rows = findings[(findings.issue == "among another class") & (findings.id == "train/4.png")]
    assert rows.likely.tolist() == ["bee"]


def test_without_pixels_features_alone_are_compared(tmp_path):
    store = sealed(tmp_path / "a.h5")
    summary = Audit([store], jobs=1).summary
    assert summary["pixels_compared"] is False
    assert "share" in summary["labels"]


@pytest.mark.parametrize(
    ("n", "classes"), [(1, ("ant",)), (2, ("ant",)), (40, ("ant",)), (3, CLASSES)]
)
def test_too_little_to_check_labels_is_said(tmp_path, n, classes):
    features = vectors(n, 0, len(classes))
    what = {"arrays": {"avgpool": features}, "dims": 40, "classes": classes}
    summary = Audit([seen(tmp_path / "a.h5", list(pictures(n, 32)), **what)], jobs=1).summary
    assert "reason" in summary["labels"]


def test_all_images_identical(tmp_path):
    store = seen(tmp_path / "a.h5", list(pictures(1, 32)) * 30)
    summary = Audit([store], jobs=1).summary
    assert summary["duplicates"]["within"]["identical"] == 29
    assert summary["duplicates"]["clusters"] == 1
    assert "reason" in summary["labels"]


def test_unlabelled_rows_are_compared_and_not_doubted(tmp_path):
    labels = np.arange(60) % 3
    labels[::4] = -1
    images = list(pictures(60, 32))
    images[8] = images[0]
    store = seen(tmp_path / "a.h5", images, labels, arrays={"avgpool": vectors(60, 0)}, dims=40)
    audit = Audit([store], jobs=1)
    assert audit.summary["labels"]["checked"] == 45
    (row,) = audit.findings[audit.findings.issue == "identical"].itertuples()
    assert (row.id, row.label) == ("train/8.png", "")


def test_the_same_stores_give_the_same_audit(planted):
    one, other = (Audit(planted, jobs=jobs) for jobs in (1, 2))
    assert one.findings.equals(other.findings)
    assert one.summary == other.summary


def test_maps_are_not_compared(tmp_path):
    what = content(6)
    what = replace(what, shapes={"avgpool": (2, 3, 3)})
    with pytest.raises(FitError, match="one vector per image"):
        Audit([sealed(tmp_path / "a.h5", what)])


def test_leaks_are_counted_by_test_image_whatever_repeats(tmp_path):
    images, tests = list(pictures(60, 32)), list(pictures(30, 32, seed=1))
    features, tested = vectors(60, 0), vectors(30, 1)
    for row, origin in ((5, 7), (6, 7), (0, 0)):
        tests[row], tested[row] = images[origin], features[origin]
    more = {"dims": 40}
    train = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, **more)
    test = seen(tmp_path / "b.h5", tests, arrays={"avgpool": tested}, split="test", **more)
    audit = Audit([train, test], jobs=1)
    assert audit.summary["duplicates"]["across"]["identical"] == 3
    dropped = audit.findings[audit.findings.suggestion == "drop"]
    assert set(dropped.split) == {"train"}


def test_copies_in_another_split_are_not_duplicates_within_one(tmp_path):
    images, tests = list(pictures(60, 32)), list(pictures(30, 32, seed=1))
    for row in range(3):
        tests[row] = images[row + 1]  # of another class
    train = seen(tmp_path / "a.h5", images, arrays={"avgpool": vectors(60, 0)}, dims=40)
    test = seen(tmp_path / "b.h5", tests, arrays={"avgpool": vectors(30, 1)}, dims=40, split="test")
    said = sentences(Audit([train, test], jobs=1).summary)
    assert "Duplicates within a split: none." in said
    assert "Identical images with different labels: 3." in said


def of_three(tmp_path, train, val, test, names=("train", "val", "evaluation"), labels=None):
    """Audit splits whose images are given as numbers; equal numbers are equal images."""
    stores = []
    for name, numbers in zip(names, (train, val, test), strict=True):
        images = [pictures(1, 32, seed=number)[0] for number in numbers]
        features = np.concatenate([vectors(1, number) for number in numbers])
        own = np.array((labels or {}).get(name, [n % 3 for n in numbers]))
        path = tmp_path / f"{name}.h5"
        stores.append(seen(path, images, own, arrays={"avgpool": features}, dims=40, split=name))
    return Audit(stores, jobs=1)


def test_splits_of_any_name_are_test_splits_and_pairs_between_them_are_counted_apart(tmp_path):
    summary = of_three(
        tmp_path, train=[1, 2, 3, 4, 5, 6, 1], val=[1, 10, 11, 12], test=[11, 12, 20, 2]
    ).summary
    found = summary["duplicates"]
    assert found["across"] == {"identical": 2, "near": 0}  # 1 in val, 2 in evaluation
    assert found["within"]["identical"] == 1  # 1, twice in train
    assert found["between"]["identical"] == 2  # 11 and 12
    said = " ".join(sentences(summary))
    assert "Duplicates between the other splits: 2 identical images." in said


def test_labels_that_differ_are_found_where_the_first_copy_has_none(tmp_path):
    labels = {"train": [0, 1, 2, 0, 1, 2], "val": [-1, 1, 2], "evaluation": [0, 1, 2]}
    audit = of_three(tmp_path, [1, 1, 3, 4, 5, 6], [1, 11, 12], [20, 21, 22], labels=labels)
    assert audit.summary["duplicates"]["conflicting"] == 1
    assert audit.summary["duplicates"]["across"]["identical"] == 0, (
        "an unlabelled row tests nothing"
    )
    listed = audit.findings[audit.findings.issue == "identical"]
    advice = dict(zip(listed.id, listed.suggestion, strict=True))
    assert advice == {"train/1.png": "check label", "val/0.png": "drop"}, "a labelled one is kept"
    assert "check label" in {*audit.findings.suggestion[audit.findings.issue == "identical"]}


def test_coverage_is_that_of_the_training_images(tmp_path):
    train = seen(
        tmp_path / "a.h5", list(pictures(60, 32)), arrays={"avgpool": vectors(60, 0)}, dims=40
    )
    labels = np.zeros(40, int)
    test = seen(tmp_path / "b.h5", list(pictures(40, 32, seed=1)), labels,
                arrays={"avgpool": vectors(40, 1)}, dims=40, split="test")  # fmt: skip
    assert Audit([train, test], jobs=1).summary["coverage"]["imbalance"] == []


def test_one_picture_many_times_is_a_placeholder(tmp_path):
    images = list(pictures(60, 32))
    for row in (3, 6, 9, 12):  # all of one class
        images[row] = images[0]
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": vectors(60, 0)}, dims=40)
    audit = Audit([store], jobs=1)
    assert (audit.findings.issue == "placeholder").sum() == 5


def test_what_a_poor_probe_contradicts_bounds_the_share(tmp_path):
    def share(apart):
        features = vectors(150, 0, apart=apart)
        store = seen(
            tmp_path / f"{apart}.h5", list(pictures(150, 32)), arrays={"avgpool": features}, dims=40
        )
        return Audit([store], jobs=1).summary["labels"]["share"]

    poor, good = share(0), share(4)
    assert poor["low"] == 0 < 0.5 < poor["high"]
    assert good["low"] == good["value"] == 0 < good["high"] < 0.05


@pytest.mark.parametrize("copies", [0, 150])
def test_images_of_another_kind_are_far_from_all_others_whatever_repeats(tmp_path, copies):
    rng = np.random.default_rng(0)
    images, features = list(pictures(200 + copies, 32)), vectors(200 + copies, 0)
    for row in range(copies):
        images[200 + row], features[200 + row] = images[row % 3], features[row % 3]
    strange = [11, 12, 50]
    features[strange] = rng.normal(size=(3, 40)) * 9
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40)
    found = Audit([store], jobs=1).findings
    far = found[found.issue == "far from all others"]
    assert {f"train/{row}.png" for row in strange} <= {*far.id}
    assert len(far) <= 5
    assert far.score.is_monotonic_decreasing


def test_coverage_lists_few_copied_and_unequal_classes(tmp_path):
    labels = np.repeat([0, 1, 2], [150, 40, 10])
    images, features = list(pictures(200, 32)), vectors(200, 0)
    for row in range(160, 190):  # of the second class
        images[row] = images[150 + row % 5]
    store = seen(tmp_path / "a.h5", images, labels, arrays={"avgpool": features}, dims=40)
    summary = Audit([store], jobs=1).summary
    bee = {"label": "bee", "images": 40, "different": 10}
    cat = {"label": "cat", "images": 10, "different": 10}
    ant = {"label": "ant", "images": 150, "different": 150}
    assert summary["coverage"] == {"few": [bee, cat], "clustered": [bee], "imbalance": [cat, ant]}
    said = " ".join(sentences(summary, {"bee": "honey bee"}))
    assert "Classes that are mostly copies of a few images: honey bee (40 images, 10 diff" in said


def test_a_burst_of_the_same_scene_is_one_cluster(tmp_path):
    images, features = list(pictures(200, 32)), vectors(200, 0)
    rng = np.random.default_rng(3)
    for row in range(1, 15):
        noise = rng.normal(0, 6, images[0].shape)
        images[row] = (images[0] + noise).clip(0, 255).astype(np.uint8)
        features[row] = features[0] + 0.05 * rng.normal(size=40)
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40)
    audit = Audit([store], jobs=1)
    found = audit.findings[audit.findings.issue == "near-duplicate"]
    assert {*found.id, *found.partner} == {f"train/{row}.png" for row in range(15)}
    assert found.cluster.nunique() == 1


def test_a_split_without_images_and_a_class_of_copies_do_no_harm(tmp_path):
    images, labels = list(pictures(62, 32)), np.arange(62) % 2
    images[61] = images[60]
    labels[60:] = 2
    features = {"avgpool": vectors(62, 0, classes=2)}
    store = seen(tmp_path / "a.h5", images, labels, arrays=features, dims=40)
    empty = seen(tmp_path / "b.h5", list(pictures(2, 32)), split="test", dims=40)
    empty.skipped.update({0: "damaged", 1: "damaged"})
    assert Audit([store, empty], jobs=1).summary["labels"]["checked"] == 60
