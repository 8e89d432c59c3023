"""The example of a cluster, docs/ray-cluster.yaml, is one that Ray and featpipe take."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import test_docs

pytest.importorskip("ray", reason="needs the extra featpipe[ray]")
jsonschema = pytest.importorskip("jsonschema", reason="checks the schema of clusters")
# What `ray up` does first; private, so it may be elsewhere in another version.
launcher = pytest.importorskip("ray.autoscaler._private.util")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "ray-cluster.yaml"
Config = dict[str, Any]


@pytest.fixture
def example() -> Config:
    config: Config = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    return config


def accept(config: Config) -> Config:
    """Fill in defaults and validate, as ``ray up`` does; nothing is started."""
    prepared: Config = launcher.prepare_config(copy.deepcopy(config))
    launcher.validate_config(prepared)
    return prepared


def commands(config: Config) -> list[str]:
    prepared = accept(config)
    return [line for key in prepared if key.endswith("_commands") for line in prepared[key]]


def test_ray_takes_it(example: Config) -> None:
    prepared = accept(example)
    kinds = prepared["available_node_types"]
    head = kinds[prepared["head_node_type"]]
    assert head["resources"]["CPU"] == 0, "the head only gives orders"
    assert head["max_workers"] == 0
    workers = [kind for kind in kinds.values() if kind is not head]
    assert all(kind["resources"]["GPU"] >= 1 for kind in workers)
    assert any(kind["min_workers"] >= 1 for kind in workers), "an actor needs room at the start"
    assert all(kind["min_workers"] <= kind["max_workers"] for kind in workers)
    images = {kind["node_config"]["ImageId"] for kind in kinds.values()}
    assert len(images) == 1, "nodes must be alike"


def misspelt(config: Config) -> None:
    config["setup_command"] = config.pop("setup_commands")


def without_node_config(config: Config) -> None:
    del config["available_node_types"]["gpu"]["node_config"]


def negative(config: Config) -> None:
    config["available_node_types"]["gpu"]["resources"]["GPU"] = -1


def half_a_gpu(config: Config) -> None:
    config["available_node_types"]["gpu"]["resources"]["GPU"] = "half"


def no_such_head(config: Config) -> None:
    config["head_node_type"] = "hat"


def more_than_there_may_be(config: Config) -> None:
    config["max_workers"] = 1


def one_command(config: Config) -> None:
    config["setup_commands"] = "pip install featpipe"


BREAKS = [
    misspelt,
    without_node_config,
    negative,
    half_a_gpu,
    no_such_head,
    more_than_there_may_be,
    one_command,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_copy_is_refused(example: Config, damage: Callable[[Config], None]) -> None:
    damage(example)
    with pytest.raises((jsonschema.ValidationError, ValueError, TypeError)):
        accept(example)


def test_commands_name_what_there_is(example: Config) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [
        extra
        for line in commands(example)
        for extras in re.findall(r"featpipe\[([^\]]*)\]", line)
        for extra in extras.split(",")
    ]
    assert {"ray", "s3"} <= set(named) <= set(project["optional-dependencies"])
    for line in commands(example):
        checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False)
        assert checked.returncode == 0, (line, checked.stderr)


def test_the_commands_in_its_comments_exist() -> None:
    lines = re.findall(r"^# +(featpipe .+)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        test_docs.test_commands_and_options_exist(EXAMPLE.name, line)


def test_places_agree(example: Config) -> None:
    """The region of the file system is that of the nodes, and its zone is in it."""
    provider = example["provider"]
    (region,) = set(re.findall(r"efs\.([a-z0-9-]+)\.amazonaws", " ".join(commands(example))))
    assert region == provider["region"]
    assert provider["availability_zone"].startswith(region)
