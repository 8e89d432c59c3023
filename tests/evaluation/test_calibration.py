"""Probabilities of answers: as sure as they are right, for rows that were not trained on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from featpipe.evaluation.calibration import calibrate, fit_temperature
from featpipe.evaluation.classifier import predict_with_scores, to_probabilities
from featpipe.evaluation.fitting import fit_splits
from featpipe.evaluation.models import load_model
from featpipe.evaluation.protocol import make_splits
from featpipe.probes.any_classifier import AnyClassifier
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluated, pair
from tests.stores import content, sealed

PROBES = [
    Svm(c=(0.001, 0.1)),
    Knn(k=(1,)),
    AnyClassifier(classifier="sklearn.naive_bayes.GaussianNB"),
]


def test_the_temperature_has_the_least_log_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)) * 50
    p = np.exp(logits / 20)
    truth = np.array([rng.choice(3, p=row / row.sum()) for row in p])
    found, loss = fit_temperature(logits, truth)
    assert 15 < found < 27
    known = np.arange(3)

    def loss_at(temperature):
        probabilities = to_probabilities(logits, known, temperature, graded=False)
        return log_loss(truth, probabilities)

    assert loss == pytest.approx(loss_at(found))
    assert all(loss <= loss_at(found * factor) for factor in (0.5, 0.9, 1.1, 2))


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.label)
def test_new_rows_are_as_often_right_as_said(tmp_path, probe):
    train = sealed(tmp_path / "train.h5", content(240), noise=4.0, seed=1)
    test = sealed(tmp_path / "test.h5", content(300, split="test"), noise=4.0, seed=2)
    _, (split,) = make_splits("split", train, test, 0)
    ((estimator, answers),) = fit_splits([split], probe)
    facts = calibrate(split, probe, answers.facts["chosen"], 1)
    assert facts["rows"] == 240
    _, scores, graded = predict_with_scores(estimator, test.features(), 3)
    found = to_probabilities(scores, estimator.classes_, facts["temperature"], graded=graded)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == scores.argmax(axis=1)).all()
    sure, right = found.max(axis=1).mean(), (answers.predicted == test.labels).mean()
    assert abs(sure - right) < 0.12  # of 240 rows, and two thirds of them train
    assert log_loss(test.labels, found) < np.log(3)


def test_a_class_without_training_rows_has_no_probability():
    scores = np.array([[0.2, -1.0, 0.1]])
    found = to_probabilities(scores, np.array([0, 2]), 1.0, graded=False)
    assert found[0, 1] == 0
    assert found.sum() == pytest.approx(1)


def test_the_result_and_the_model_keep_the_temperature(tmp_path):
    result = evaluated(Svm(c=(0.1,)), tmp_path, *pair(tmp_path))
    model = load_model(tmp_path / "data" / "models" / result.files["model"])
    assert model.temperature == result.extra["calibration"]["temperature"] > 0


def test_where_a_part_of_the_rows_is_not_enough_the_reason_is_kept(tmp_path):
    train, test = pair(tmp_path, n=12)
    result = evaluated(Knn(k=(12,)), tmp_path, train, test)
    assert "is not enough" in result.extra["calibration"]["reason"]


def test_where_no_row_can_be_held_out_the_reason_is_kept(tmp_path):
    labels = np.array([0] * 20 + [1])
    train = sealed(tmp_path / "train.h5", content(21, labels=labels))
    test = sealed(tmp_path / "test.h5", content(9, split="test"))
    result = evaluated(Svm(c=(0.1,)), tmp_path, train, test)
    assert "too few" in result.extra["calibration"]["reason"]
    assert load_model(tmp_path / "data" / "models" / result.files["model"]).temperature is None
