"""The published numbers are carried over rightly, and our metrics give the printed ones back."""

from __future__ import annotations

import json
import math

import pytest

from featpipe.errors import UnknownNameError
from featpipe.evaluation.metrics import metrics_from_confusion
from featpipe.statistics.comparison import find_published, published_datasets, published_rows

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
            assert row.accuracy == entry["accuracy"]
            if "confusion" in entry:
                assert row.confusion == entry["confusion"]
                printed = entry.get("printed_as_class_wise_accuracy")
                assert printed == (row.printed["values"] if row.printed else None)
                continue
            known = {**row.settings, **row.reported, "remark": row.note}
            for name in set(entry) - {"accuracy"}:
                assert known[name] == entry[name]
    frozen = reference["two_class_resnet34_frozen"]
    (row,) = published_rows("two-class")
    assert {"accuracy": row.accuracy, **row.settings, **row.reported} == frozen
