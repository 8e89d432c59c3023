"""The door for other people's probes: one file, one entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featpipe.evaluation.models import load_model
from featpipe.evaluation.result import Result
from tests.evaluation.methods import pair

LDA = (Path(__file__).parents[1] / "doors" / "lda.py").read_text()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds the module and its metadata, as an installed package leaves them."""
    site = tmp_path / "site"
    metadata = site / "somebodys_lda-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "somebodys_lda.py").write_text(LDA)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-lda\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[featpipe.steps]\nlda = somebodys_lda:Lda\n")
    return site


def run(installed: Path, code: str) -> str:
    """Run Python with the package installed; return what it prints."""
    path = os.pathsep.join([str(installed), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_probe_of_another_package_is_trained_tested_and_saved(tmp_path: Path, installed: Path):
    train, test = pair(tmp_path, noise=1.0)
    printed = run(
        installed,
        "from pathlib import Path; from featpipe.steps import STEPS, Context\n"
        "from featpipe.workspace import Workspace\n"
        f"values = {{'train': {str(train.path)!r}, 'test': {str(test.path)!r}}}\n"
        "step = STEPS.get('lda').from_mapping(values)\n"
        f"context = Context(Workspace(Path({str(tmp_path)!r})))\n"
        "print(step.run(context).status, step.run(context).status, step.status(context).done)",
    )
    assert printed.split("\n")[0] == "done up to date True"
    (path,) = (tmp_path / "data" / "results").glob("*.json")
    result = Result.load(path)
    assert path.stem.startswith("toy-toynet-lda-")
    assert (result.method, result.title) == ("lda", "Linear discriminant analysis")
    assert result.splits[0]["chosen"]["shrinkage"] in (0.1, 0.5, 0.9)
    assert [row["shrinkage"] for row in result.splits[0]["search"]] == [0.9, 0.5, 0.1]
    assert result.summary["accuracy"]["value"] > 0.5
    model = load_model(tmp_path / "data" / "models" / result.files["model"])
    assert (model.estimator.predict(test.features()) == result.predictions().predicted).all()


def test_it_is_listed_without_being_imported(installed: Path):
    code = "import sys; from featpipe.steps import STEPS; print('lda' in STEPS.names())"
    code += "; print('somebodys_lda' in sys.modules)"
    assert run(installed, code).split() == ["True", "False"]
