"""Features and losses for the tests of several modules."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_classification

from featpipe.probes.losses import Loss, Softmax, SquaredHinge


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


@pytest.fixture(scope="module")
def hinge() -> SquaredHinge:
    """A squared hinge of three random classes, with two folds and some weights of zero."""
    y, weight = random_classes()
    sign = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    return SquaredHinge(np.tile(sign, 2), np.repeat(weight, 3, 1), np.repeat(np.arange(2), 3))


@pytest.fixture(scope="module")
def softmax() -> Softmax:
    """A softmax of the same rows."""
    return Softmax(*random_classes(), np.arange(2), 3)


@pytest.fixture(params=["hinge", "softmax"])
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.getfixturevalue(request.param)


def random_classes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 40)
    return y, rng.exponential(size=(40, 2)) * (rng.random((40, 2)) < 0.8)
