"""Datasets of other packages: a class in one file and an entry point are all there is to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featpipe.datasets.dataset import DatasetOptions

REPOSITORY = Path(__file__).resolve().parents[2]
DOORS = Path(__file__).parents[1] / "doors"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with two installed packages, each of one module with one dataset."""
    folder = tmp_path_factory.mktemp("packages")
    for name, kind in (("rings", "Rings"), ("shapes", "Shapes")):
        shutil.copy(DOORS / f"{name}.py", folder)
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[featpipe.datasets]\n{name} = {name}:{kind}\n")
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run Python where these packages are installed; return what it prints."""

    def run(*arguments: str) -> str:
        path = os.pathsep.join([str(installed), str(REPOSITORY)])
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def test_they_are_listed_with_the_others(run):
    listed = run("-m", "featpipe", "datasets")
    assert "Rings and discs" in listed
    assert "shapes:NAME/NAME*N" in listed
    assert "stl10" in listed


def test_a_dataset_by_name(run):
    script = (
        "from featpipe.datasets import short_name, slug\n"
        "from featpipe.datasets.dataset import *\n"
        "options = DatasetOptions(seed=1)\n"
        "train, test = [open_source('rings', s, options) for s in splits_of('rings', options)]\n"
        "print(len(train), train.classes, train.read(0).shape, short_name('rings'))\n"
        "print(train.fingerprint == open_source('rings', 'train', options).fingerprint)\n"
        "print(train.fingerprint != test.fingerprint)\n"
    )
    assert run("-c", script).splitlines() == [
        "20 ('ring', 'disc') (16, 16, 3) rings", "True", "True",
    ]  # fmt: skip


def test_an_argument_that_is_not_a_path(run):
    script = (
        "from pathlib import Path\n"
        "from featpipe.datasets import short_name, slug\n"
        "from featpipe.datasets.dataset import *\n"
        "spec = 'shapes:dark/bright*30'\n"
        "print(short_name(spec), slug(spec))\n"
        "request = SourceRequest(spec, data=Path('.'))\n"
        "kept = SourceRequest.from_dict(request.as_dict())\n"
        "print(kept.dataset, kept.moved(Path('/')).dataset)\n"
        "print(len(kept.open('all', DatasetOptions(data=kept.data))))\n"
    )
    assert run("-c", script).splitlines() == [
        "shapes:dark/bright*30 shapes-dark-bright-30",
        "shapes:dark/bright*30 shapes:dark/bright*30",
        "30",
    ]


def test_its_argument_is_asked_for(run):
    script = (
        "from featpipe.datasets.dataset import *\nfrom featpipe.errors import UsageError\n"
        "try: splits_of('shapes', DatasetOptions())\nexcept UsageError as error: print(error)"
    )
    assert "needs a query" in (text := run("-c", script))
    assert "shapes:QUERY" in text


def test_its_features_are_extracted_once(run, tmp_path):
    extract = (
        "-m",
        "featpipe",
        "extract",
        "--model",
        "glyphnet",
        "--dataset",
        "shapes:dark/bright*6",
    )
    assert "shapes:dark/bright*6 all: 6 images" in run(*extract)
    assert "up to date" in run(*extract)
    (store,) = (tmp_path / "data" / "features").rglob("*.h5")
    assert store.parent.parent.name == "shapes-dark-bright-6"


def test_the_example_of_the_documentation():
    text = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
    example = text.partition("## Adding a dataset")[2].partition("```python\n")[2]
    namespace = {}
    exec(example.partition("```")[0], namespace)
    source = namespace["Noise"]("30", DatasetOptions()).open("test")
    assert (source.name, len(source)) == ("noise:30", 30)
