"""No test row has any part in training: poison them all, and nothing that was fitted moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from featpipe.evaluation.assemble import SplitPredictions
from featpipe.evaluation.fitting import fit_splits
from featpipe.evaluation.protocol import RowSet, Split, low_shot, make_splits
from featpipe.probes.base import Probe
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from featpipe.store import FeatureStore
from tests.evaluation.methods import written
from tests.stores import content, features

PROBES = {
    "svm": Svm(c=(1e-4, 1e-2, 1.0)),
    "logistic": Logistic(c=(1e-4, 1e-2, 1.0)),
    "knn": Knn(k=(1, 3, 9)),
    "centroid": Centroid(),
}
N = 90


def store_with(path: Path, labels: np.ndarray, values: np.ndarray) -> FeatureStore:
    return written(path, content(len(labels), labels=labels), avgpool=values)


def poisoned(path: Path, store: FeatureStore, rows: np.ndarray, what: str) -> FeatureStore:
    """Return a copy of a store in which the labels or the features of some rows are nonsense."""
    labels, values = store.labels.copy(), np.array(store.features())
    if what == "labels":
        labels[rows] = (labels[rows] + 1) % 3
    else:
        values[rows] = 1e6 * np.random.default_rng(5).normal(size=values[rows].shape)
    return store_with(path, labels, values)


Fit = tuple[BaseEstimator, SplitPredictions]


def learned(fit: Fit) -> list[np.ndarray]:
    """Return every number that a fitted pipeline holds, wherever it holds it."""
    found: list[np.ndarray] = []

    def walk(value: object) -> None:
        if isinstance(value, BaseEstimator):
            for name in sorted(vars(value)):
                walk(vars(value)[name])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            found.append(value)

    walk(fit[0])
    return found


def assert_same_fit(clean: Fit, dirty: Fit) -> None:
    for fact in ("chosen", "search"):
        assert clean[1].facts[fact] == dirty[1].facts[fact]
    assert len(learned(clean)) >= 2
    for mine, other in zip(learned(clean), learned(dirty), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.fixture
def noisy(tmp_path) -> FeatureStore:
    what = content(N)
    return store_with(tmp_path / "clean.h5", what.labels, features(what, noise=5.0)["avgpool"])


def same_split(split: Split, store: FeatureStore) -> Split:
    """Return the same rows of another store: the split itself may look at labels, the fit not."""
    return Split(split.name, RowSet(store, split.train.rows), RowSet(store, split.test.rows))


@pytest.mark.parametrize("what", ["labels", "features"])
@pytest.mark.parametrize("name", PROBES)
def test_poisoned_test_rows_change_nothing_that_was_chosen_or_fitted(noisy, tmp_path, name, what):
    _, (split,) = make_splits("holdout:0.4", noisy, None, 0)
    dirty = poisoned(tmp_path / "dirty.h5", noisy, split.test.rows, what)
    (mine,) = fit_splits([split], PROBES[name])
    (other,) = fit_splits([same_split(split, dirty)], PROBES[name])
    assert_same_fit(mine, other)
    if what == "labels":  # and the answers to the test rows do not depend on their labels either
        np.testing.assert_array_equal(mine[1].predicted, other[1].predicted)
    else:
        assert (mine[1].predicted != other[1].predicted).any()  # the poison is strong


@pytest.mark.parametrize("name", PROBES)
def test_poisoned_training_rows_do_change_the_fit(noisy, tmp_path, name):
    """The proof above would also pass if the poison did nothing."""
    _, (split,) = make_splits("holdout:0.4", noisy, None, 0)
    dirty = poisoned(tmp_path / "dirty.h5", noisy, split.train.rows[:9], "features")
    (mine,) = fit_splits([split], PROBES[name])
    (other,) = fit_splits([same_split(split, dirty)], PROBES[name])
    with pytest.raises(AssertionError):
        assert_same_fit(mine, other)


@pytest.mark.parametrize("what", ["labels", "features"])
def test_folds_and_low_shot_draws_do_not_leak_either(noisy, tmp_path, what):
    _, folds = make_splits("kfold:3", noisy, None, 0)
    for split in [folds[0], *low_shot(folds[:1], [3], 2, 0)]:
        dirty = poisoned(tmp_path / f"{split.name}.h5", noisy, split.test.rows, what)
        (mine,) = fit_splits([split], PROBES["logistic"])
        (other,) = fit_splits([same_split(split, dirty)], PROBES["logistic"])
        assert_same_fit(mine, other)


def test_standardisation_is_learned_from_training_rows_only(noisy):
    _, (split,) = make_splits("holdout:0.4", noisy, None, 0)
    ((estimator, _),) = fit_splits([split], PROBES["svm"])
    scaler, X = estimator[0], np.array(noisy.features())
    np.testing.assert_allclose(scaler.mean_, X[split.train.rows].mean(axis=0), rtol=1e-5)
    assert scaler.n_samples_seen_ == len(split.train)
    assert not np.allclose(scaler.mean_, X.mean(axis=0), rtol=1e-3)


class Counting(BaseEstimator):
    """Answers with class 0 and remembers how many rows it was ever asked about."""

    asked: list[int] = []  # noqa: RUF012 - shared by the clones on purpose

    def fit(self, X: np.ndarray, y: np.ndarray) -> Counting:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        self.asked.append(len(X))
        return np.zeros(len(X), dtype=np.int64)


class CountingProbe(Probe):
    """A probe of nothing but the counting."""

    name, display_name = "count", "Counting"

    def estimator(self, n_rows: int, n_features: int) -> Counting:
        return Counting()


def test_test_rows_are_predicted_once(noisy):
    _, (split,) = make_splits("holdout:0.4", noisy, None, 0)
    Counting.asked.clear()
    list(fit_splits([split], CountingProbe()))
    assert Counting.asked == [len(split.test)]
