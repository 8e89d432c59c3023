"""Names that people chose are on the page and nowhere else."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest

from featpipe.errors import DataError, UsageError
from featpipe.evaluation.result import Result
from featpipe.reporting.names import FILE, class_names
from tests.reporting.conftest import Made, Page


def placed(made: Made, folder: Path) -> Result:
    """Return the first result as if its images were in a folder."""
    result = copy.deepcopy(made.results[0])
    source = {**result.stores[-1]["run"]["source"], "dataset": f"folder:{folder}"}
    result.stores[-1]["run"]["source"] = source
    return result


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_in_the_folder_or_beside_it_names_the_classes(
    made: Made, tmp_path: Path, beside: bool
) -> None:
    folder = tmp_path / "breeds" / "val"
    folder.mkdir(parents=True)
    file = (folder.parent if beside else folder) / FILE
    file.write_text("class,name\nbird,Feathered friend\ncat,\n", encoding="utf-8-sig")
    result = placed(made, folder)
    assert class_names(result, None)["bird"] == "Feathered friend"
    path = made.again(tmp_path / "r", [result])
    page = Page(path)
    assert "4: airplane, Feathered friend, cat, deer" in page.text
    assert "bird" not in json.dumps(page.charts)
    for table in ("per-class", "confusion"):
        text = (tmp_path / "r-tables" / f"{table}.csv").read_text(encoding="utf-8")
        assert "Feathered friend" in text
        assert "bird" not in text


def test_names_of_classes_that_do_not_exist_are_told_of(made: Made, tmp_path: Path) -> None:
    result, told = placed(made, tmp_path), list[str]()
    (tmp_path / "class_names.csv").write_text("class,name\nbird,Bird\nbrid,Bird\n")
    assert class_names(result, None, told.append)["bird"] == "Bird"
    (note,) = told
    assert note.endswith("names classes that the results do not have: brid")


def test_wordnet_ids_have_their_names(made: Made) -> None:
    result = copy.deepcopy(made.results[0])
    result.stores = []
    result.dataset["classes"] = ["n01440764", "n99999999"]
    assert list(class_names(result, None).values()) == ["tench", "n99999999"]


def test_equal_names_stay_apart(made: Made, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("class,name\nbird,pet\ncat,pet\n")
    names = class_names(placed(made, tmp_path), None)
    assert list(names.values()) == ["airplane", "pet (bird)", "pet (cat)", "deer"]


@pytest.mark.parametrize("text", ["class\nbird\n", "name,klass\nx,y\n", 'class,name\n"a"b,c\n'])
def test_a_file_that_is_none_is_refused(made: Made, tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match="names of the classes") as told:
        class_names(placed(made, tmp_path), None)
    assert str(tmp_path / FILE) in str(told.value)


def test_the_dataset_has_the_name_that_was_given(made: Made, tmp_path: Path) -> None:
    path = made.again(tmp_path / "r", dataset_name="Shapes & friends")
    page = Page(path)
    assert "Image classification on Shapes & friends" in page.text
    assert "Shapes & friends, 200 test images" in page.text
    table = pd.read_csv(tmp_path / "r-tables" / "comparison.csv")
    assert set(table["dataset"]) == {"npz:toy.npz"}


def test_one_name_is_not_given_to_two_datasets(made: Made, tmp_path: Path) -> None:
    other = copy.deepcopy(made.results[1])
    other.dataset["name"] = "another"
    other.dataset["test"]["fingerprint"] = "0" * 64
    with pytest.raises(UsageError, match="there are results of several"):
        made.again(tmp_path / "r", [made.results[0], other], dataset_name="both")
