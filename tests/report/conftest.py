"""One small world of results for all tests of reports; making it takes a few seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from featpipe.report import ReportOptions, build_report, write_index
from featpipe.evaluation.result import Result
from tests.report.making import HOSTILE, Plan, World, add_training, make_world, some_results


@dataclass(frozen=True)
class Made:
    """A world with its results and a report of them."""

    world: World
    results: list[Result]
    page: Path

    def again(self, out: Path, results: list[Result] | None = None, **choices: object) -> Path:
        """Build another report in the same world."""
        options = ReportOptions(workspace=self.world.workspace, **choices)  # type: ignore[arg-type]
        return build_report(results or self.results, out, options)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Six methods on a dataset of four classes, with training curves and a low-shot curve."""
    world = make_world(tmp_path_factory.mktemp("world"))
    results = some_results(world)
    results.append(add_training(results[0]))
    options = ReportOptions(workspace=world.workspace)
    page = build_report(results, world.workspace.reports / "toy", options)
    write_index(world.workspace.reports)
    return Made(world, results, page)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dataset whose class names, and a method whose title, try to break out of the page."""
    plan = Plan(classes=HOSTILE, n_train=40, n_test=40)
    world = make_world(tmp_path_factory.mktemp("hostile"), plan)
    results = some_results(world)[:2]
    results[0].title = "</title></script><script>alert(3)</script>"
    results[0].notes.append("<b onclick=alert(4)>a note</b>")
    results[0].save(results[0].path)  # type: ignore[arg-type]
    options = ReportOptions(workspace=world.workspace)
    page = build_report(results, world.workspace.reports / "hostile", options)
    return Made(world, results, page)
