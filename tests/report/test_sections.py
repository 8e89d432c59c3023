"""A section of another package appears on the page as the built-in ones do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from featpipe.report.sections import number_axis
from tests.report.conftest import Made, Page

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reports.md"

MORE = """

from markupsafe import Markup


class Escaped(Section):
    name, title = "escaped", "Escaped <of> all"

    def content(self, data):
        return Content("Every <b>method</b>")


class Marked(Section):
    name, title = "marked", "Marked"

    def content(self, data):
        return Content(Markup("<p><em>Markup</em></p>"))
"""


@pytest.fixture
def page(made: Made, tmp_path: Path) -> Page:
    """Return a page that a fresh process made, where another package is installed."""
    packages = tmp_path / "packages"
    info = packages / "calibrated-1.0.dist-info"
    info.mkdir(parents=True)
    chapter = DOCS.read_text(encoding="utf-8").partition("## A section of your own")[2]
    example = chapter.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) <= 40
    (packages / "calibrated.py").write_text(example + MORE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: calibrated\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[featpipe.sections]\ncalibration = calibrated:Calibration\n"
        "escaped = calibrated:Escaped\nmarked = calibrated:Marked\n"
    )
    code = (
        "from pathlib import Path; from featpipe.report.page import build_report\n"
        "from featpipe.evaluation.result import Result\n"
        f"results = [Result.load(path) for path in {[str(r.path) for r in made.results[:2]]}]\n"
        f"build_report(results, Path({str(tmp_path / 'page')!r}))"
    )
    paths = os.pathsep.join([str(packages), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return Page(tmp_path / "page.html")


def test_a_section_of_another_package_is_on_the_page(page: Page, tmp_path: Path) -> None:
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert sections[-4:] == ["calibration", "escaped", "marked", "provenance"]
    links = [attrs.get("href") for tag, attrs in page.elements if tag == "a"]
    assert "#calibration" in links
    assert "page-tables/calibration.csv" in links
    table = pd.read_csv(tmp_path / "page-tables" / "calibration.csv")
    assert list(table.columns) == ["method", "accuracy", "confidence"]
    assert len(table) == 1
    assert "1 of 2 methods give probabilities." in page.text
    drawn = next(c for c in page.charts if c.get("y", {}).get("label") == "mean confidence")
    assert [one["y"][0] for one in drawn["series"]] == table["confidence"].tolist()


def test_its_text_is_escaped_unless_it_says_markup(page: Page) -> None:
    assert "Escaped <of> all" in page.text
    assert "Every <b>method</b>" in page.text
    assert page.count("b") == 0
    assert page.count("em") == 1


def test_an_axis_of_orders_of_magnitude_is_logarithmic() -> None:
    assert number_axis("C", [0.001, 1])["log"]
    assert not number_axis("k", [1, 5, 19])["log"]
    assert not number_axis("momentum", [0, 100])["log"]
