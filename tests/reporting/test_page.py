"""What is on the page, and that it is there whatever the results are like."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from featpipe.errors import UsageError
from featpipe.evaluation.result import Result
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.svm import Svm
from featpipe.reporting.page import build_report, recipes_of, step, write_index
from featpipe.reporting.sections import SECTIONS
from featpipe.reporting.tables import matrix
from featpipe.steps import Context
from tests.reporting.conftest import HOSTILE, Made, Page, Plan, make_world


def test_the_numbers_on_the_page_are_those_of_the_results(made: Made) -> None:
    page = Page(made.page)
    for result in made.results:
        accuracy = result.summary["accuracy"]
        assert result.title in page.text
        assert f"{100 * accuracy['value']:.1f}" in page.text
        assert f"{100 * accuracy['low']:.1f}" in page.text
    drawn = next(chart for chart in page.charts if chart.get("kind") == "intervals")
    assert {entry["value"] for entry in drawn["entries"]} == {
        result.summary["accuracy"]["value"] for result in made.results
    }


def test_every_part_the_results_have_is_there(made: Made) -> None:
    page = Page(made.page)
    for part in (
        "ROC curves", "Precision-recall curves", "Reliability curve", "Confusion matrix",
        "Validation accuracy by C", "Validation accuracy by k", "Loss", "Learning rate",
        "Gradient flow", "Most confused", "Other errors, most confident first",
        "Wrong by every method",
        "Where two methods disagree", "Accuracy with few labels", "Spread over models",
        "featpipe extract --model toynet", "fingerprint", "seed 0",
    ):  # fmt: skip
        assert part in page.text, part
    kinds = {chart["kind"] for chart in page.charts}
    assert kinds == {"lines", "intervals", "scatter", "map"}


def test_the_contents_lead_to_every_section_and_method(made: Made) -> None:
    page = Page(made.page)
    links = {attrs.get("href") for tag, attrs in page.elements if tag == "a"}
    ids = {f"#{attrs['id']}" for tag, attrs in page.elements if "id" in attrs and tag != "symbol"}
    assert ids <= links | {"#main"}
    assert {f"#{name}" for name in (*SECTIONS.names(), "tests-1", "provenance")} <= ids
    assert {link for link in links if str(link).startswith("#")} <= ids


def test_the_page_needs_and_may_fetch_nothing(made: Made) -> None:
    text = made.page.read_text(encoding="utf-8")
    page = Page(made.page)
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "action"):
            value = attrs.get(name) or ""
            assert value.startswith(("#", "data:", "toy-tables/")) or not value, value
    policies = [str(a["content"]) for _, a in page.elements if "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "eval(" not in text
    assert "new Function" not in text
    assert " style=" not in text  # the policy would refuse it


def test_the_same_results_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = made.again(tmp_path / "toy.html", list(reversed(made.results)))
    assert again == tmp_path / "toy.html"
    assert again.read_bytes() == made.page.read_bytes()
    tables = made.page.with_name("toy-tables")
    names = sorted(path.name for path in tables.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "toy-tables").iterdir())
    for name in names:
        assert (tables / name).read_bytes() == (tmp_path / "toy-tables" / name).read_bytes()


def test_csv_tables_hold_unrounded_numbers_and_are_linked(made: Made) -> None:
    tables = made.page.with_name("toy-tables")
    comparison = pd.read_csv(tables / "comparison.csv").set_index("name")
    for result in made.results:
        assert comparison.loc[result.name, "accuracy"] == result.summary["accuracy"]["value"]
    links = {attrs.get("href") for tag, attrs in Page(made.page).elements if tag == "a"}
    assert {f"toy-tables/{path.name}" for path in tables.iterdir()} <= links


def test_a_table_that_has_no_rows_any_more_goes_away(made: Made, tmp_path: Path) -> None:
    made.again(tmp_path / "toy")
    assert (tmp_path / "toy-tables" / "low-shot.csv").exists()
    page = Page(made.again(tmp_path / "toy", made.results[:1]))
    assert not (tmp_path / "toy-tables" / "low-shot.csv").exists()
    assert "low-shot.csv" not in page.text


def test_hostile_names_stay_text(hostile: Made) -> None:
    page = Page(hostile.page)
    for name in (*HOSTILE, "</title></script><script>alert(3)</script>"):
        assert name in page.text or re.sub(r"\s+", " ", name) in page.text
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert sum(attrs.get("type") != "application/json" for attrs in scripts) == 1
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.count("img") == 0
    assert page.count("b") == 0
    assert any(HOSTILE[0] in json.dumps(chart) for chart in page.charts)


def test_one_method_is_not_called_better(made: Made, tmp_path: Path) -> None:
    page = Page(made.again(tmp_path / "one", made.results[:1]))
    assert "No other method was tested on them" in page.text
    assert "Where two methods disagree" not in page.text
    assert "Few labels, folds and settings" not in page.text, "it has nothing to say of one result"


def test_no_errors_at_all(tmp_path: Path) -> None:
    world = make_world(tmp_path, Plan(classes=("a", "b"), n_train=20, n_test=20, noise=0.01))
    results = [world.evaluate(Svm(), "svm"), world.evaluate(Logistic(), "logistic")]
    page = Page(world.report(results, tmp_path / "r"))
    assert "No test image is misclassified." in page.text
    assert "classified correctly by at least one method" in page.text
    assert "tie at 100.0 % (20 of 20)" in page.text


def test_the_first_screen_has_answers_images_and_a_matrix(made: Made, tmp_path: Path) -> None:
    text = Page(made.page).text
    start = text.index("tie at 80.5 %")
    asked = ("By how much?", "How sure?", "At what cost?", "Where does it fail?")
    places = [text.index(question) for question in asked]
    assert start < places[0]
    assert places == sorted(places)
    assert places[-1] < text.index("All methods")
    assert "toy: train 120, test 200 images" in text
    assert "4: airplane, bird, cat, deer" in text
    assert "200 images, 50 of each class" in text
    assert "Backbone × probe" not in text, "there is one backbone"
    assert "Trained on 120 images" in text
    assert "4 to 40 images for each model (SVM, few labels)" in text
    assert "60 images for each model (Nearest class mean)" in text
    results = [copy.deepcopy(result) for result in made.results[:2] * 2]
    for result, backbone in zip(results, ("a", "a", "b", "b"), strict=True):
        result.extra["network"] = {"model": backbone, "weights": {}}
        result.key = f"{backbone}{result.key[1:]}"
        result.path = made.results[0].path.with_name(f"{result.name}-{backbone}.json")
    text = Page(made.again(tmp_path / "two", results)).text
    assert "Backbone × probe" in text
    groups = made.data(results).groups
    cells = matrix(groups[0])
    assert cells is not None
    assert [name for name, _ in cells["rows"]] == ["a", "b"]
    assert all(method is not None for _, row in cells["rows"] for method in row)
    assert matrix(made.data().groups[0]) is None


def test_an_automatic_protocol_is_no_warning(made: Made, tmp_path: Path) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    (note,) = [note for note in result.notes if "chosen automatically" in note]
    path = made.again(tmp_path / "r", [result])
    assert f'class="note">{note}' not in path.read_text(encoding="utf-8")
    text = Page(path).text
    assert (
        f"Protocol the dataset's own test images (split) {note}" in text.partition("All methods")[0]
    )
    assert text.count(note) == 2, "on the card, and where the page says how to reproduce it"


def test_no_folder_of_this_machine_is_on_the_page(made: Made, tmp_path: Path) -> None:
    result = copy.deepcopy(made.results[0])
    result.command = (
        "featpipe svm --data /home/anna/photos --workspace='/srv/lab 1/ws' https://a.b/c"
    )
    result.settings["dataset"] = "folder:/home/anna/photos"
    path = made.again(tmp_path / "r", [result])
    assert "/home/anna" not in path.read_text(encoding="utf-8")
    assert "--data …/photos" in Page(path).text
    assert "https://a.b/c" in Page(path).text
    assert "folder:…/photos" in Page(path).text


def test_many_classes_are_drawn_not_tabled(tmp_path: Path) -> None:
    names = tuple(f"class {i:03d}" for i in range(200))
    world = make_world(tmp_path, Plan(names, n_train=400, n_test=400, side=12, noise=1.0))
    path = world.report([world.evaluate(Centroid(), "centroid")], tmp_path / "r", gallery=4)
    page = Page(path)
    matrix = [chart for chart in page.charts if chart.get("kind") == "matrix"]
    assert len(matrix[0]["classes"]) == 200
    assert sum(cell[2] for cell in matrix[0]["cells"]) == 400
    assert max(len(c["series"]) for c in page.charts if c.get("kind") == "lines") <= 14
    assert path.stat().st_size < 3e6


def test_two_groups_of_test_rows_have_two_comparisons(made: Made, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", Plan(n_test=60))
    results = [*made.results[:2], other.evaluate(Centroid(), "other")]
    page = Page(made.again(tmp_path / "r", results))
    anchors = [attrs.get("id") for tag, attrs in page.elements if tag == "section"]
    assert anchors[:2] == ["tests-1", "tests-2"]
    assert "toy, 200 test images" in page.text
    assert "toy, 60 test images" in page.text


def test_no_results_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="list of results is empty"):
        build_report([], tmp_path / "r")


def test_the_index_lists_only_reports(tmp_path: Path, made: Made) -> None:
    (tmp_path / "foreign.html").write_text("<title>not ours</title>", encoding="utf-8")
    shutil.copy(made.page, tmp_path / "toy.html")
    page = Page(write_index(tmp_path))
    assert "not ours" not in page.text
    assert "6 methods" in page.text
    assert "Image classification on toy" in page.text


def test_titles_in_the_index_stay_text(tmp_path: Path, hostile: Made) -> None:
    hostile.again(tmp_path / "x", title='"><script>alert(5)</script>')
    page = Page(write_index(tmp_path))
    assert '"><script>alert(5)</script>' in page.text
    assert page.count("script") == 1


def test_an_empty_folder_has_an_index_too(tmp_path: Path) -> None:
    assert "There is no report here yet" in Page(write_index(tmp_path)).text


# -- reproduce this report -------------------------------------------------------------------------

RECIPE = {"name": "mine", "steps": [{"step": "svm"}, {"step": "centroid"}]}


def test_a_recipe_is_there_once_whatever_its_tasks(made: Made) -> None:
    results = [
        replace(result, extra={**result.extra, "recipe": {"task": result.method, **RECIPE}})
        for result in made.results[:2]
    ]
    assert recipes_of(made.data(results)) == [RECIPE]
    assert recipes_of(made.data()) == []


def test_the_page_names_the_recipes_of_its_results_and_its_own(made: Made, tmp_path: Path) -> None:
    results = [
        replace(result, extra={**result.extra, "recipe": {**RECIPE, "name": name}})
        for result, name in zip(made.results, ("first", "<second>"), strict=False)
    ]
    context = Context(made.world.workspace, recipe={"task": "report", "name": "third"})
    page = Page(build_report(results, tmp_path / "r", context=context))
    assert "Recipes that made these results:" in page.text
    assert {"first", "<second>"} == set(
        page.text.partition("made these results: ")[2].partition(".")[0].split(", ")
    )
    assert "Recipe that made this page: third." in page.text
    metas = {a["name"]: a["content"] for tag, a in page.elements if tag == "meta" and "name" in a}
    assert metas["recipe"] == "third"
    assert "Recipe that made" not in Page(made.page).text


def test_commands_are_listed_once_stores_first(made: Made, tmp_path: Path) -> None:
    text = Page(made.page).text
    first = text.index("featpipe extract --model toynet")
    assert first < text.index("featpipe svm")
    bare = [replace(r, command="", stores=[]) for r in made.results[:1]]
    page = Page(made.again(tmp_path / "r", bare))
    assert "Command not recorded (made from Python)" in page.text


def test_a_step_can_be_pasted_into_a_recipe(made: Made) -> None:
    method = made.data().methods[0]
    settings = {k: v for k, v in method.result.settings.items() if v is not None}
    assert yaml.safe_load(step(method)) == {method.result.method: settings}


def test_everything_that_identifies_a_result_is_named(made: Made, tmp_path: Path) -> None:
    result = replace(
        made.results[0],
        extra={
            "network": {"model": "resnet18", "weights": {"name": "v1", "url": None}},
            "label_map": {"name": "narrow", "fingerprint": "f" * 64},
        },
    )
    text = Page(made.again(tmp_path / "r", [result])).text.replace(" ,", ",")
    digest = result.dataset["test"]["fingerprint"][:16]
    for known in (
        "Run on 2024-05-02T09:30:00+00:00",
        f"Result {result.name}, key {result.key[:16]}",
        "Seed 0",
        "Network resnet18, weights name v1 ",
        f"Label map narrow, {'f' * 16} ",
        f"Test images npz:toy.npz test, 200 images, fingerprint {digest}",
        "Features of test toynet avgpool, store",
        "Images of train npz:toy.npz train, 120 images, fingerprint",
        "Weights (train) name none, sha256 000",
        "Versions Python 3",
        "Hardware platform",
    ):
        assert known in text, known


def in_int8(made: Made, tmp_path: Path) -> Result:
    """Return the first result as if the features of its test rows were of int8."""
    result = copy.deepcopy(made.results[0])
    for store in result.stores:
        lower = {"runtime": "openvino", "precision": "int8", "calibration": "0" * 64}
        store["manifest"]["backbone"] |= lower
        cosine = {"avgpool": {"mean": 0.99321, "min": 0.97821}}
        store["run"] |= {"precision": "int8"}
        store["run"] |= {"against_float32": {"images": 64, "cosine": cosine, "seconds": 1.0}}
    result.key = f"8{result.key[1:]}"
    assert made.results[0].path is not None
    for file in made.results[0].files.values():
        source = next(made.world.workspace.root.rglob(file))
        shutil.copy(source, tmp_path / file)
    result.save(tmp_path / "int8.json")
    return result


def test_a_lower_precision_is_shown_with_its_cost(made: Made, tmp_path: Path) -> None:
    lower = in_int8(made, tmp_path)
    page = Page(made.again(tmp_path / "alone.html", [lower]))
    assert "Precision (test) int8; cosine to float32 on 64 images: avgpool 0.99321 (mean)" in (
        page.text
    )


def test_a_mapped_classifier_shows_what_disputed_rows_matter(made: Made, tmp_path: Path) -> None:
    disputed = {
        "group": "<b>antelopes</b>",
        "source_classes": ["impala", "gazelle"],
        "target": "other",
        "otherwise": "deer",
        "changed": 321,
        "accuracy": 0.6932,
        "difference": 0.0548,
    }
    result = copy.deepcopy(made.results[0])
    result.extra["label_map"] = {
        "name": "mine.csv",
        "fingerprint": "0" * 64,
        "disputed": [disputed],
    }
    path = made.again(tmp_path / "mapped", [result])
    page = Page(path)
    assert "If these source classes were mapped otherwise" in page.text
    assert "<b>antelopes</b> impala, gazelle other deer 321 69.32 +5.48" in page.text
    table = pd.read_csv(tmp_path / "mapped-tables" / "disputed.csv")
    assert table["source_classes"].tolist() == ["impala, gazelle"]
    assert table["accuracy"].tolist() == [0.6932]
    assert "mapped otherwise" not in Page(made.page).text


def test_a_backbone_that_may_have_seen_the_images_is_named_first(
    made: Made, tmp_path: Path
) -> None:
    results = copy.deepcopy(made.results[:2])
    for result in results:
        result.extra["contamination"] = "The backbone may have seen test images."
    text = Page(made.again(tmp_path / "seen", results)).text
    assert text.count("The backbone may have seen test images.") == 1
    assert text.index("may have seen test images") < text.index("Confusion matrix")


def test_published_rows_say_what_their_source_leaves_open(made: Made, tmp_path: Path) -> None:
    named = ("cifar10/resnet_scratch_adam_stem_pool",)
    text = Page(made.again(tmp_path / "published", reference=named)).text
    assert "The order of the two listings in the source is ambiguous." in text
