"""Sections of another package are as the built-in ones; nothing of the data becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from featpipe.reporting.sections import (
    count,
    duration,
    environment,
    flags,
    number_axis,
    p_value,
    percent,
    points,
    render_page,
    size,
)
from tests.reporting.conftest import Made, Page

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reports.md"

MORE = r"""

from markupsafe import Markup


class Escaped(Section):
    name, title = "escaped", "Escaped <of> all"

    def content(self, data):
        return Content("Every <b>method</b>")


class Marked(Section):
    name, title = "marked", "Marked"

    def content(self, data):
        return Content(Markup("<p><em>Markup</em></p>"))


class Failing(Section):
    name, title = "failing", "Failing"

    def content(self, data):
        raise ValueError("no <b>meter</b>\nmore")


class NoNumbers(Section):
    name, title = "no-numbers", "No numbers"

    def content(self, data):
        return Content(figures=[Chart("Energy", {"kind": "lines", "y": float("nan")})])


class Again(Section):
    name, title = "again", "Again"

    def content(self, data):
        return Content(tables={"errors": pd.DataFrame({"x": [1]})})
"""
BROKEN = {
    "failing": "ValueError: no <b>meter</b>",
    "no-numbers": "ValueError: Out of range float values are not JSON compliant",
    "again": "UsageError: Two sections of the page give a table 'errors'.",
    "gone": "UsageError: The section 'gone' cannot be loaded",
}


@pytest.fixture(scope="module")
def report(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any]]:
    """Return a page that a fresh process made where another package is installed; its outcome."""
    tmp_path = tmp_path_factory.mktemp("report")
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
        "failing = calibrated:Failing\nno-numbers = calibrated:NoNumbers\n"
        "again = calibrated:Again\ngone = calibrated:Gone\n"
    )
    names = [str(result.path) for result in made.results[:2]]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "featpipe",
            "report",
            *names,
            "--json",
            "--out",
            str(tmp_path / "page"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    return Page(tmp_path / "page.html"), json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture
def page(report: tuple[Page, dict[str, Any]]) -> Page:
    return report[0]


def test_a_section_of_another_package_is_on_the_page(report: Any) -> None:
    page, outcome = report
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert sections[-8:] == ["calibration", "escaped", "marked", *BROKEN, "provenance"]
    links = [attrs.get("href") for tag, attrs in page.elements if tag == "a"]
    assert "#calibration" in links
    assert "page-tables/calibration.csv" in links
    table = pd.read_csv(Path(outcome["paths"][0]).with_name("page-tables") / "calibration.csv")
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


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_fails_leaves_a_note_in_its_place(report: Any, name: str) -> None:
    page, outcome = report
    why = f"the package 'calibrated' failed with {BROKEN[name]}"
    assert f"{name}: {why}" in page.text
    assert page.count("b") == 0
    (said,) = [line for line in outcome["failures"] if f"'{name}'" in line]
    assert said.startswith(f"section '{name}' is not on the page: {why}")
    assert said in outcome["message"]


def test_a_report_that_lacks_a_section_is_written_and_ends_with_1(report: Any) -> None:
    outcome = report[1]
    assert (outcome["status"], outcome["exit_code"]) == ("done", 1)


def test_an_axis_of_orders_of_magnitude_is_logarithmic() -> None:
    assert number_axis("C", [0.001, 1])["log"]
    assert not number_axis("k", [1, 5, 19])["log"]
    assert not number_axis("momentum", [0, 100])["log"]


# -- numbers and templates -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "value", "text"),
    [
        (percent, 0.8365, "83.65"),
        (points, -0.0123, "−1.23"),
        (points, 0.5, "+50.00"),
        (p_value, 0.0321, "0.032"),
        (p_value, 1e-9, "< 0.001"),
        (duration, 0.01234, "12\u00a0ms"),
        (duration, 1.4, "1.4\u00a0s"),
        (duration, 75.3, "75\u00a0s"),
        (duration, 376, "6.3\u00a0min"),
        (duration, 12345.6, "3.4\u00a0h"),
        (duration, 0, "0\u00a0s"),
        (count, 20490, "20\u202f490"),
        (size, 12, "12\u00a0B"),
        (size, 164_123, "164\u00a0KB"),
        (size, 16_400_000, "16.4\u00a0MB"),
        (size, 2e9, "2\u00a0GB"),
    ],
)
def test_numbers(format_: Callable[[object], str], value: object, text: str) -> None:
    assert format_(value) == text


@pytest.mark.parametrize("format_", [percent, p_value, duration, count, size])
def test_a_number_that_is_not_known_is_a_dash(format_: Callable[[None], str]) -> None:
    assert format_(None) == "–"


def test_data_cannot_end_its_script() -> None:
    template = environment().from_string("<script>{{ value|data }}</script>")
    text = template.render(value={"name": "</script><!-- & 'é'"})
    assert re.fullmatch(r"<script>[^<>&]*</script>", text)
    with pytest.raises(ValueError, match="Out of range"):
        template.render(value=float("nan"))


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page(tag: str) -> None:
    text = str(render_page("index.html.j2", title="Reports", reports=[]))
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}';" in html.unescape(text)


def test_names_of_options_do_not_break_and_all_else_is_escaped() -> None:
    marked = flags("<b> --leaks drop & --no-download.")
    spans = '<span class="flag">--leaks</span> drop', '<span class="flag">--no-download</span>.'
    assert str(marked) == f"&lt;b&gt; {spans[0]} &amp; {spans[1]}"
