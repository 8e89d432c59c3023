"""What stands on the page, and that it stands there whatever the results are like."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featpipe.errors import ResultError, UsageError
from featpipe.report import ReportOptions, build_report, run_report, write_index
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.steps.old import CentroidStep, Context, LogisticStep, ReportStep, SvmStep
from tests.report.conftest import Made
from tests.report.making import HOSTILE, Plan, make_world


class Page(HTMLParser):
    """Elements, text outside scripts and styles, and the data of charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.charts: list[dict[str, Any]] = []
        self._inside = ""
        self._json = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        self._json = dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._json:
            self.charts.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_the_numbers_on_the_page_are_those_of_the_results(made: Made) -> None:
    page = Page(made.page)
    for result in made.results:
        accuracy = result.summary["accuracy"]
        assert result.title in page.text
        assert f"{100 * accuracy['value']:.2f}" in page.text
        assert f"{100 * accuracy['low']:.2f}" in page.text
    drawn = next(chart for chart in page.charts if chart.get("kind") == "intervals")
    assert {entry["value"] for entry in drawn["entries"]} == {
        result.summary["accuracy"]["value"] for result in made.results
    }


def test_every_part_the_results_have_is_there(made: Made) -> None:
    page = Page(made.page)
    for part in (
        "ROC curves", "Precision-recall curves", "Reliability curve", "Confusion matrix",
        "Validation accuracy by C", "Validation accuracy by k", "Loss", "Learning rate",
        "Gradient flow", "Most confused", "Surest errors", "Wrong by every method",
        "Where two methods disagree", "Accuracy with few labels", "Spread over models",
        "featpipe extract --model toynet", "fingerprint", "seed 0",
    ):  # fmt: skip
        assert part in page.text, part
    assert {chart.get("kind") for chart in page.charts} >= {"lines", "intervals", "scatter"}
    assert page.count("symbol") > 20  # thumbnails


def test_each_thumbnail_is_embedded_once(made: Made) -> None:
    page = Page(made.page)
    embedded = [attrs["href"] for tag, attrs in page.elements if tag == "image"]
    used = [attrs["href"] for tag, attrs in page.elements if tag == "use"]
    names = {attrs["id"] for tag, attrs in page.elements if tag == "symbol"}
    assert len(embedded) == len(set(embedded)) < len(used)
    assert {str(name).removeprefix("#") for name in used} == names


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
    again = made.again(tmp_path / "toy", list(reversed(made.results)))
    assert again.read_bytes() == made.page.read_bytes()
    tables = made.page.with_name("toy-tables")
    names = sorted(path.name for path in tables.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "toy-tables").iterdir())
    for name in names:
        assert (tables / name).read_bytes() == (tmp_path / "toy-tables" / name).read_bytes()


def test_a_recipe_stands_once_whatever_its_tasks(made: Made, tmp_path: Path) -> None:
    recipe = {"name": "mine", "steps": [{"step": "svm"}, {"step": "centroid"}]}
    results = [
        replace(result, extra={**result.extra, "recipe": {"task": result.method, **recipe}})
        for result in made.results[:2]
    ]
    text = made.again(tmp_path / "toy", results).read_text()
    assert text.count("name: mine\n") == 1


def test_csv_tables_hold_unrounded_numbers(made: Made) -> None:
    tables = made.page.with_name("toy-tables")
    comparison = pd.read_csv(tables / "comparison.csv").set_index("name")
    for result in made.results:
        assert comparison.loc[result.name, "accuracy"] == result.summary["accuracy"]["value"]
    confusion = pd.read_csv(tables / "confusion.csv")
    first = made.results[0]
    assert confusion[confusion["result"] == first.name]["images"].sum() == 200
    errors = pd.read_csv(tables / "errors.csv")
    assert (errors["true"] != errors["answer"]).all()


def test_a_table_that_has_no_rows_any_more_goes_away(made: Made, tmp_path: Path) -> None:
    made.again(tmp_path / "toy")
    assert (tmp_path / "toy-tables" / "low-shot.csv").exists()
    made.again(tmp_path / "toy", made.results[:1])
    assert not (tmp_path / "toy-tables" / "low-shot.csv").exists()


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


def test_one_method_says_nothing_of_better(made: Made, tmp_path: Path) -> None:
    page = Page(made.again(tmp_path / "one", made.results[:1]))
    assert "no other method was tested on them" in page.text
    assert "Where two methods disagree" not in page.text
    assert "no result has several models" in page.text


def test_missing_images_and_stores_are_said(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.world.workspace.root, tmp_path / "moved")
    workspace = replace(made.world.workspace, root=tmp_path / "moved")
    results = [Result.load(path) for path in sorted(workspace.results.glob("svm.json"))]
    result = results[0]
    result.stores[-1]["path"] = "gone.h5"
    result.stores[-1]["run"]["source"] = {"dataset": f"npz:{tmp_path / 'gone.npz'}"}
    page = Page(build_report([result], tmp_path / "r", ReportOptions(workspace=workspace)))
    assert "No images:" in page.text
    assert "no image" in page.text
    assert "feature store is not on the disk any more" in page.text
    found = tmp_path / "moved" / "toy.npz"
    shutil.copy(found, tmp_path / "gone-data.npz")
    result.stores[-1]["run"]["source"] = {"dataset": f"npz:{tmp_path / 'elsewhere' / 'toy.npz'}"}
    options = ReportOptions(workspace=workspace, data=tmp_path / "moved")
    assert Page(build_report([result], tmp_path / "r", options)).count("symbol") > 0


