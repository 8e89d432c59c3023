"""Six doors: what another package brings in one short file appears everywhere by itself.

A probe, a backbone, a dataset, a data source that is no path, a runtime and a report section are
installed by entry points alone, and then used from the command line and in a recipe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [path for path in Path(__file__).parent.glob("*.py") if path.stem != Path(__file__).stem]
ENTRY_POINTS = """\
[featpipe.steps]
lda = lda:Lda
[featpipe.models]
mobilenet_v3_small = mobilenet:mobilenet
[featpipe.datasets]
rings = rings:Rings
shapes = shapes:Shapes
[featpipe.runtimes]
plain = plain:Plain
coarse = plain:Coarse
[featpipe.sections]
calibration = calibration:Calibration
"""
RECIPE = """\
name: doors
steps:
  - step: extract
    each:
      - {model: mobilenet_v3_small, weights: w.safetensors, dataset: rings, runtime: plain}
      - {model: glyphnet, dataset: "shapes:dark/bright*30", runtime: plain}
      - {model: glyphnet, dataset: "shapes:dark/bright*30", runtime: coarse}
    device: cpu
  - {step: lda, grid: {shrinkage: [0.1, 0.5]}}
  - step: centroid
  - step: report
"""


@pytest.fixture(scope="module")
def featpipe(tmp_path_factory):
    """Return a function that runs the command line where the packages are installed."""
    folder = tmp_path_factory.mktemp("doors")
    site, work = folder / "site", folder / "work"
    info = site / "doors-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    for path in FILES:
        shutil.copy(path, site)
    work.mkdir()
    save_file(mobilenet_v3_small(num_classes=7).state_dict(), work / "w.safetensors")
    (work / "doors.yaml").write_text(RECIPE)

    def run(*arguments: str, module: tuple[str, ...] = ("-m", "featpipe")) -> str:
        ended = subprocess.run(
            [sys.executable, *module, *arguments],
            cwd=work,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return ended.stdout

    run.folder = work
    return run


def outcome(printed: str) -> dict:
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_one_short_file(path):
    assert len(path.read_text().splitlines()) <= 40


def test_help_lists_the_probe_and_imports_nothing_heavy(featpipe):
    code = (
        "import sys; from featpipe.cli import main\ntry: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    printed = featpipe(module=("-c", code))
    assert "lda         Train a linear discriminant analysis" in printed
    assert printed.splitlines()[-1] == "[]"
    assert "--shrinkage" in featpipe("lda", "--help")
    assert "torch|openvino|compiled|plain|coarse" in featpipe("extract", "--help")


@pytest.mark.parametrize(
    ("command", "names"),
    [("models", ["mobilenet_v3_small"]), ("datasets", ["rings", "shapes"])],
)
def test_lists_have_what_was_brought(featpipe, command, names):
    table = {row["name"]: row for row in outcome(featpipe(command, "--json"))["table"]}
    for name in names:
        assert table[name]["what"]


def test_the_plan_knows_them(featpipe):
    plan = outcome(featpipe("run", "doors.yaml", "--dry-run", "--json"))["plan"]
    tasks = {row["task"]: row["why"] for row in plan}
    for model, runtime, images in (
        ("mobilenet_v3_small", "plain", "20 of train, 20 of test"),
        ("glyphnet", "plain", "30 of all"),
        ("glyphnet", "coarse", "30 of all"),
    ):
        which = f"[model={model},runtime={runtime}]"
        assert tasks[f"extract{which}"] == f"{images} to embed"
        assert f"lda{which}" in tasks


def test_the_recipe_runs_and_the_report_shows_them(featpipe):
    ended = outcome(featpipe("run", "doors.yaml", "--json"))
    assert {task["status"] for task in ended["tasks"]} == {"done"}
    stores = [task["stores"][0] for task in ended["tasks"] if "stores" in task]
    assert [store["images"] for store in stores] == [20, 30, 30]
    assert "rings/mobilenet_v3_small" in stores[0]["path"]
    assert "shapes-dark-bright-30/glyphnet" in stores[1]["path"]
    page = (featpipe.folder / "reports" / "doors.html").read_text()
    for text in (
        "Linear discriminant analysis",
        "mobilenet_v3_small",
        "rings",
        "shapes:dark",
        "runtime coarse",
    ):
        assert text in page
    assert 'id="calibration"' in page
    table = pd.read_csv(featpipe.folder / "reports" / "doors-tables" / "calibration.csv")
    assert "Linear discriminant analysis" in " ".join(table["method"])
    again = outcome(featpipe("run", "doors.yaml", "--json"))
    done = {task["task"]: task["status"] for task in again["tasks"]}
    assert set(done.values()) == {"up to date", "done"}
    assert [name for name, status in done.items() if status == "done"] == ["report"]
