"""Extraction on a real cluster: what is killed is made again, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra featpipe[ray]")

import featpipe
from featpipe import cluster as joining
from featpipe.backbones import MODELS
from featpipe.errors import ClusterError, ImageError, WeightsError
from featpipe.extraction import Extract
from featpipe.extraction.on_ray import Order
from featpipe.progress import Event, Progress
from featpipe.store import FeatureStore
from tests.cluster.nodes import Cluster, cluster
from tests.images import photo_folder

ROWS = 60  # of a shard: 30 shards
Extracted = Callable[..., list[FeatureStore]]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without cores, and two nodes with one each."""
    with cluster(2) as made:
        yield made


@pytest.fixture
def extracted(nodes: Cluster, tmp_path: Path) -> Extracted:
    """Extract glyphnet's features of handwritten digits on the cluster."""

    def extract(workspace: str = "ray", **options: Any) -> list[FeatureStore]:
        given = {"dataset": "digits", "model": "glyphnet", "shard_rows": ROWS, "engine": "ray"}
        given |= {"address": nodes.address, **options}
        return featpipe.extract(workspace=tmp_path / workspace, **given)

    return extract


def assert_equal_to_one_machine(stores: list[FeatureStore], workspace: Path, **given: Any) -> None:
    given = {"dataset": "digits", "model": "glyphnet", **given}
    for store, whole in zip(stores, featpipe.extract(workspace=workspace, **given), strict=True):
        assert store.fingerprint == whole.fingerprint
        assert (store.ids, store.skipped) == (whole.ids, whole.skipped)
        assert store.labels.tobytes() == whole.labels.tobytes()
        np.testing.assert_allclose(store.features(), whole.features(), rtol=1e-4, atol=1e-5)
        store.verify()


