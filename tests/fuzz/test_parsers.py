"""Damaged files of every kind: an error for people or an answer; no crash, hang or memory taken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.extraction import Extract
from featpipe.finetuning.step import Finetune
from featpipe.labelmap.mapping import FOLDER
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests import images
from tests.datasets.conftest import write_stl10
from tests.fuzz.feeding import PARSERS

REPOSITORY = Path(__file__).resolve().parents[2]
DIGITS = {"model": "glyphnet", "dataset": "digits", "limit": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a whole file for every parser."""
    folder = tmp_path_factory.mktemp("whole")
    picture = Image.fromarray(images.pictures(1, 24)[0])
    for suffix in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm", "jp2"):
        picture.save(folder / f"image.{suffix}")
    picture.save(folder / "=image.png")
    (folder / "table.csv").write_text(
        "path,label,split\nimage.jpg,ant,train\n'=image.png,bee,train\nimage.gif,ant,test\n"
    )
    names = {"classes": ["ant", "bee", "cät"], "ids": list("abcd"), "split": list("aabb")}
    arrays = {"images": images.pictures(4, 8), "labels": [0, 1, 2, -1], **names}
    np.savez(folder / "data-stored.npz", **arrays)
    np.savez_compressed(folder / "data-packed.npz", **arrays)
    write_stl10(folder / "stl10_binary")
    for name in ("train_X.bin", "train_y.bin", "fold_indices.txt"):
        shutil.move(folder / "stl10_binary" / name, folder / name)
    (folder / "recipe.yaml").write_text(
        "name: all\ndefaults: {seed: 1, device: cpu}\nsteps:\n"
        "  - {step: extract, model: [glyphnet], dataset: digits, limit: 30}\n"
        "  - {step: svm, name: s, from: extract, each: [{seed: 2}, {protocol: 'kfold:5'}]}\n"
        "  - {step: knn, grid: {k: [1, 5]}}\n  - step: report\n    title: &t 'All'\n"
    )
    shutil.copy(FOLDER / "glyphs_to_digits.csv", folder / "map.csv")
    state = {k: v for k, v in images.random_state(images.MODEL).items() if v.ndim < 2}
    images.save_file(state, folder / "weights.safetensors")
    torch.save(state, folder / "weights.pt")
    torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=False)
    context = Context(Workspace(folder / "work"), jobs=1)
    shutil.copy(Extract(**DIGITS).run(context).paths[0], folder / "store.h5")
    (result,) = [path for path in Svm(c=(1e-3,)).run(context).paths if path.suffix == ".json"]
    for source in (result, *result.parent.glob(f"{result.stem}.*")):
        shutil.copy(source, folder)
    content = json.loads(result.read_text())
    shutil.copy(context.workspace.models / content["files"]["model"], folder / "model.npz")
    Knn(k=(1,)).run(context)
    (model,) = context.workspace.models.glob("*.skops")
    shutil.copy(model, folder / "model.skops")
    head = Finetune(**DIGITS, epochs=1, batch_size=8, validation=0.0).run(context).paths[0]
    (folder / "head").mkdir()
    for path in context.workspace.models.glob(f"{head.stem}.*"):
        shutil.copy(path, folder / "head")
    return folder


def feed(whole: Path, folder: Path, seed: int, count: int) -> dict[str, list[str]]:
    """Return what went wrong, by parser; a process that was killed is followed by another."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    wrong: dict[str, list[str]] = defaultdict(list)
    first = 0
    while True:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.feeding", folder, str(seed), str(count), str(first)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        for line in ended.stdout.splitlines():
            found = json.loads(line)
            wrong[found["parser"]].append(f"{found['case']}: {found['got']}")
        if ended.returncode == 0:
            return wrong
        assert (folder / "case").exists(), ended.stderr
        position, pattern = (folder / "case").read_text().split()
        wrong[pattern].append(f"case {position} ended the process: {ended.returncode}")
        first = int(position) + 1
        shutil.copytree(whole, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def found(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return feed(whole, tmp_path_factory.mktemp("fed"), seed=0, count=30)


@pytest.mark.parametrize("parser", PARSERS)
def test_a_damaged_file_is_read_or_refused(found: dict[str, list[str]], parser: str) -> None:
    assert not found.get(parser), "\n".join(found[parser][:3])


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_files_are_read_or_refused(whole: Path, tmp_path: Path, seed: int) -> None:
    assert not feed(whole, tmp_path, seed, count=150)
