"""Features that the tests of several probes are fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_classification


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(90, 12, n_informative=8, n_classes=3, random_state=0)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def imbalanced() -> tuple[np.ndarray, np.ndarray]:
    """Three classes of very different sizes that overlap."""
    X, y = make_classification(
        400, 6, n_informative=4, n_classes=3, weights=[0.85, 0.1], class_sep=0.6, random_state=0
    )
    return X.astype(np.float32), y
