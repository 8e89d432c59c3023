"""Wrong labels are ranked first, and their share is estimated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from featpipe.audit import labels
from featpipe.audit.labels import by_class, doubts, out_of_sample, pairs
from featpipe.errors import FitError
from featpipe.evaluation.protocol import cut


def noisy(share, n=600, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    right = np.arange(n) % classes
    centres = rng.normal(size=(classes, 10)) * 4
    X = (centres[right] + rng.normal(size=(n, 10))).astype(np.float32)
    wrong = rng.random(n) < share
    return X, np.where(wrong, (right + 1) % classes, right), wrong


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_the_share_of_wrong_labels_is_estimated(share, classes):
    X, y, wrong = noisy(share, classes=classes)
    found = doubts(*_arguments(X, y))
    estimated = found.share()
    assert estimated["value"] == pytest.approx(wrong.mean(), abs=0.04)
    assert estimated["low"] <= wrong.mean() <= estimated["high"]
    by_name = {one["label"]: one for one in by_class(found, y, "abcdef")}
    for k in range(classes):
        one = by_name["abcdef"[k]]
        assert one["images"] == (y == k).sum()
        assert one["low"] <= wrong[y == k].mean() <= one["high"]
        assert one["value"] == one["doubted"] / one["images"]
    if share:
        assert roc_auc_score(wrong, 1 - found.confidence) > 0.95
        (most, *_) = pairs(found, y, [f"c{k}" for k in range(classes)])
        assert most["likely"] != most["label"]
        assert sum(p["images"] for p in pairs(found, y, "abcdef")) == (found.better >= 0).sum()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("apart", [0.0, 0.3, 1.0, 3.0])
def test_the_bounds_hold_where_the_probe_errs(apart, share):
    rng = np.random.default_rng(1)
    right = np.arange(2000) % 4
    X = rng.normal(size=(4, 20))[right] * apart + rng.normal(size=(2000, 20))
    wrong = rng.random(2000) < share
    y = np.where(wrong, (right + rng.integers(1, 4, 2000)) % 4, right)
    found = doubts(*_arguments(X.astype(np.float32), y)).share()
    assert found["low"] <= found["value"] <= found["high"]
    assert found["low"] <= wrong.mean() <= found["high"]


def _arguments(X, y):
    return out_of_sample(X, y)[0], y


def test_probabilities_are_those_of_rows_that_did_not_train():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 200)).astype(np.float32)  # separable, and only noise
    y = np.arange(90) % 3
    probabilities, _ = out_of_sample(X, y)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == y).mean() < 0.5


def test_rows_of_one_group_do_not_train_for_each_other():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 300)).astype(np.float32).repeat(2, axis=0)  # every image twice
    y = rng.integers(0, 2, 60).repeat(2)
    alone, _ = out_of_sample(X, y)
    together, _ = out_of_sample(X, y, np.arange(60).repeat(2))
    assert (alone.argmax(axis=1) == y).mean() > 0.8  # the copy gives it away
    assert (together.argmax(axis=1) == y).mean() < 0.7


def test_the_answers_are_those_of_discriminant_analysis():
    X, y, _ = noisy(0.3)
    probabilities, shrinkage = out_of_sample(X, y)
    answers = np.empty(len(y))
    for train, test in cut("kfold:5", y, None, 0):
        within = X[train] - np.stack([X[train][y[train] == k].mean(axis=0) for k in y[train]])
        spread = np.mean(within.astype(np.float64) ** 2)  # sklearn standardises, ours does not
        model = LinearDiscriminantAnalysis(
            solver="lsqr", covariance_estimator=Shrunk(shrinkage, spread)
        )
        answers[test] = model.fit(X[train].astype(np.float64), y[train]).predict(X[test])
    assert (probabilities.argmax(axis=1) == answers).mean() > 0.995


class Shrunk:
    """The covariance of centred rows, shrunk towards a multiple of the identity."""

    def __init__(self, shrinkage, spread):
        self.shrinkage, self.spread = shrinkage, spread

    def fit(self, X):
        X = X - X.mean(axis=0)
        eye = np.eye(X.shape[1])
        own = X.T @ X / len(X)
        self.covariance_ = (1 - self.shrinkage) * own + self.shrinkage * self.spread * eye


def test_few_rows_of_many_features_are_solved_in_their_span():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.normal(size=(3, 40))[y] * 0.5 + rng.normal(size=(60, 40))
    wide = np.zeros((60, 200))
    wide[:, :40] = X
    wide @= ortho_group.rvs(200, random_state=0)
    spanned, shrinkage = out_of_sample(wide.astype(np.float32), y)
    scores = np.empty((60, 3))  # without the span: the same classifier of 200 features
    for train, test in cut("kfold:5", y, None, 0):
        means = np.stack([wide[train][y[train] == k].mean(axis=0) for k in range(3)])
        within = wide[train] - means[y[train]]
        products = within.T @ within / len(train)
        ridge = shrinkage * products.trace() / 200 * np.eye(200)
        W = np.linalg.solve((1 - shrinkage) * products + ridge, means.T)
        scores[test] = wide[test] @ W - (means * W.T).sum(axis=1) / 2
    assert 0.35 < spanned.max(axis=1).mean() < 0.95
    ratio = np.log(spanned[:, 1:] / spanned[:, :1]) / (scores[:, 1:] - scores[:, :1])
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.01)


def test_blocks_and_offsets_change_nothing(monkeypatch):
    X, y, _ = noisy(0.1)
    whole, _ = out_of_sample(X, y)
    monkeypatch.setattr(labels, "BLOCK_ROWS", 50)
    np.testing.assert_allclose(out_of_sample(X, y)[0], whole, atol=1e-5)
    np.testing.assert_allclose(out_of_sample(X * 8 + 4096, y)[0], whole, atol=0.02)


def test_the_temperature_makes_probabilities_honest():
    X, y, _ = noisy(0.3, n=6000)
    probabilities, _ = out_of_sample(X, y)
    right = probabilities.argmax(axis=1) == y
    assert probabilities.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.05)


def test_equal_features_say_nothing():
    y = np.arange(40) % 2
    probabilities, _ = out_of_sample(np.full((40, 8), 3.0, np.float32), y)
    np.testing.assert_allclose(probabilities, 0.5, atol=1e-6)


@pytest.mark.long
def test_thousands_of_classes_take_seconds():
    rng = np.random.default_rng(0)
    y = np.arange(6000) % 2000
    X = (rng.normal(size=(2000, 64))[y] * 3 + rng.normal(size=(6000, 64))).astype(np.float32)
    probabilities, _ = out_of_sample(X, y)
    assert (probabilities.argmax(axis=1) == y).mean() > 0.95


def test_the_same_seed_gives_the_same_numbers():
    X, y, _ = noisy(0.1, 150)
    first, again, other = (out_of_sample(X, y, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_classes_need_not_be_numbered_without_gaps():
    X, y, wrong = noisy(0.1)
    found = doubts(*_arguments(X, y * 3 + 2))
    assert set(found.better[found.better >= 0]) <= {2, 5, 8}
    assert found.share()["value"] == pytest.approx(wrong.mean(), abs=0.03)


def test_too_few_groups_of_a_class_are_an_error():
    X, y, _ = noisy(0.0, 60)
    with pytest.raises(FitError):
        out_of_sample(X, y, np.where(y == 0, 0, np.arange(60)))
