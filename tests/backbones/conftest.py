"""Networks that are built once for all tests of backbones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.backbones.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny network of transformers, by its kind."""
    return cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))
