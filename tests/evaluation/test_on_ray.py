"""Probes on a real cluster give the numbers of one machine, and get their features once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra featpipe[ray]")

import featpipe
from featpipe import cluster as joining
from featpipe.errors import ClusterError, FitError
from featpipe.store import FeatureStore
from tests.cluster.nodes import Cluster, cluster

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without cores, and two nodes with one each."""
    with cluster(2) as made:
        yield made


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureStore]:
    """Features of handwritten digits, in shards."""
    workspace = tmp_path_factory.mktemp("features")
    return featpipe.extract("digits", "glyphnet", workspace=workspace, shard_rows=400)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("svm", {"protocol": "kfold:4"}),
        ("logistic", {"train_per_class": [5, 20], "repeats": 2}),
        ("svm", {"solver": "sklearn"}),  # one split: its grid is spread
        ("svm", {}),  # one split, in one go
        ("knn", {"protocol": "kfold:3"}),
    ],
)
def test_the_numbers_are_those_of_one_machine(
    method: str,
    options: dict[str, Any],
    nodes: Cluster,
    stores: list[FeatureStore],
    tmp_path: Path,
) -> None:
    there = {"engine": "ray", "address": nodes.address}
    one, other = (
        featpipe.evaluate(method, *stores, workspace=tmp_path / name, **options, **engine)
        for name, engine in (("here", {}), ("there", there))
    )
    mine, theirs = one.predictions(), other.predictions()
    np.testing.assert_array_equal(mine.predicted, theirs.predicted)
    np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-6, atol=1e-7)
    assert one.key == other.key  # where it runs is no part of what it is
    assert [split["chosen"] for split in one.splits] == [s["chosen"] for s in other.splits]


def test_features_larger_than_the_object_store_are_refused(
    nodes: Cluster, stores: list[FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "nodes", lambda: [{"CPU": 1, "object_store_memory": 100_000}])
    with pytest.raises(ClusterError, match="do not fit into the object store") as raised:
        featpipe.evaluate(
            *("svm", *stores),
            workspace=tmp_path,
            protocol="kfold:3",
            engine="ray",
            address=nodes.address,
        )
    assert "--object-store-memory" in raised.value.details["next"]


def test_an_error_on_a_node_is_that_of_one_machine(
    nodes: Cluster, stores: list[FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FitError, match="needs 900 training rows of every class") as raised:
        featpipe.evaluate(
            *("svm", *stores),
            workspace=tmp_path,
            protocol="kfold:2",
            validation="kfold:900",
            engine="ray",
            address=nodes.address,
        )
    assert "--validation" in raised.value.details["next"]


def test_memory_is_that_of_the_nodes(
    nodes: Cluster, stores: list[FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "nodes", lambda: [{"CPU": 1.0, "memory": 1e6}, {"CPU": 0.0}])
    there = {"engine": "ray", "address": nodes.address, "solver": "sklearn"}
    with pytest.raises(FitError, match="not fit into memory") as raised:
        featpipe.evaluate("svm", *stores, workspace=tmp_path, **there)
    assert raised.value.details["expected"] == "at most 0.0 GB"