def test_changed_images_are_doubted(made: Made, tmp_path: Path) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    result.dataset["test"] = {**result.dataset["test"], "fingerprint": "0" * 64}
    page = Page(made.again(tmp_path / "r", [result]))
    assert "its fingerprint differs" in page.text


def test_no_errors_at_all(tmp_path: Path) -> None:
    world = make_world(tmp_path, Plan(classes=("a", "b"), n_train=20, n_test=20, noise=0.01))
    results = [world.evaluate(SvmStep(), "svm"), world.evaluate(LogisticStep(), "logistic")]
    options = ReportOptions(workspace=world.workspace)
    page = Page(build_report(results, tmp_path / "r", options))
    assert "No test image is misclassified." in page.text
    assert "classified correctly by at least one method" in page.text
    assert "not distinguishable" in page.text


def test_many_classes_are_drawn_not_tabled(tmp_path: Path) -> None:
    names = tuple(f"class {i:03d}" for i in range(200))
    world = make_world(tmp_path, Plan(names, n_train=400, n_test=400, side=12, noise=1.0))
    results = [world.evaluate(CentroidStep(), "centroid")]
    options = ReportOptions(workspace=world.workspace, gallery=4)
    path = build_report(results, tmp_path / "r", options)
    page = Page(path)
    matrix = [chart for chart in page.charts if chart.get("kind") == "matrix"]
    assert len(matrix[0]["classes"]) == 200
    assert sum(cell[2] for cell in matrix[0]["cells"]) == 400
    assert max(len(c["series"]) for c in page.charts if c.get("kind") == "lines") <= 14
    assert path.stat().st_size < 3e6


def test_a_method_without_scores(made: Made, tmp_path: Path) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    table = replace(result.predictions(), scores=None)
    table.save(tmp_path / "bare.npz")
    result.files = {"predictions": "bare.npz"}
    result.save(tmp_path / "bare.json")
    page = Page(made.again(tmp_path / "r", [result]))
    assert "this method gives neither scores nor probabilities" in page.text


def test_predictions_without_an_answer_for_every_row_are_damaged(
    made: Made, tmp_path: Path
) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    whole = result.predictions()
    PredictionTable(
        whole.ids, whole.true, whole.row[1:], whole.split[1:], whole.predicted[1:], None
    ).save(tmp_path / "cut.npz")
    result.files = {"predictions": "cut.npz"}
    result.save(tmp_path / "cut.json")
    with pytest.raises(ResultError, match="damaged"):
        made.again(tmp_path / "r", [result])


def test_two_groups_of_test_rows_have_two_comparisons(made: Made, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", Plan(n_test=60))
    results = [*made.results[:2], other.evaluate(CentroidStep(), "other")]
    page = Page(made.again(tmp_path / "r", results))
    anchors = [attrs.get("id") for tag, attrs in page.elements if tag == "section"]
    assert anchors[:2] == ["tests-1", "tests-2"]
    assert "npz:toy.npz, 200 test images" in page.text
    assert "npz:toy.npz, 60 test images" in page.text


def test_stored_overlays_are_shown(made: Made, tmp_path: Path) -> None:
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    shutil.copy(made.results[0].path.with_name("svm.predictions.npz"), tmp_path)  # type: ignore[union-attr]
    table = result.predictions()
    wrong = str(table.ids[table.row[~table.correct][0]])
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(tmp_path / "cam.png")
    result.extra["explanations"] = [{"id": wrong, "file": "cam.png"}]
    result.extra["explained"] = {"layer": "layer4", "strength": 0.5, "by": "Grad-CAM"}
    result.save(tmp_path / "svm.json")
    page = Page(made.again(tmp_path / "r", [result]))
    assert "What the network looked at" in page.text
    assert "layer4" in page.text
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.elements if tag == "svg"]
    assert f"Grad-CAM overlay of {wrong}" in labels


def test_the_command_writes_page_tables_and_index(made: Made) -> None:
    context = Context(made.world.workspace)
    outcome = run_report(ReportStep(results=("svm", "logistic")), context)
    page, index = outcome.paths
    assert page == made.world.workspace.reports / "npz-toy.html"
    listed = Page(index)
    assert "toy.html" in [attrs.get("href") for tag, attrs in listed.elements if tag == "a"]
    assert "highest accuracy" in listed.text


def test_all_and_names_exclude_each_other(made: Made) -> None:
    with pytest.raises(UsageError, match="--all"):
        run_report(ReportStep(results=("svm",), all=True), Context(made.world.workspace))


def test_index_lists_only_reports(tmp_path: Path, made: Made) -> None:
    (tmp_path / "foreign.html").write_text("<title>not ours</title>", encoding="utf-8")
    shutil.copy(made.page, tmp_path / "toy.html")
    page = Page(write_index(tmp_path))
    assert "not ours" not in page.text
    assert "6 methods" in page.text


def test_a_report_loads_no_torch(made: Made, tmp_path: Path) -> None:
    result, out = str(made.results[0].path), str(tmp_path / "r")
    code = (
        "import sys; from pathlib import Path\n"
        "from featpipe.report import build_report; from featpipe.evaluation.result import Result\n"
        f"build_report([Result.load({result!r})], Path({out!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
