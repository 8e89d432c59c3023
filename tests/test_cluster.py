"""A cluster is joined where there is one, and its nodes are alike; else it is said why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featpipe
from featpipe import lazy
from featpipe.cli.main import featpipe as program
from featpipe.cluster import NodeEnvironment, joined
from featpipe.errors import ClusterError, FeatpipeError, MissingExtraError, UsageError
from featpipe.extraction import Extract
from featpipe.progress import Progress
from tests.cluster.nodes import cluster, wait


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "--dataset", "digits", "--model", "glyphnet"],
        ["svm", "--dataset", "digits"],
        ["run", "demo"],
    ],
    ids=lambda command: command[0],
)
def test_without_ray_the_extra_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lazy, "find_spec", lambda name: None)
    given = [*command, "--engine", "ray", "--workspace", str(tmp_path)]
    error = CliRunner().invoke(program, given).exception
    assert isinstance(error, MissingExtraError)
    assert error.details["next"] == 'pip install "featpipe[ray]"'
    assert not list(tmp_path.iterdir())


def test_parts_of_two_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot have 1\.5 GPUs"):
        Extract(dataset="digits", model="glyphnet", engine="ray", num_gpus=1.5)


@pytest.mark.parametrize("options", [{"actors": 2}, {"num_gpus": 1}, {"address": "a:1"}])
def test_options_of_a_cluster_need_one(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is for a cluster"):
        Extract(dataset="digits", model="glyphnet", **options)


@pytest.mark.parametrize("address", ["here", "host:", ":1", "host:port", "host:99999"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(FeatpipeError, match="not the address of a cluster"):
        Extract(dataset="digits", model="glyphnet", engine="ray", address=address)


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra featpipe[ray]")
    with pytest.raises(ClusterError, match="There is no cluster at this address") as raised:
        featpipe.extract(
            *("digits", "glyphnet"), workspace=tmp_path, engine="ray", address="127.0.0.1:9"
        )
    assert "ray start --head" in raised.value.details["next"]


def test_what_is_not_the_same_on_a_node_is_named(tmp_path: Path) -> None:
    here = NodeEnvironment.current()
    assert here.difference() == {}
    older = replace(here, packages={**here.packages, "torch": "1.0"}).difference()
    assert "other package versions" in older["what"]
    assert (older["expected"], older["got"]) == ("torch 1.0", f"torch {here.packages['torch']}")
    elsewhere = replace(here, folder=str(tmp_path / "elsewhere")).difference()
    assert "does not have the folder" in elsewhere["what"]
    assert str(tmp_path / "elsewhere") in elsewhere["expected"]


@pytest.mark.long
def test_a_node_that_dies_is_told_among_the_notes() -> None:
    pytest.importorskip("ray", reason="needs the extra featpipe[ray]")
    notes: list[str] = []
    progress = Progress(lambda event: notes.append(event.message), 0)
    with cluster(1) as nodes, joined(nodes.address, progress):
        assert notes == ["Ray cluster: 2 nodes, 1 core"]
        nodes.kill(1)
        wait(lambda: any(note.startswith("Ray: ") for note in notes), "a note of its death")
