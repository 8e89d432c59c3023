"""A workspace to audit."""

from __future__ import annotations

import pytest

from tests.evaluation.methods import context
from tests.images import pictures
from tests.looks import seen, vectors


@pytest.fixture
def workspace(tmp_path):
    """Return a context whose workspace holds two splits with a leak."""
    where = context(tmp_path)
    folder = where.workspace.features / "toy" / "toynet"
    folder.mkdir(parents=True)
    images, tests = list(pictures(60, 32)), list(pictures(30, 32, seed=1))
    tests[0] = images[0]
    more = {"dims": 40}
    seen(folder / "train-1.h5", images, arrays={"avgpool": vectors(60, 0)}, **more)
    features = vectors(30, 1)
    seen(folder / "test-1.h5", tests, arrays={"avgpool": features}, split="test", **more)
    return where
