"""Errors explain themselves, also when a worker process sends them back."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from featpipe import errors
from featpipe.errors import FeatpipeError, MissingExtraError, UnknownNameError, UsageError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FeatpipeError)
]


def test_only_what_is_known_is_printed() -> None:
    error = FeatpipeError("It broke.", where="a.csv, line 3", got=0, next_step="mend it")
    assert str(error) == "It broke.\n  where: a.csv, line 3\n  got: 0\n  next: mend it"
    assert str(FeatpipeError("It broke.")) == "It broke."


def test_half_a_character_out_of_a_damaged_file_can_be_written() -> None:
    error = FeatpipeError("A type is unknown.", got="\ud800.list")
    assert str(error).encode() == b"A type is unknown.\n  got: \\ud800.list"


def test_the_known_names_and_the_nearest_one_are_given() -> None:
    error = UnknownNameError("No resnet5O.", "resnet5O", ["resnet18", "resnet50"])
    assert error.details == {
        "expected": "resnet18, resnet50",
        "next": "did you mean 'resnet50'?",
    }
    assert UnknownNameError("No.", "x", ["yyy"], expected="other").details == {"expected": "other"}


def test_the_nearest_path_is_of_the_kind_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photo.csv").touch()
    for path, folder, near in [
        ("photo", True, "photos"),
        ("photo.cs", False, "photo.csv"),
        ("phots/cat", True, "photos/cats"),  # a folder on the way is corrected, too
        ("zzzz", True, None),
    ]:
        expected = f"did you mean {str(tmp_path / near)!r}?" if near else None
        assert errors.nearest_path(tmp_path / path, folder=folder) == expected


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert 'pip install "featpipe[parquet]"' in str(MissingExtraError("pyarrow", "parquet"))


@pytest.mark.parametrize(
    "error",
    [
        UsageError("No.", where="--c", expected=1, got=2, next_step="try"),
        MissingExtraError("pyarrow", "parquet"),
        UnknownNameError("No.", "a", {"ab": 1}, where="--c"),
    ],
)
def test_nothing_is_lost_between_processes(error: FeatpipeError) -> None:
    error.option = "c"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.details, again.option) == (str(error), error.details, "c")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_is_that_of_the_classes(kind: type) -> None:
    lines = (errors.__doc__ or "").partition("::")[2].splitlines()
    (line,) = (line for line in lines if kind.__name__ in line.split())
    assert line.index(kind.__name__) == 4 + 4 * kind.__mro__.index(FeatpipeError)
