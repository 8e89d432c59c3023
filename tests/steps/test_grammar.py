"""The small languages of options: what they mean, and that nothing else is taken for one."""

from __future__ import annotations

import math

import pytest

from featpipe.errors import UsageError
from featpipe.steps import grammar


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("auto", ("auto", None)),
        ("split", ("split", None)),
        ("folds", ("folds", None)),
        ("all", ("all", None)),
        ("fold:0", ("fold", 0)),
        ("kfold:5", ("kfold", 5)),
        ("holdout:0.2", ("holdout", 0.2)),
    ],
)
def test_a_protocol_is_its_kind_and_its_number(text: str, meaning: tuple[str, float]) -> None:
    assert grammar.protocol(text) == meaning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kfold:1", "at least 2"),
        ("kfold:2.5", "a whole number"),
        ("kfold:²", "a whole number"),
        ("fold:-1", "at least 0"),
        ("fold", "at least 0"),
        ("holdout:0", "between 0 and 1"),
        ("holdout:1", "between 0 and 1"),
        ("holdout:nan", "between 0 and 1"),
        ("split:2", "auto, split, folds"),
        ("", "auto, split, folds"),
    ],
)
def test_what_is_no_protocol_is_refused_with_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match="is not a protocol") as caught:
        grammar.protocol(text)
    assert expected in caught.value.details["expected"]


def test_only_zeroshot_tests_every_row() -> None:
    grammar.need_training("kfold:5")
    with pytest.raises(UsageError, match="none trains"):
        grammar.need_training("all")


def test_validation_holds_out_or_takes_folds() -> None:
    assert grammar.validation("auto") == ("auto", None)
    assert grammar.validation("holdout:0.1") == ("holdout", 0.1)
    assert grammar.validation("kfold:3") == ("kfold", 3)


@pytest.mark.parametrize("text", ["split", "all", "fold:1", "kfold:1", "some"])
def test_what_is_no_validation_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a way to choose hyper-parameters"):
        grammar.validation(text)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("1e-3", 0.001), ("-2", -2)])
def test_numbers(text: str, value: float) -> None:
    assert grammar.number(text) == value


@pytest.mark.parametrize("text", ["", "x", "inf", "nan"])
def test_what_is_no_finite_number_fails_every_comparison(text: str) -> None:
    assert math.isnan(grammar.number(text))
    assert math.isnan(grammar.number("1.0", whole=True))