@pytest.mark.parametrize(
    "shards_at", [None, pytest.param("s3://shelf/features", marks=pytest.mark.long)]
)
def test_a_node_that_is_killed_changes_nothing(
    shards_at: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if shards_at:
        request.getfixturevalue("s3")  # before the nodes, which have its address then
    events: list[Event] = []
    with cluster(2) as nodes:

        def kill(event: Event) -> None:
            if event.done and not any(event.done for event in events):
                nodes.kill(2)
            events.append(event)

        stores = featpipe.extract(
            *("digits", "glyphnet"),
            workspace=tmp_path / "ray",
            shard_rows=ROWS,
            shards_at=shards_at,
            engine="ray",
            address=nodes.address,
            progress=Progress(kill, 0),
        )
    there = [path.exists() for store in stores for path in store.shards]
    assert there == [not shards_at] * 30
    assert_equal_to_one_machine(stores, tmp_path / "here")
    assert max(event.done for event in events) == sum(map(len, stores)) == 1797
    assert any("images/s" in event.facts.get("rate", "") for event in events)
    assert "2 actors, 1 CPU each; 30 shards" in [event.message for event in events]
    assert stores[0].run["engine"]["name"] == "ray"


@pytest.mark.long
def test_an_actor_that_is_killed_changes_nothing(extracted: Extracted, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.done and not killed:
            listed = subprocess.run(
                ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
            )
            lines = [line for line in listed.stdout.splitlines() if "ray::MapWorker" in line]
            killed.append(int(lines[0].split()[0]))
            os.kill(killed[0], signal.SIGKILL)

    stores = extracted(progress=Progress(kill, 0))
    assert killed
    assert_equal_to_one_machine(stores, tmp_path / "here")


@pytest.mark.long
def test_a_driver_that_is_killed_continues(
    extracted: Extracted, nodes: Cluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "featpipe", "extract", "--model", "glyphnet", "--json"]
    command += ["--dataset", "digits", "--shard-rows", str(ROWS), "--engine", "ray"]
    command += ["--address", nodes.address, "--workspace", str(tmp_path / "ray")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if json.loads(line).get("done", 0) > 4 * ROWS:
                driver.kill()
                break
        driver.communicate()
    sealed = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").rglob("*.shards/*.h5")}
    assert sealed
    assert not list((tmp_path / "ray").rglob("train-*[0-9a-f].h5"))
    assert_equal_to_one_machine(extracted(), tmp_path / "here")
    assert sealed == {path: path.stat().st_mtime_ns for path in sealed}


@pytest.mark.long
def test_ctrl_c_ends_everything_and_says_how_to_go_on(nodes: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "featpipe", "extract", "--model", "glyphnet", "--json"]
    command += ["--dataset", "digits", "--shard-rows", str(ROWS), "--engine", "ray"]
    command += ["--address", nodes.address, "--workspace", str(tmp_path / "ray")]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if json.loads(line).get("done", 0):
                driver.send_signal(signal.SIGINT)
                break
        _, said = driver.communicate()
    assert driver.returncode == 130, said
    assert "interrupted: run the same command again to resume" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_unreadable_images_follow_the_policy(extracted: Extracted, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos")
    broken = sorted(folder.rglob("*.png"))[7]
    broken.write_bytes(broken.read_bytes()[:60])
    given = {"dataset": f"folder:{folder}", "shard_rows": 5}
    with pytest.raises(ImageError) as raised:
        extracted(**given)
    assert broken.name in raised.value.details["where"]
    assert ", on node" in raised.value.details["where"]
    stores = extracted(**given, on_error="skip")
    assert len(stores[0].skipped) == 1
    local = {"dataset": given["dataset"], "on_error": "skip"}
    assert_equal_to_one_machine(stores, tmp_path / "here", **local)


@pytest.mark.long
def test_a_node_without_the_weights_is_named(extracted: Extracted, tmp_path: Path) -> None:
    """The file is there for the process that gives the order, and for no other."""
    module = sys.modules[MODELS.get("glyphnet").__module__]
    published = Path(module.__file__ or "").parent / "glyphnet.safetensors"
    copy = shutil.copy(published, tmp_path / "copy.safetensors")
    with open(copy, "rb") as opened:
        weights = tmp_path / "own.safetensors"
        weights.symlink_to(f"/proc/self/fd/{opened.fileno()}")
        with pytest.raises(WeightsError) as raised:
            extracted(weights=str(weights))
    assert "on node" in raised.value.details["where"]


@pytest.mark.long
def test_a_shard_at_which_processes_die_ends_the_run(
    extracted: Extracted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "0123456789abcdef")
    store = extracted(engine="local", address="auto")[0]
    lost = store.shards[3]
    lost.unlink()
    lost.with_suffix(".attempts").write_text("0123456789abcdef\n" * 5)  # of as many processes
    with pytest.raises(ClusterError, match="repeatedly die at the same shard") as raised:
        extracted()
    assert str(lost) in raised.value.details["where"]
    monkeypatch.undo()
    extracted()[0].verify()
    assert not list(lost.parent.glob("*.attempts"))


@pytest.mark.long
def test_other_versions_on_a_node_are_refused(
    extracted: Extracted, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = joining.package_version
    fake = {"torch": "1.0"}
    monkeypatch.setattr(joining, "package_version", lambda name: fake.get(name) or real(name))
    with pytest.raises(ClusterError, match="other package versions") as raised:
        extracted()
    assert raised.value.details["expected"] == "torch 1.0"


@pytest.mark.long
def test_a_folder_that_the_nodes_do_not_have(
    extracted: Extracted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(joining.os, "getcwd", lambda: str(tmp_path / "elsewhere"))
    with pytest.raises(ClusterError, match="does not have the folder"):
        extracted()


@pytest.mark.long
def test_more_than_any_node_has(extracted: Extracted) -> None:
    with pytest.raises(ClusterError, match="resources that an actor needs") as raised:
        extracted(num_cpus=64, num_gpus=2)
    assert raised.value.details["expected"] == "--num-cpus 64, --num-gpus 2"


@pytest.mark.parametrize(
    ("gpus", "room"), [(0, 5), (1, 4), (2, 2), (0.5, 4), (0.6, 4), (0.1, 5), (0.25, 5)]
)
def test_as_many_actors_as_there_is_room_for(
    gpus: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"CPU": 4.0, "GPU": 4.0}, {"CPU": 1.0}] if gpus != 0.1 else [{"CPU": 5.0, "GPU": 1.0}]
    if gpus == 0.25:
        nodes = [{"CPU": 5.0, "GPU": 2.0}]
    monkeypatch.setattr(joining, "nodes", lambda: nodes)
    step = Extract(dataset="digits", model="glyphnet", engine="ray", num_gpus=gpus)
    resources, n_actors = Order(step, Path(), {}).actors()
    assert (n_actors, resources.get("num_gpus", 0)) == (room, gpus)
