"""The published numbers are carried over rightly, and our metrics give the printed ones back."""

from __future__ import annotations

import json
import math

import pytest

from featpipe.errors import UnknownNameError
from featpipe.evaluation.metrics import metrics_from_confusion
from featpipe.statistics.published import find_published, published_datasets, published_rows

STL10 = {row.method: row for row in published_rows("stl10")}


@pytest.mark.parametrize(
    ("method", "accuracy"),
    [
        ("resnet50_features_ovr_svm", 0.8365),
        ("resnet50_imagenet_with_other", 0.2075),
        ("resnet50_finetuned_partly_frozen", 0.9155),
    ],
)
def test_our_metrics_give_the_printed_accuracy_back(method, accuracy):
    row = STL10[method]
    ours = metrics_from_confusion(row.confusion, row.classes, row.other)
    assert ours["accuracy"] == accuracy == row.accuracy
    assert ours["n"] == row.n_test == 8000
    assert row.n_correct == round(accuracy * 8000)
    assert {entry["support"] for entry in ours["per_class"]} == {800}


@pytest.mark.parametrize("method", [m for m, row in STL10.items() if row.printed])
def test_what_is_printed_as_class_wise_accuracy_is_truncated_precision(method):
    row = STL10[method]
    entries = metrics_from_confusion(row.confusion, row.classes, row.other)["per_class"]
    scale = 10 ** row.printed["decimals"]
    truncated = [math.floor(entry["precision"] * scale) / scale for entry in entries]
    assert (row.printed["metric"], row.printed["rounding"]) == ("precision", "truncated")
    assert truncated == row.printed["values"]
    # Neither rounding nor recall, which is what class-wise accuracy means, gives the same.
    assert [round(entry["precision"], 4) for entry in entries] != truncated
    assert not any(
        entry["recall"] == pytest.approx(printed, abs=5e-4)
        for entry, printed in zip(entries, truncated, strict=True)
        if printed
    )


def test_two_of_three_reports_print_values_per_class():
    assert [m for m, row in STL10.items() if row.printed] == [
        "resnet50_imagenet_with_other",
        "resnet50_finetuned_partly_frozen",
    ]


def test_the_mapped_classifier_sends_most_images_to_other_and_finds_no_deer():
    row = STL10["resnet50_imagenet_with_other"]
    ours = metrics_from_confusion(row.confusion, row.classes, row.other)
    airplane, deer = (
        next(entry for entry in ours["per_class"] if entry["class"] == name)
        for name in ("airplane", "deer")
    )
    assert airplane["recall"] == 0.195
    assert airplane["precision"] == pytest.approx(156 / 161)
    assert (deer["recall"], deer["precision"], deer["predicted"]) == (0, 0, 11)
    assert ours["coverage"] == pytest.approx(1 - 6170 / 8000)


def test_every_number_has_a_source_and_a_protocol():
    for dataset in published_datasets():
        rows = published_rows(dataset)
        assert rows
        for row in rows:
            assert row.dataset == dataset
            assert all((row.title, row.source, row.protocol))
            assert row.note if row.accuracy is None else 0 < row.accuracy < 1


def test_a_dataset_of_which_nothing_is_published_has_no_rows():
    assert published_rows("digits") == []


def test_rows_are_found_by_dataset_and_method_and_misspellings_get_help():
    assert find_published("stl10") == list(STL10.values())
    (row,) = find_published("cifar10/resnet9")
    assert (row.dataset, row.method) == ("cifar10", "resnet9")
    with pytest.raises(UnknownNameError, match="did you mean 'stl10'"):
        find_published("stl")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10/resnet9'"):
        find_published("cifar10/resnet99")


def test_three_losses_have_two_accuracies_each_and_not_the_same_test_images():
    rows = published_rows("tiny-imagenet")
    assert [row.reported["test_images"] for row in rows] == [7500, 2500, 2500]
    for row in rows:
        n, in_report = row.reported["test_images"], row.reported["accuracy_in_report"]
        assert f"{100 * row.accuracy:.2f} %" in row.note
        assert f"{in_report} on {n} images" in row.note
        assert "not the same test set" in row.protocol
        # Which number belongs to which images cannot be settled: two are no share of theirs.
        shares = {round(right / n, 4) for right in range(n + 1)}
        assert (row.accuracy in shares) == ("is not a share of" not in row.note)


def test_what_a_source_leaves_open_is_said_beside_the_number():
    (pool,) = find_published("cifar10/resnet_scratch_adam_stem_pool")
    assert pool.accuracy == 0.87
    assert "ambiguous" in pool.note
    (svm,) = find_published("stl10/resnet50_features_ovr_svm")
    assert "from the last FC layer" in svm.note
    scratch = [row for row in published_rows("cifar10") if "scratch" in row.method]
    assert len(scratch) == 4
    assert all("depth not stated" in row.title for row in scratch)
    assert not any("ResNet-18" in row.title for row in published_rows("cifar10"))


@pytest.mark.real
def test_no_fact_was_lost_or_changed(shared):
    reference = json.loads((shared / "reference" / "published_results.json").read_text())
    names = {
        "stl10": "stl10",
        "tiny_imagenet_first50_resnet18": "tiny-imagenet",
        "dogs_vs_cats_70_30": "dogs-vs-cats",
        "cifar10": "cifar10",
    }
    for key, dataset in names.items():
        theirs = {m: e for m, e in reference[key].items() if isinstance(e, dict)}
        ours = {row.method: row for row in published_rows(dataset)}
        assert set(ours) == set(theirs)
        for method, entry in theirs.items():
            row = ours[method]
            known = {
                "accuracy": row.accuracy,
                "confusion": row.confusion,
                "classes": [*row.classes, *(["other"] if row.other else [])],
                "printed_as_class_wise_accuracy": row.printed and row.printed["values"],
                **row.settings,
                **row.reported,
            }
            for name in set(entry) - {"remark"}:
                assert known[name] == entry[name], (method, name)
            if "remark" in entry:  # said in the row's note, without what it tells the writer of it
                said = row.note.rstrip(".").lower()
                assert said
                assert entry["remark"].lower().startswith(said)
            elif row.confusion is None:  # and no number of ours is one that theirs do not have
                assert {"accuracy": row.accuracy, **row.settings, **row.reported} == entry
    frozen = reference["two_class_resnet34_frozen"]
    (row,) = published_rows("two-class")
    assert {"accuracy": row.accuracy, **row.settings, **row.reported} == frozen
