"""Architectures: weights found, downloaded and checked, a zoo of wrong files, what auto means."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from featpipe.backbones import CIFAR_RESNETS, MODELS, TORCHVISION, automatic, load_backbone
from featpipe.backbones.architecture import (
    Architecture,
    find_weights,
    load_network,
    load_state_dict,
)
from featpipe.errors import UnknownNameError, UsageError, WeightsError
from featpipe.fingerprint import FileHashes, of_file
from tests.images import random_images, random_state

HASHES = FileHashes()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server of files."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of torch hub's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def at(url: str) -> Architecture:
    """CIFAR ResNet-20 whose published weights are at an address."""
    architecture = MODELS.get("cifar_resnet20")
    weights = replace(architecture.published["DEFAULT"], location=url)
    return replace(architecture, published={"DEFAULT": weights, "CIFAR10_V1": weights})


def serve(folder: Path) -> str:
    """Put weights into the folder and return their name, which carries their hash."""
    path = folder / "weights.th"
    torch.save({"state_dict": random_state("cifar_resnet20")}, path)
    name = f"resnet20-{of_file(path)[:8]}.th"
    path.rename(folder / name)
    return name


def test_weights_are_downloaded_once_and_checked(server: tuple[str, Path], hub: Path) -> None:
    url, folder = server
    name = serve(folder)
    found = find_weights(at(f"{url}/{name}"), "cifar10_v1", HASHES)
    assert found.path == hub / name
    assert found.name == "CIFAR10_V1"
    assert found.sha256 == of_file(folder / name)
    load_network(at(url), found.path)
    (folder / name).unlink()  # the second time nobody asks the server
    assert find_weights(at(f"{url}/{name}"), "DEFAULT", HASHES) == found


def test_a_download_with_another_content_is_refused(server: tuple[str, Path], hub: Path) -> None:
    url, folder = server
    (folder / "resnet20-0123abcd.th").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="is not the one that was expected"):
        find_weights(at(f"{url}/resnet20-0123abcd.th"), "DEFAULT", HASHES)
    assert not list(hub.glob("*"))


def test_damage_after_the_download_is_noticed(server: tuple[str, Path], hub: Path) -> None:
    url, folder = server
    name = serve(folder)
    find_weights(at(f"{url}/{name}"), "DEFAULT", HASHES)
    (hub / name).write_bytes(b"bad disk")
    with pytest.raises(WeightsError, match="delete the file"):
        find_weights(at(f"{url}/{name}"), "DEFAULT", HASHES)


@pytest.mark.parametrize("reason", ["not found", "refused"])
def test_no_way_to_the_weights_names_three_others(
    reason: str, server: tuple[str, Path], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the attempts
    url = server[0] if reason == "not found" else "http://127.0.0.1:1"
    with pytest.raises(WeightsError) as caught:
        find_weights(at(f"{url}/resnet20-0123abcd.th"), "DEFAULT", HASHES)
    for way_out in ("network", "--weights FILE", "featpipe demo"):
        assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"), [("IMAGENET1K_V3", "IMAGENET1K_V2"), ("defalt", "DEFAULT")]
)
def test_unknown_weights_are_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        load_backbone("resnet50", name)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(random_state("cifar_resnet20"), path)
    found = find_weights(MODELS.get("cifar_resnet20"), str(path), HASHES)
    assert found.name == "mine.pth"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.published is None


@pytest.mark.parametrize("model", ["resnet9", "convnet"])
def test_a_model_without_published_weights_wants_a_file(model: str) -> None:
    with pytest.raises(UsageError, match="no published weights") as caught:
        load_backbone(model)
    assert "--weights FILE" in str(caught.value)


# --- files

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
    assert "weights are not for cifar_resnet20" in message
    assert "10 missing: layer3.2.conv1.weight" in message
    assert "and 7 more" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 wrong shape: conv1.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)" in message


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
    torch.save(MODELS.get(MODEL).build(10), path)
    message = refusal(path)
    assert "torch.nn.modules.container.Sequential" in message
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


# What is known without torch


@pytest.mark.parametrize("name", [*TORCHVISION, *CIFAR_RESNETS])
def test_automatic_choices_are_those_of_the_architecture(name: str) -> None:
    architecture = MODELS.get(name)
    for weights in [*architecture.published, "weights.safetensors"]:
        assert automatic(name, weights) == architecture.automatic(weights)


@pytest.mark.parametrize(
    ("model", "expected"), [("convnet", (64, "hidden")), ("resnet9", (32, "pool"))]
)
def test_a_model_without_published_weights_is_asked(model: str, expected: tuple[int, str]) -> None:
    chosen = automatic(model, "weights.pt")
    assert (chosen.image_size, chosen.layer, chosen.margin) == (*expected, False)


def test_automatic_choices_are_known_without_torch() -> None:
    code = (
        "import sys; from featpipe.backbones import automatic;"
        "automatic('resnet20'); automatic('resnet50'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
