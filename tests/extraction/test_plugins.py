"""Another package brings a backbone or a runtime: one file and one entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import images

REPOSITORY = Path(__file__).resolve().parents[2]

DOORS = Path(__file__).parents[1] / "doors"
BACKBONE = (DOORS / "mobilenet.py").read_text()
RUNTIME = (DOORS / "plain.py").read_text()


@pytest.fixture
def run_with(tmp_path: Path) -> Any:
    """Return a function that runs Python where a package of one file is installed."""

    def run(source: str, points: str, *command: str) -> str:
        site = tmp_path / "site"
        (site / "brought-1.0.dist-info").mkdir(parents=True, exist_ok=True)
        (site / "brought.py").write_text(source)
        (site / "brought-1.0.dist-info" / "METADATA").write_text("Name: brought\nVersion: 1.0\n")
        (site / "brought-1.0.dist-info" / "entry_points.txt").write_text(points)
        path = os.pathsep.join([str(site), str(REPOSITORY)])
        ended = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def test_a_backbone(run_with: Any, tmp_path: Path) -> None:
    points = "[featpipe.models]\nmobilenet_v3_small = brought:mobilenet\n"
    code = f"""
import json, torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small
from featpipe.extraction import Extract
from featpipe.steps import Context
from featpipe.store import FeatureStore
save_file(mobilenet_v3_small(num_classes=7).state_dict(), "w.safetensors")
step = dict(model="mobilenet_v3_small", weights="w.safetensors", device="cpu",
            dataset="npz:{images.photo_archive(tmp_path / "toy.npz", 6)}")
store = FeatureStore(Extract(**step).run(Context()).paths[0])
deep = FeatureStore(Extract(**step, layer="features.3:map,logits").run(Context()).paths[0])
print(json.dumps([store.layers, store.features().shape, float(store.features().std()),
    [deep.features(layer).shape for layer in deep.layers], store.logits is None,
    store.manifest["backbone"]["preprocessing"]["crop"], Extract(**step).run(Context()).status,
    Extract(**step, image_size=32, layer="avgpool").status(Context()).done]))
"""
    layers, shape, spread, shapes, unnamed, crop, again, spelled_out = json.loads(
        run_with(BACKBONE, points, "-c", code)
    )
    assert (layers, shape, crop) == (["avgpool"], [6, 576], 32)
    assert spread > 0
    assert shapes == [[6, 24, 4, 4], [6, 7]]
    assert unnamed  # nobody says what the seven logits mean
    assert again == "up to date"
    assert spelled_out
    listed = run_with(BACKBONE, points, "-m", "featpipe", "models", "--json")
    assert "mobilenet_v3_small" in listed
    assert "576 features" in listed


def test_published_weights_are_told_by_the_package_that_knows_them(run_with: Any) -> None:
    code = """
from featpipe.backbones import weights_identity
from featpipe.fingerprint import FileHashes
print(weights_identity("mobilenet_v3_small", "DEFAULT", FileHashes()))
"""
    points = "[featpipe.models]\nmobilenet_v3_small = brought:mobilenet\n"
    assert run_with(BACKBONE, points, "-c", code) == "DEFAULT of brought 1.0\n"


def test_a_runtime(run_with: Any, tmp_path: Path) -> None:
    points = "[featpipe.runtimes]\nplain = brought:Plain\ncoarse = brought:Coarse\n"
    code = f"""
import json, numpy as np
from featpipe.backbones import RUNTIMES
from featpipe.extraction import Extract
from featpipe.steps import Context
from featpipe.store import FeatureStore
step = dict(model="glyphnet", dataset="npz:{images.photo_archive(tmp_path / "toy.npz", 6)}",
            layer="layer2,avgpool", device="cpu")
def made(runtime):
    outcome = Extract(**step, runtime=runtime).run(Context())
    return FeatureStore(outcome.paths[0])
coarse, plain = made("coarse"), made("plain")
seen = Extract(**step).status(Context()).done
values, path = plain.features("layer2").copy(), plain.path
plain.path.unlink()
torch = made("torch")
print(json.dumps([RUNTIMES.names(), plain.run["runtime"],
    float(np.abs(values - torch.features("layer2")).max() / np.abs(values).max()),
    torch.path == path, coarse.path == path, coarse.manifest["backbone"].get("runtime"),
    torch.manifest["backbone"].get("runtime"), made("coarse").path == coarse.path, seen]))
"""
    names, recorded, apart, same_store, coarse_too, described, plain, again, seen = json.loads(
        run_with(RUNTIME, points, "-c", code)
    )
    assert names == ["torch", "openvino", "compiled", "plain", "coarse"]
    assert recorded == "plain"
    assert apart < 1e-4
    assert seen  # and is known to do so before
    assert same_store  # an exact runtime gives the same store
    assert not coarse_too
    assert (described, plain) == ("coarse", None)
    assert again
