"""A zoo of weights files: every way of writing them, and every way they go wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from featpipe.backbones import MODELS, load_backbone
from featpipe.backbones.state_dicts import load_state_dict
from featpipe.errors import WeightsError
from tests.backbones.making import random_images, random_state

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(MODEL)


def load(path: Path) -> Any:
    return load_backbone(MODEL, str(path), device="cpu")


def refusal(path: Path, model: str = MODEL) -> str:
    with pytest.raises(WeightsError) as caught:
        load_backbone(model, str(path), device="cpu")
    return str(caught.value)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": dict,
    "state_dict": lambda s: {"epoch": 3, "best_prec1": 91.7, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapping_gives_the_same_network(
    wrapping: str, suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[wrapping](state), path)
    loaded = load(path).network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items() if "num_batches" not in k)


def test_the_old_format_without_a_zip_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_state_dict(path)["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, path)
    backbone = load(path)
    weight = backbone.network.state_dict()["conv1.weight"]
    assert torch.equal(weight, state["conv1.weight"].to(dtype).float())
    assert backbone.embed(random_images(2, 32))["avgpool"].shape == (2, 64)


def test_a_file_may_know_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(random_state(MODEL, num_classes=37), path)
    backbone = load(path)
    assert backbone.dim("logits") == (37,)
    assert backbone.source_classes is None
    assert backbone.embed(random_images(2, 32), ("logits",))["logits"].shape == (2, 37)


def test_a_file_with_the_published_number_of_classes_knows_their_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(random_state(MODEL, num_classes=10), path)
    backbone = load(path)
    assert backbone.source_classes is not None
    assert backbone.source_classes.names[:2] == ("airplane", "automobile")


def test_missing_unexpected_and_wrongly_shaped_names_are_named(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "odd.pth"
    changed = {k: v for k, v in state.items() if not k.startswith("layer3.2")}
    changed["extra.weight"] = torch.zeros(3)
    changed["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(changed, path)
    message = refusal(path)
    assert "no weights of cifar_resnet20" in message
    assert "10 missing: layer3.2.conv1.weight" in message
    assert "and 7 more" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 wrong shape: conv1.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)" in message


@pytest.mark.parametrize(
    ("asked", "given", "num_classes"),
    [
        ("cifar_resnet20", "cifar_resnet32", 10),
        ("resnet34", "resnet18", 5),
        (MODEL, "glyphnet", 62),
    ],
)
def test_weights_of_another_model_are_recognised(
    asked: str, given: str, num_classes: int, tmp_path: Path
) -> None:
    path = tmp_path / "given.pth"
    torch.save(random_state(given, num_classes), path)
    assert f"look like {given} weights: --model {given}" in refusal(path, asked)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb()}, path)
    message = refusal(path)
    assert not marker.exists()
    assert "could run foreign code" in message
    assert "mkdir" in message
    with pytest.raises(AttributeError):  # the bomb is real: it gives None where a dict should be
        torch.load(path, weights_only=False)["state_dict"].keys()
    assert marker.exists()


def test_a_whole_pickled_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.save(MODELS.load(MODEL).build(10), path)
    message = refusal(path)
    assert "CifarResNet" in message
    assert "save_file" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th"])
@pytest.mark.parametrize(
    "content", [b"", b"x", b"not weights at all\n" * 50, b"\x80\x02}q", b"PK\x03\x04"]
)
def test_what_is_no_weights_file_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"none{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert "empty" in message if not content else "damaged, cut off" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    suffix: str, share: float, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"cut{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "damaged, cut off" in refusal(path)


@pytest.mark.parametrize("content", [{}, [], 3, {"state_dict": {}}, {"a": 1}, {1: torch.zeros(1)}])
def test_a_file_without_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert "no state dict" in refusal(path)


def test_values_that_are_not_finite_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "nan.pth"
    torch.save({**state, "bn1.bias": torch.full((16,), float("nan"))}, path)
    message = refusal(path)
    assert "not finite" in message
    assert "bn1.bias" in message


def test_a_file_of_unknown_kind_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    torch.save(state, path)
    assert ".safetensors, .pt, .pth, .th" in refusal(path)
