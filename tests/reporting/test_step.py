"""What a recipe fills in, and what is written: nothing foreign is replaced or trusted."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featpipe.errors import FeatpipeError, UsageError
from featpipe.probes.nearest_mean import Centroid
from featpipe.reporting.page import write_index
from featpipe.reporting.step import (
    PAGE_MARK,
    Report,
    changed_files,
    replace_files,
    tables_folder,
)
from featpipe.steps import Context
from featpipe.workspace import Workspace, neutralise_cell, restore_cell
from tests.damage import NAMES, VARIANTS, damaged
from tests.reporting.conftest import HOSTILE, Made, Page, Plan, make_world

PAGE = '<meta name="generator" content="featpipe report">\n<title>t</title>accuracy 0.9875'
TABLES = {"models.csv": "name,accuracy\na,0.9875\nb,0.5125\n", "per-class.csv": "class,n\nx,30\n"}


def test_the_recipe_names_the_page() -> None:
    reports = Workspace(Path("w")).reports
    assert Report().placed("mine", "", Workspace(Path("w"))).out == reports / "mine"
    assert Report().placed("mine", "b", Workspace(Path("w"))).out == reports / "mine-b"
    assert Report(out="x").placed("mine", "b", Workspace(Path("w"))).out == Path("x")


def test_results_of_other_steps_are_added_to_those_named() -> None:
    made = [[Path("a.json"), Path("a.skops")], [Path("b.json")]]
    bound = Report(results="known", dataset="stl10").bind(made)
    assert bound.results == ("known", "a.json", "b.json")
    assert bound.dataset is None, "results are named, so nothing else is chosen"
    assert Report(dataset="stl10").bind([]).dataset == "stl10"
    assert Report(all=True).bind(made).results is None


def test_it_needs_results_unless_it_names_them() -> None:
    assert not Report().has_inputs()
    assert Report(results="a").has_inputs()
    assert Report(all=True).has_inputs()


def test_a_dataset_chooses_among_the_steps_of_a_recipe() -> None:
    stl10: Any = SimpleNamespace(dataset="stl10")
    assert Report().accepts(stl10)
    assert Report(dataset="stl10").accepts(stl10)
    assert not Report(dataset="digits").accepts(stl10)


def test_two_reports_conflict_where_they_write_one_file() -> None:
    assert Report(out="r/a").output() == Report(out="r/a.html", title="T").output()
    assert Report(out="r/a").output() != Report(out="r/a.b").output()


def test_all_and_names_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--all"):
        Report(results=("svm",), all=True)


def test_the_command_writes_page_tables_and_index(made: Made) -> None:
    outcome = Report(results=("svm", "logistic")).run(Context(made.world.workspace))
    page, index = outcome.paths
    assert page == made.world.workspace.reports / "npz-toy.html"
    assert page.with_name("npz-toy-tables").is_dir()
    assert outcome.facts["results"] == ["svm", "logistic"]
    assert outcome.facts["bytes"] == page.stat().st_size
    assert (outcome.facts["failures"], outcome.exit_code) == ([], 0)
    listed = Page(index)
    assert "toy.html" in [attrs.get("href") for tag, attrs in listed.elements if tag == "a"]
    assert "tie at 80.5" in listed.text


def test_no_recipe_overwrites_the_page_of_another(made: Made, tmp_path: Path) -> None:
    def run(recipe: str | None) -> None:
        context = Context(made.world.workspace, recipe=recipe and {"name": recipe})
        Report(results=("svm",), out=tmp_path / "page").run(context)

    run("mine")
    run("mine")
    with pytest.raises(UsageError, match="would overwrite what the recipe 'mine' made"):
        run("yours")
    run(None)  # a user who names the file means it
    run("yours")


def run_python(code: str) -> list[str]:
    """Return the words that a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_step_brings_nothing_heavy() -> None:
    heavy = ["torch", "sklearn", "pandas", "scipy", "h5py", "numpy", "PIL", "jinja2", "click"]
    code = f"import sys, featpipe.reporting.step; print(*[m for m in {heavy} if m in sys.modules])"
    assert run_python(code) == []


def test_a_report_loads_no_torch(made: Made, tmp_path: Path) -> None:
    step = Report().replace(results=(str(made.results[0].path),), out=tmp_path / "r")
    code = (
        "import sys; from pathlib import Path, PosixPath, WindowsPath\n"
        "from featpipe.reporting.step import Report; from featpipe.steps import Context\n"
        "from featpipe.workspace import Workspace\n"
        f"{step!r}.run(Context(Workspace(Path({str(tmp_path)!r}))))\n"
        "print(*[m for m in ('torch', 'torchvision') if m in sys.modules])"
    )
    assert run_python(code) == []


