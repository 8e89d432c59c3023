"""OpenVINO: converted once, whole or not at all, and never in silence something else."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.backbones import openvino as room
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.backbones.runtime import Calibration, CannotRunError, Execution
from featpipe.errors import MissingExtraError, UsageError
from featpipe.progress import Event, Progress
from tests.backbones.test_runtime import Deciding
from tests.images import random_images

pytest.importorskip("openvino")
CPU = torch.device("cpu")
IMAGES = random_images(4, 16)
POOLED = ("2",)  # the last layer of the network that most tests convert


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return room.cache_folder()


def frozen(plain: nn.Module | None = None, **how: Any) -> FrozenNetwork:
    asked = Execution(**{"runtime": "openvino", **how})
    return FrozenNetwork("small", plain or small(), Preprocessing(16, 16), CPU, asked)


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def conversions(events: list[Event]) -> int:
    return sum("converting" in event.message for event in events)


def test_a_network_is_converted_once(cache: Path) -> None:
    events: list[Event] = []
    progress = Progress(events.append)
    one = frozen(progress=progress).embed(IMAGES, POOLED)["2"]
    two = frozen(progress=progress).embed(IMAGES, POOLED)["2"]
    assert conversions(events) == 1
    np.testing.assert_array_equal(one, two)
    frozen(progress=progress).embed(IMAGES, ("0",))
    changed = frozen(small(1), progress=progress).embed(IMAGES, POOLED)["2"]
    assert conversions(events) == 3
    assert len(list(cache.iterdir())) == 3
    assert not np.allclose(one, changed)


@pytest.mark.parametrize("part", ["model.bin", "model.xml", "sealed.json"])
def test_what_is_not_whole_is_converted_again(cache: Path, part: str) -> None:
    expected = frozen().embed(IMAGES, POOLED)["2"]
    (folder,) = cache.iterdir()
    (folder / part).write_bytes((folder / part).read_bytes()[:-7])
    events: list[Event] = []
    again = frozen(progress=Progress(events.append)).embed(IMAGES, POOLED)["2"]
    assert conversions(events) == 1
    np.testing.assert_array_equal(again, expected)
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_nothing_is_told_to_anybody() -> None:
    """OpenVINO's tools send what they convert to their makers, unless that module is missing."""
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("room.openvino.save_model", marks=pytest.mark.long),  # nothing is sealed
        "room.Path.rename",  # everything is on the disk, without its name
    ],
)
def test_a_conversion_that_is_killed_leaves_nothing_that_is_used(cache: Path, moment: str) -> None:
    code = (
        "import os; from featpipe.backbones import openvino as room\n"
        f"save = {moment}\n"
        "def killed(*a, **k): 'save' in save.__name__ and save(*a, **k); os.kill(os.getpid(), 9)\n"
        f"{moment} = killed\n"
        "from tests.backbones.test_openvino import *\n"
        "frozen().embed(IMAGES, POOLED)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=False)
    assert ended.returncode == -9
    (left,) = cache.iterdir()
    assert left.name.endswith(".tmp")
    os.utime(left, (0, 0))  # long ago
    frozen().embed(IMAGES, POOLED)
    (folder,) = cache.iterdir()
    assert folder != left


def test_a_network_that_cannot_be_converted_falls_back_only_where_that_was_left_open() -> None:
    plain = Deciding().eval()
    plain.forward = lambda x: plain.bn(plain.conv(torch.linalg.svd(x)[0]))  # no such operator
    with pytest.raises(CannotRunError, match="cannot run this network"):
        frozen(plain).embed(IMAGES, ("bn",))
    events: list[Event] = []
    how = Execution(None, progress=Progress(events.append))
    chosen = FrozenNetwork("odd", plain, Preprocessing(96, 96), CPU, how)
    assert chosen.runtime.name == "openvino"
    facts = chosen.prepare(("bn",))
    assert facts["runtime"] == "torch"
    assert "OpenVINO cannot run this network" in facts["runtime_because"]
    assert any("OpenVINO cannot run" in event.message for event in events)
    assert chosen.embed(random_images(2, 96), ("bn",))["bn"].shape == (2, 4)


class Unfaithful(nn.Module):
    """Computes something else while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if torch.jit.is_tracing() else x


def test_a_graph_with_other_numbers_is_refused() -> None:
    with pytest.raises(CannotRunError, match="OpenVINO and PyTorch disagree"):
        frozen(nn.Sequential(Unfaithful(), *small())).embed(IMAGES, ("3",))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino") as caught:
        frozen()
    assert "pip install" in caught.value.details["next"]


def test_a_precision_that_the_processor_lacks_is_refused() -> None:
    assert room.precisions_of(["FP32", "INT8", "BF16"]) == ["float32", "bfloat16", "int8"]
    missing = [p for p in ("bfloat16", "float16") if not _has(p)]
    for precision in missing:
        with pytest.raises(UsageError, match=f"does not compute in {precision}"):
            frozen(precision=precision)
    with pytest.raises(UsageError, match="runs on the CPU"):
        FrozenNetwork(
            *("small", small(), Preprocessing(16, 16), torch.device("meta")),
            Execution("openvino"),
        )


def _has(precision: str) -> bool:
    there = room.openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision in room.precisions_of(there)


def test_int8_is_fitted_once_and_is_near() -> None:
    pytest.importorskip("nncf")
    asked = []

    def images(_: Preprocessing) -> torch.Tensor:
        asked.append(1)
        return random_images(24, 16, seed=1)

    lower = [
        frozen(precision="int8", calibration=Calibration(images, fingerprint))
        for fingerprint in ("a", "a", "b")
    ]
    got = [one.embed(IMAGES, POOLED)["2"] for one in lower]
    assert len(asked) == 2
    np.testing.assert_array_equal(got[0], got[1])
    plain = lower[0].reference(IMAGES, POOLED)["2"]
    norms = [np.linalg.norm(one, axis=1) for one in (got[0], plain)]
    cosines = (got[0] * plain).sum(1) / norms[0] / norms[1]
    assert 0.97 < cosines.min() <= cosines.max() < 0.9999999
    assert lower[0].inexact() == {
        **{"runtime": "openvino", "precision": "int8"},
        "calibration": "a",
    }
