"""Titles of methods tell each from the others beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from featpipe.report.titles import unique_titles


def titles(*facts: dict[str, Any]) -> list[str]:
    """Return the titles of methods that are all called SVM, given what differs."""
    rows = [
        {"method": "SVM", "features": "r50", "protocol": "split", "name": f"n{i}", **fact}
        for i, fact in enumerate(facts)
    ]
    results: Any = [SimpleNamespace(settings=fact.get("settings", {"c": 1})) for fact in facts]
    return unique_titles(results, rows)


def test_one_method_keeps_its_title() -> None:
    assert titles({}) == ["SVM"]


def test_only_what_differs_is_named() -> None:
    assert titles({"features": "r18"}, {"features": "r50"}) == ["SVM, r18", "SVM, r50"]
    assert titles({"protocol": "folds"}, {"protocol": "split"}) == ["SVM, folds", "SVM, split"]
    assert titles({"settings": {"map": None}}, {"settings": {"map": "narrow"}}) == [
        "SVM",
        "SVM, map narrow",
    ]


def test_the_name_is_the_last_resort() -> None:
    assert titles({}, {}) == ["SVM, n0", "SVM, n1"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.integers(0, 2))))
def test_titles_are_always_different(facts: list[tuple[str, str, int]]) -> None:
    made = titles(*[{"features": f, "protocol": p, "settings": {"c": c}} for f, p, c in facts])
    assert len(set(made)) == len(facts)
