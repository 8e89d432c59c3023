"""Results beside each other are called by what they differ in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from featpipe.evaluation.titles import settings_of, unique_titles


def titles(*facts: dict[str, Any]) -> list[str]:
    """Return the titles of methods that are all called SVM, given what differs."""
    rows = [
        {"method": "SVM", "features": "r50", "protocol": "split", "name": f"n{i}", **fact}
        for i, fact in enumerate(facts)
    ]
    results: Any = [
        SimpleNamespace(
            method="svm",
            settings=fact.get("settings", {"c": 1}),
            stores=fact.get("stores", []),
            created=fact.get("created", ""),
        )
        for fact in facts
    ]
    return unique_titles(results, rows)


def test_only_what_differs_is_named() -> None:
    assert titles({}) == ["SVM"]
    assert titles({"features": "r18"}, {"features": "r50"}) == ["SVM on r18", "SVM on r50"]
    assert titles({"protocol": "folds"}, {"protocol": "split"}) == ["SVM, folds", "SVM, split"]
    assert titles({"settings": {"map": None}}, {"settings": {"map": "narrow"}}) == [
        "SVM",
        "SVM, map narrow",
    ]


def test_values_are_given_in_words() -> None:
    grids = {"c": [1e-05, 1e-4, 1e-3, 0.01]}, {"c": [0.1, 1.0]}
    assert titles({"settings": grids[0]}, {"settings": grids[1]}) == [
        "SVM, c 1e-5 … 0.01",
        "SVM, c 0.1, 1",
    ]
    sizes = {"image_size": 224}, {"image_size": 96}
    assert titles({"settings": sizes[0]}, {"settings": sizes[1]}) == [
        "SVM, image size 224",
        "SVM, image size 96",
    ]


def features(layer: str = "avgpool", **backbone: Any) -> dict[str, Any]:
    """Return facts of a result on features that a backbone made."""
    backbone = {"weights": {"name": "V1"}, "preprocessing": {"crop": 224}} | backbone
    return {"stores": [{"layer": layer, "manifest": {"backbone": backbone, "dtype": "float32"}}]}


def test_features_of_one_backbone_are_told_apart_by_how_they_were_made() -> None:
    assert titles(features("layer3"), features("layer4")) == [
        "SVM, layer layer3",
        "SVM, layer layer4",
    ]
    weights = ({"weights": {"name": name}} for name in ("V1", "V2"))
    assert titles(*(features(**one) for one in weights)) == ["SVM, weights V1", "SVM, weights V2"]
    small = features(preprocessing={"crop": 176})
    assert titles(small, features()) == ["SVM, image size 176", "SVM, image size 224"]
    lower = features(precision="bfloat16", runtime="openvino")
    assert titles(lower, features()) == ["SVM, precision bfloat16", "SVM"]
    assert titles(features(runtime="coarse"), features()) == ["SVM, runtime coarse", "SVM"]
    assert titles(features(), features()) == ["SVM, n0", "SVM, n1"]


def test_the_same_method_on_other_images_is_named_after_them_or_the_day() -> None:
    assert titles({"n_test": 33}, {"n_test": 168}) == [
        "SVM, 33 test images",
        "SVM, 168 test images",
    ]
    days = {"created": "2026-01-02T03:04:05"}, {"created": "2026-01-05T03:04:05"}
    assert titles(*days) == ["SVM, 2026-01-02", "SVM, 2026-01-05"]


def test_the_name_is_the_last_resort() -> None:
    assert titles({}, {}) == ["SVM, n0", "SVM, n1"]
    assert titles({"settings": {"force": True}}, {"settings": {"force": False}}) == [
        "SVM, n0",
        "SVM, n1",
    ], "an option that changes no number tells nothing"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.integers(0, 2))))
def test_titles_are_always_different(facts: list[tuple[str, str, int]]) -> None:
    made = titles(*[{"features": f, "protocol": p, "settings": {"c": c}} for f, p, c in facts])
    assert len(set(made)) == len(facts)


def test_settings_of_a_method_that_is_not_installed_all_count() -> None:
    result: Any = SimpleNamespace(method="of another package", settings={"title": "x", "c": 1})
    assert settings_of(result) == {"title": "x", "c": 1}
