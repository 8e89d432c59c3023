"""Published weights: found by name, downloaded from a real server, checked by their hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from featpipe.backbones import MODELS, load_backbone
from featpipe.backbones.architecture import Architecture
from featpipe.backbones.state_dicts import build_with, load_state_dict
from featpipe.backbones.weights import resolve
from featpipe.errors import UnknownNameError, WeightsError
from featpipe.fingerprint import FileHashes, of_file
from tests.backbones.making import random_state

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


@pytest.fixture(autouse=True)
def hub(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in the place of torch hub's."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def at(url: str) -> Architecture:
    """CIFAR ResNet-20 whose published weights lie at an address."""
    architecture: Architecture = MODELS.load("cifar_resnet20")
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
    found = resolve(at(f"{url}/{name}"), "cifar10_v1", HASHES)
    assert found.path == hub / name
    assert (found.name, found.source) == ("CIFAR10_V1", f"{url}/{name}")
    assert found.sha256 == of_file(folder / name)
    build_with(at(url), load_state_dict(found.path), found.path)
    (folder / name).unlink()  # the second time nobody asks the server
    assert resolve(at(f"{url}/{name}"), "DEFAULT", HASHES) == found


def test_a_download_with_another_content_is_refused(server: tuple[str, Path], hub: Path) -> None:
    url, folder = server
    (folder / "resnet20-0123abcd.th").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="damaged"):
        resolve(at(f"{url}/resnet20-0123abcd.th"), "DEFAULT", HASHES)
    assert not list(hub.glob("*"))


def test_damage_after_the_download_is_noticed(server: tuple[str, Path], hub: Path) -> None:
    url, folder = server
    name = serve(folder)
    resolve(at(f"{url}/{name}"), "DEFAULT", HASHES)
    (hub / name).write_bytes(b"bad disk")
    with pytest.raises(WeightsError, match="delete the file"):
        resolve(at(f"{url}/{name}"), "DEFAULT", HASHES)


@pytest.mark.parametrize("reason", ["not found", "refused"])
def test_no_way_to_the_weights_names_three_others(reason: str, server: tuple[str, Path]) -> None:
    url = server[0] if reason == "not found" else "http://127.0.0.1:1"
    with pytest.raises(WeightsError) as caught:
        resolve(at(f"{url}/resnet20-0123abcd.th"), "DEFAULT", HASHES)
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
    found = resolve(MODELS.load("cifar_resnet20"), str(path), HASHES)
    assert found.name == "mine.pth"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.published is None
