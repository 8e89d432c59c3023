"""A result is read exactly as it was written, or refused."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.errors import ResultError
from featpipe.evaluation.result import (
    OldResultError,
    PredictionTable,
    Result,
    find_results,
    latest_result,
    scan_results,
)
from featpipe.fingerprint import of_file


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "method": "svm",
        "title": "SVM",
        "key": "0123456789abcdef",
        "dataset": {"name": "toy", "classes": ["ä", "b"], "other": False},
        "settings": {"c": [0.1]},
        "protocol": {"name": "split"},
        "splits": [],
        "summary": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, "metrics": {}},
        "cost": {"seconds": 1.0},
        "stores": [],
        "environment": {},
        "created": "2024-01-01T00:00:00+00:00",
        "files": {"predictions": "a.npz"},
    }
    return Result(**{**values, **changes})


def table(scores: bool = True) -> PredictionTable:
    return PredictionTable(
        ids=np.array(["x/1.png", "ü.png"]),
        true=np.array([0, 1]),
        row=np.array([0, 1, 0, 1]),
        split=np.array([0, 0, 1, 1]),
        predicted=np.array([0, 1, 1, 2]),
        scores=np.arange(12, dtype=np.float32).reshape(4, 3) if scores else None,
    )


def assert_same(one: PredictionTable, two: PredictionTable) -> None:
    for item in dataclasses.fields(PredictionTable):
        np.testing.assert_array_equal(getattr(one, item.name), getattr(two, item.name))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    written = result(notes=["did not converge"], extra={"curve": [1, 2]})
    path = written.save(tmp_path / "new" / "toy-svm.json")
    read = Result.load(path)
    assert read == written
    assert read.name == "toy-svm"
    assert "ä" in path.read_text(encoding="utf-8")


def test_equal_results_are_equal_bytes(tmp_path: Path) -> None:
    result().save(tmp_path / "a.json")
    result().save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    table().save(tmp_path / "a.npz")
    time.sleep(2.1)  # zip files hold the time of day, to two seconds
    table().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_hidden(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        result(cost={"seconds": value}).save(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        "{}",
        '{"schema": 1}',
        '{"schema": 2}',
        '{"schema": 3}',
        "\x00",
        "NaN",
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ResultError) as caught:
        Result.load(tmp_path / "a.json")
    assert caught.value.details["where"] == str(tmp_path / "a.json")


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Result)][:-1])
@pytest.mark.parametrize("wrong", [7.5, None])
def test_a_value_of_another_type_is_refused(tmp_path: Path, name: str, wrong: Any) -> None:
    path = result().save(tmp_path / "a.json")
    content = json.loads(path.read_text())
    content[name] = wrong
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError):
        Result.load(path)


def test_missing_and_surplus_keys_are_named(tmp_path: Path) -> None:
    path = result().save(tmp_path / "a.json")
    content = json.loads(path.read_text())
    del content["summary"]
    content["sumary"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError) as caught:
        Result.load(path)
    assert caught.value.details["got"] == "sumary, summary"


def test_a_summary_without_an_accuracy_is_damaged(tmp_path):
    path = result().save(tmp_path / "a.json")
    path.write_text(path.read_text().replace('"accuracy"', '"akkuracy"'))
    with pytest.raises(ResultError, match="damaged") as caught:
        Result.load(path)
    assert caught.value.details["got"] == "summary"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe")])
def test_folders_and_foreign_bytes_are_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.json")
    with pytest.raises(ResultError):
        Result.load(tmp_path / "a.json")


@pytest.mark.parametrize("scores", [True, False])
def test_predictions_are_read_as_written(tmp_path: Path, scores: bool) -> None:
    table(scores).save(tmp_path / "a.npz")
    path = result(digests={"predictions": of_file(tmp_path / "a.npz")}).save(tmp_path / "a.json")
    assert_same(Result.load(path).predictions(), table(scores))


def test_predictions_know_what_is_right() -> None:
    assert table().correct.tolist() == [True, True, False, False]
    second = table().only_splits([1])
    assert second.split.tolist() == [1, 1]
    assert second.correct.tolist() == [False, False]
    assert len(second.ids) == 2


@pytest.mark.parametrize(
    "files", [{}, {"predictions": "b.npz"}, {"predictions": "../a.npz"}, {"predictions": ""}]
)
def test_predictions_that_are_not_beside_the_result(tmp_path: Path, files: Any) -> None:
    (tmp_path / "results").mkdir()
    table().save(tmp_path / "a.npz")
    path = result(files=files).save(tmp_path / "results" / "a.json")
    with pytest.raises(ResultError):
        Result.load(path).predictions()


def test_a_result_that_was_not_saved_has_no_predictions() -> None:
    with pytest.raises(ResultError, match="not saved"):
        result().predictions()


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_predictions_are_refused_or_unchanged(
    tmp_path: Path, place: float, bit: int, cut: bool
) -> None:
    path = tmp_path / "a.npz"
    table().save(path)
    content = bytearray(path.read_bytes())
    where = int(place * len(content))
    if cut:
        del content[where:]
    else:
        content[where] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = PredictionTable.load(path)
    except ResultError:
        return
    assert_same(read, table())


@pytest.mark.parametrize(
    "changes",
    [
        {"predicted": np.array([0, 1])},
        {"row": np.array([0, 1, 2, 3])},
        {"row": np.array([0, 1, -1, 0])},
        {"true": np.array([0])},
        {"scores": np.zeros((3, 3), np.float32)},
        {"split": np.array([[0, 0], [1, 1]])},
        {"predicted": np.array([0.5, 1, 1, 1])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, changes: Any) -> None:
    dataclasses.replace(table(), **changes).save(tmp_path / "a.npz")
    with pytest.raises(ResultError, match="damaged"):
        PredictionTable.load(tmp_path / "a.npz")


def test_scanning_separates_damaged_from_intact(tmp_path: Path) -> None:
    result().save(tmp_path / "good.json")
    (tmp_path / "bad.json").write_text("{")
    found, errors = scan_results(tmp_path)
    assert [each.name for each in found] == ["good"]
    assert [Path(error.details["where"]).name for error in errors] == ["bad.json"]


def test_finding_by_name_path_and_dataset(tmp_path: Path) -> None:
    one = result().save(tmp_path / "one.json")
    result(dataset={"name": "other"}).save(tmp_path / "two.json")
    assert [r.name for r in find_results(tmp_path)] == ["one", "two"]
    assert [r.name for r in find_results(tmp_path, [str(one)])] == ["one"]
    assert [r.name for r in find_results(tmp_path, ["two", "one"])] == ["two", "one"]
    assert [r.name for r in find_results(tmp_path, dataset="other")] == ["two"]
    with pytest.raises(ResultError, match="no result 'tow'") as caught:
        find_results(tmp_path, ["tow"])
    assert "did you mean 'two'" in caught.value.details["next"]
    with pytest.raises(ResultError, match="no result on 'x'"):
        find_results(tmp_path, dataset="x")
    with pytest.raises(ResultError, match="no result yet"):
        find_results(tmp_path / "empty")


# -- results of featpipe 0.1 -----------------------------------------------------------------------


@pytest.fixture
def with_old(tmp_path: Path) -> Path:
    """A folder with a result of today and one of schema 1."""
    result().save(tmp_path / "new.json")
    path = result(command="featpipe svm --c 0.1").save(tmp_path / "old.json")
    path.write_text(path.read_text().replace(f'"schema": {Result.schema}', '"schema": 1'))
    return tmp_path


def test_an_old_result_says_what_to_do(with_old: Path) -> None:
    with pytest.raises(OldResultError, match="written by featpipe") as caught:
        Result.load(with_old / "old.json")
    assert caught.value.details["where"] == str(with_old / "old.json")
    assert "(featpipe svm --c 0.1)" in caught.value.details["next"]
    with pytest.raises(OldResultError):
        find_results(with_old, ["old"])


def test_old_results_are_left_out_with_a_note(with_old: Path) -> None:
    notes: list[str] = []
    assert [r.name for r in find_results(with_old, note=notes.append)] == ["new"]
    (note,) = notes
    assert "old.json" in note
    assert "new.json" not in note
    with pytest.warns(UserWarning, match=r"old\.json"):
        find_results(with_old)
    found, errors = scan_results(with_old)
    assert [each.name for each in found] == ["new"]
    assert [type(error) for error in errors] == [OldResultError]


def test_damaged_results_are_not_left_out(with_old: Path) -> None:
    (with_old / "bad.json").write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        find_results(with_old)


# -- the latest of a method ------------------------------------------------------------------------


def test_the_latest_result_is_of_this_dataset_if_there_is_one(tmp_path: Path) -> None:
    for age, name in enumerate(
        ["toy-r18-svm-2", "zoo-r18-svm-1", "toy-r18-svm-3", "toy-r18-knn-4"]
    ):
        method = name.split("-")[2]
        path = result(method=method, title=name).save(tmp_path / f"{name}.json")
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "toy-r18-svm-0.json").write_text("{")

    def latest(*args: str) -> str | None:
        found = latest_result(tmp_path, *args)
        return found.title if found else None

    assert latest("svm", "toy") == "toy-r18-svm-2"
    assert latest("svm", "zoo") == "zoo-r18-svm-1"
    assert latest("svm", "moon") == latest("svm") == "toy-r18-svm-2"
    assert latest("knn", "zoo") == "toy-r18-knn-4"
    assert latest("logistic") is None
