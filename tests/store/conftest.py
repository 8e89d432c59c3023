"""A sealed store that no test changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import stores


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    what = stores.content(n=40, n_logits=5, folds=(np.array([1, 2, 3]),))
    return stores.sealed(tmp_path_factory.mktemp("whole") / "a.h5", what).path
