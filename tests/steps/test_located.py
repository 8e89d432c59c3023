"""YAML with lines: what a value is, where it stands, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.errors import RecipeError
from featpipe.steps.located import Located, locate, read_located

TEXT = """\
name: x   # a comment
steps:
  - step: svm
    seed: [1,
           2]
  - {step: knn}
"""


def test_a_value_has_the_line_of_its_key() -> None:
    root = read_located(TEXT, "x.yaml")
    assert root.line == 1
    svm, knn = root.value["steps"].value
    assert (svm.line, knn.line) == (3, 6)
    assert svm.value["seed"].line == 4
    assert [item.line for item in svm.value["seed"].value] == [4, 5]


def test_plain_values_are_located_at_one_line() -> None:
    located = locate({"a": [1, (2,)]}, 7)
    assert located.value["a"].value[1].line == 7
    assert located.plain() == {"a": [1, [2]]}


def test_nothing_is_nothing() -> None:
    assert read_located("", "x.yaml") == Located(None, 1)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(deadline=None, max_examples=100)
def test_plain_values_are_those_of_the_safe_loader(value: Any) -> None:
    text = yaml.safe_dump(value)
    assert read_located(text, "x").plain() == yaml.safe_load(text)


def test_what_a_merge_key_takes_over_yields_to_the_own_keys() -> None:
    text = "base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}"
    assert read_located(text, "x").plain()["own"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a: [", "This is not YAML", "x.yaml, line 1"),
        ("a: 1\nb: 2\na: 3", "The key 'a' occurs twice", "x.yaml, lines 1 and 3"),
        ("a: 1\n7: x", "A key has to be a text", "x.yaml, line 2"),
        ("a: 1\n[b]: x", "A key has to be a text", "x.yaml, line 2"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']", "not allowed", "x.yaml, line 2"),
        ("a: !!python/name:os.system x", "This is not YAML", "x.yaml, line 1"),
        ("x" * 1_000_001, "too long", "x.yaml"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, what: str, where: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        read_located(text, "x.yaml")
    assert caught.value.details["where"] == where


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    return "\n".join([*lines, "steps: *a0"])


def test_aliases_that_explode_are_refused_at_once() -> None:
    with pytest.raises(RecipeError, match="aliases of the YAML explode"):
        read_located(bomb(9), "x")
    with pytest.raises(RecipeError, match="nested too deeply"):
        read_located("&a [*a]", "x")  # a list that contains itself


def test_merge_keys_that_explode_are_refused_at_once() -> None:
    lines = ["a0: &a0 {k0: 1}"]
    for n in range(1, 30):
        lines.append(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}")
    with pytest.raises(RecipeError, match="explode"):
        read_located("\n".join(lines), "x")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        read_located("[" * 5000 + "]" * 5000, "x")