# -- the files of a report -------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with two tables."""
    path = tmp_path / "reports" / "toy.html"
    replace_files(path, PAGE, TABLES, force=False)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@pytest.mark.parametrize("name", ["toy.html", "toy-tables/models.csv", "toy-tables/SHA256SUMS"])
def test_a_damaged_file_is_named_and_written_again(page: Path, name: str, variant: Any) -> None:
    before, file = content(page.parent), page.parent / name
    file.write_bytes(damaged(file.read_bytes(), variant))
    if not name.endswith("SHA256SUMS"):
        assert changed_files(page) == [file]
        index = write_index(page.parent)
        listed = PAGE_MARK in page.read_bytes()  # else it is no page any more
        assert ("do not trust it" in index.read_text()) == listed
        index.unlink()
    replace_files(page, PAGE, TABLES, force=True)
    assert changed_files(page) == []
    assert content(page.parent) == before


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="the tool is not here")
def test_the_sums_are_those_of_the_usual_tool(page: Path) -> None:
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    folder = tables_folder(page)
    ended = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("OK") == 3
    page.write_text(PAGE.replace("0.98", "0.99"))
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    "name",
    ["toy.html", "toy-tables/models.csv", "toy-tables/SHA256SUMS", "toy-tables/models.csv/x"],
)
def test_a_file_of_others_is_not_replaced(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("my own work")
    with pytest.raises((UsageError, FeatpipeError)):
        replace_files(tmp_path / "toy.html", PAGE, TABLES, force=False)
    assert content(tmp_path) == {name: b"my own work"}
    if not name.endswith("/x"):
        replace_files(tmp_path / "toy.html", PAGE, TABLES, force=True)
        assert changed_files(tmp_path / "toy.html") == []


def test_what_others_put_beside_the_tables_stays(page: Path) -> None:
    mine = tables_folder(page) / "mine.csv"
    mine.write_text("my own work")
    replace_files(page, PAGE, {"models.csv": "name\n"}, force=False)
    assert mine.read_text() == "my own work"
    assert not (tables_folder(page) / "per-class.csv").exists()  # an earlier page had it
    with pytest.raises(UsageError, match="did not write"):
        replace_files(page, PAGE, {"mine.csv": "x"}, force=False)


def test_sums_name_nothing_outside_of_their_folder(page: Path) -> None:
    victim = page.parent.parent / "victim.csv"
    victim.write_text("mine")
    with (tables_folder(page) / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../../victim.csv\n{'0' * 64}  {victim}\n")
    assert changed_files(page) == []
    replace_files(page, PAGE, TABLES, force=False)
    assert victim.read_text() == "mine"


def test_tables_of_an_earlier_version_are_replaced(page: Path) -> None:
    (tables_folder(page) / "SHA256SUMS").unlink()
    replace_files(page, PAGE, {"models.csv": "name\n"}, force=False)
    assert changed_files(page) == []


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_report_that_was_stopped_is_finished_by_the_next(
    page: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == stop:
            raise OSError(errno.ENOSPC, "No space left on device")

    tables = {"models.csv": "name\n", "new.csv": "x\n"}
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(FeatpipeError, match="No space left"):
            replace_files(page, PAGE + "new", tables, force=False)
    replace_files(page, PAGE + "new", tables, force=False)
    assert changed_files(page) == []
    assert sorted(content(page.parent)) == [
        *(f"toy-tables/{name}" for name in ("SHA256SUMS", "models.csv", "new.csv")),
        "toy.html",
    ]


def test_the_list_of_others_is_left_alone(page: Path) -> None:
    index = page.with_name("index.html")
    index.write_text("<title>my own site</title>")
    with pytest.raises(UsageError, match="did not write"):
        write_index(page.parent)
    assert index.read_text() == "<title>my own site</title>"
    write_index(page.parent, force=True)
    write_index(page.parent)


def test_class_names_that_are_formulas_stay_text(tmp_path: Path) -> None:
    names = ("=HYPERLINK(1)", "+1", "-2", "@x", "\tcat", "'=quoted", *HOSTILE)
    world = make_world(tmp_path, Plan(classes=names, n_train=60, n_test=60))
    page = world.report([world.evaluate(Centroid(), "centroid")], tmp_path / "toy")
    seen = set()
    for table in tables_folder(page).glob("*.csv"):
        with table.open(newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        for cell in cells:
            number = cell.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit()
            assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
        seen |= {restore_cell(cell) for cell in cells if cell.startswith("'")}
    assert {name for name in names if neutralise_cell(name) != name} <= seen


@pytest.mark.skipif(os.name != "posix", reason="/proc")
def test_a_place_that_cannot_be_written_is_named(made: Made) -> None:
    with pytest.raises(FeatpipeError) as caught:
        made.again(Path("/proc/toy"))
    assert "/proc/toy" in caught.value.details["where"]
    assert "place" in caught.value.details["next"]
