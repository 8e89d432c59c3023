"""What a result says of where, when and with what it was made."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from featpipe.provenance import PACKAGES, environment, now, package_version


def test_the_version_is_that_of_the_imported_package() -> None:
    assert package_version("numpy") == np.__version__
    assert package_version("no-such-package") == "not installed"


def test_a_version_is_read_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_imported.py").write_text("raise SystemExit('it ran')\n")
    info = tmp_path / "not_imported-1.0.dev3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: not_imported\nVersion: 1.0.dev3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_version("not_imported") == "1.0.dev3"
    assert "not_imported" not in sys.modules


def test_the_environment_is_this_one() -> None:
    found = environment()
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["platform"] == f"{platform.system()} {platform.machine()}"
    assert found["cpu"] == found["cpu"].strip() != ""
    assert found["cores"] == os.cpu_count()
    assert found["memory_gib"] > 0
    assert found["packages"] == {name: package_version(name) for name in PACKAGES}
    assert found["packages"]["numpy"] == np.__version__


def test_the_environment_can_be_written_down() -> None:
    assert json.loads(json.dumps(environment())) == environment()


def test_the_time_is_in_utc_to_the_second() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    written = now()
    assert before <= datetime.fromisoformat(written) <= datetime.now(UTC)
    assert datetime.fromisoformat(written).utcoffset() == timedelta(0)
    assert len(written) == len("2024-01-01T00:00:00+00:00")
