"""What a recipe fills in, what the command writes, and what importing it brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featpipe.errors import UsageError
from featpipe.reporting.step import Report
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests.reporting.conftest import Made, Page


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
