"""What is said before a cluster is joined."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from featpipe import cluster
from featpipe.cli.main import featpipe as program
from featpipe.errors import MissingExtraError


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
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    given = [*command, "--engine", "ray", "--workspace", str(tmp_path)]
    error = CliRunner().invoke(program, given).exception
    assert isinstance(error, MissingExtraError)
    assert error.details["next"] == 'pip install "featpipe[ray]"'
    assert not list(tmp_path.iterdir())
