"""What a page is made from: groups of equal rows, stores, and names that people chose."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featpipe.errors import DataError, FeatpipeError, ResultError, UsageError
from featpipe.evaluation.assemble import save_result
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.probes.nearest_mean import Centroid
from featpipe.reporting.data import CLASS_NAMES, class_names
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests.reporting.conftest import Made, Page, Plan, changed, make_world


def test_groups_hold_methods_of_equal_rows_best_first(made: Made, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", Plan(n_test=60))
    data = made.data([*made.results, other.evaluate(Centroid(), "other")])
    assert [len(group.methods) for group in data.groups] == [len(made.results), 1]
    assert [group.label for group in data.groups] == [
        "toy, 200 test images",
        "toy, 60 test images",
    ]
    accuracies = [method.row["accuracy"] for method in data.groups[0].methods]
    assert accuracies == sorted(accuracies, reverse=True)
    names = {method.row["name"] for method in data.groups[0].methods}
    assert all({pair["a"], pair["b"]} <= names for pair in data.groups[0].pairs)
    assert len({method.anchor for method in data.methods}) == len(data.methods)


def test_answers_of_a_group_are_aligned_by_id(made: Made) -> None:
    (group,) = made.data().groups
    assert group.ids.tolist() == sorted(group.ids.tolist())
    for method, predicted in zip(group.methods, group.predicted, strict=True):
        by_id = dict(zip(method.table.ids.tolist(), method.predicted.tolist(), strict=True))
        assert [by_id[name] for name in group.ids.tolist()] == predicted.tolist()


def test_of_several_models_the_first_one_answers(made: Made) -> None:
    centroid = next(m for m in made.data().methods if m.result.method == "centroid")
    assert centroid.first_model_name == centroid.result.splits[0]["name"]
    first = centroid.table.only_splits([0])
    assert centroid.predicted[first.row].tolist() == first.predicted.tolist()
    assert len(centroid.predictions(first_model=True).ids) == len(first.row)
    assert set(np.unique(centroid.share_right)) <= {0, 0.5, 1}


def test_confidence_is_a_probability_or_a_margin(made: Made) -> None:
    data = made.data()
    for method in data.methods:
        assert method.confidence is not None
        assert (method.confidence >= 0).all()
        assert method.has_probabilities == (method.result.method == "logistic") or (
            method.result.method == "knn"
        )
        confidences = method.confidence[method.wrong]
        assert (np.diff(confidences) <= 0).all(), "the most confident errors come first"


def test_predictions_without_an_answer_for_every_row_are_damaged(
    made: Made, tmp_path: Path
) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    whole = result.predictions()
    cut = PredictionTable(
        whole.ids, whole.true, whole.row[1:], whole.split[1:], whole.predicted[1:], None
    )
    accuracy = float(cut.correct.mean())
    result.summary["accuracy"] |= {"value": accuracy, "low": accuracy, "high": accuracy}
    save_result(result, tmp_path / "cut.json", cut)
    with pytest.raises(ResultError, match="damaged"):
        made.again(tmp_path / "r", [result])


def test_published_numbers_are_shown_once_for_each_dataset(made: Made) -> None:
    data = made.data(reference=("stl10",))
    assert data.published(data.groups[0])
    assert made.data(published=False).comparison.published == []


def test_a_store_is_found_from_the_workspace_and_from_the_result(
    made: Made, tmp_path: Path
) -> None:
    relative = Path(made.results[0].stores[-1]["path"]).relative_to(made.world.workspace.root)
    here = made.data([changed(made, path=str(relative))])
    elsewhere = replace(here, context=Context(Workspace(tmp_path)))
    (method,) = here.methods
    known = method.result.stores[-1]
    assert here.store(method, known).path == elsewhere.store(method, known).path
    method.result.path = None
    with pytest.raises(FeatpipeError, match="deleted or moved"):
        elsewhere.store(method, known)


# -- names that people chose -----------------------------------------------------------------------


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
    file = (folder.parent if beside else folder) / CLASS_NAMES
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


def test_a_name_may_hold_what_unicode_calls_a_line_break(made: Made, tmp_path: Path) -> None:
    (tmp_path / CLASS_NAMES).write_text('class,name\nbird,Blue\u2028tit\ncat,"Big\ncat"\n')
    names = class_names(placed(made, tmp_path), None)
    assert (names["bird"], names["cat"]) == ("Blue\u2028tit", "Big\ncat")


def test_names_of_classes_that_do_not_exist_are_noted(made: Made, tmp_path: Path) -> None:
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
    (tmp_path / CLASS_NAMES).write_text("class,name\nbird,pet\ncat,pet\n")
    names = class_names(placed(made, tmp_path), None)
    assert list(names.values()) == ["airplane", "pet (bird)", "pet (cat)", "deer"]


@pytest.mark.parametrize("text", ["class\nbird\n", "name,klass\nx,y\n", 'class,name\n"a"b,c\n'])
def test_a_file_that_is_none_is_refused(made: Made, tmp_path: Path, text: str) -> None:
    (tmp_path / CLASS_NAMES).write_text(text)
    with pytest.raises(DataError, match="names of the classes") as told:
        class_names(placed(made, tmp_path), None)
    assert str(tmp_path / CLASS_NAMES) in str(told.value)


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
