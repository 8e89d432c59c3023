"""The estimator: scikit-learn's contract, identical runs, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featpipe.errors import FitError, UsageError
from featpipe.finetune import OPTIMIZERS
from tests.finetune import toy


def test_it_learns_and_answers_with_probabilities():
    X, y = toy.rows()
    fitted = toy.estimator(max_epochs=30, lr=0.05).fit(X, y)
    proba = fitted.predict_proba(X)
    assert proba.shape == (60, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (fitted.predict(X) == y).mean() > 0.9
    assert fitted.predict(X).tolist() == proba.argmax(axis=1).tolist()


def test_history_is_data():
    X, y = toy.rows()
    fitted = toy.estimator(schedule="cosine", gradient_flow=True).fit(X, y)
    first = fitted.epochs_[0]
    assert list(first) == [
        *("epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy"),
        *("lr", "seconds", "images_per_s"),
    ]
    assert [line["epoch"] for line in fitted.epochs_] == [1, 2, 3, 4]
    rates = [line["lr"] for line in fitted.epochs_]
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-6)
    flow = fitted.gradient_flow_
    assert len(flow) == 4
    assert flow[0][0]["layer"] == "head.classifier"
    assert 0 < flow[0][0]["mean"] <= flow[0][0]["max"]


def test_a_clone_starts_anew_and_gives_the_same_numbers():
    X, y = toy.rows()
    first = toy.estimator(head="mlp:5", losses=("center:0.1",)).fit(X, y)
    again = clone(first).fit(X, y)
    assert toy.numbers(first) == toy.numbers(again)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    twice = first.fit(X, y)  # fitting a second time forgets the first
    assert toy.numbers(twice) == toy.numbers(again)


def test_another_seed_gives_another_order():
    X, y = toy.rows()
    losses = {toy.estimator(seed=seed).fit(X, y).epochs_[0]["train_loss"] for seed in (0, 1)}
    assert len(losses) == 2


def test_training_leaves_the_callers_generator_alone():
    X, y = toy.rows()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    toy.estimator().fit(X, y)
    assert torch.equal(torch.rand(3), expected)


def test_a_grid_search_can_choose_the_learning_rate():
    X, y = toy.rows()
    search = GridSearchCV(toy.estimator(validation=0), {"lr": [1e-6, 0.05]}, cv=2, refit=False)
    assert search.fit(X, y).best_params_ == {"lr": 0.05}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("schedule", ["none", "multistep:2,3", "cosine", "plateau:0", "onecycle"])
def test_every_optimizer_learns_with_every_schedule(name, schedule):
    X, y = toy.rows()
    fitted = toy.estimator(
        optimizer=OPTIMIZERS.load(name), schedule=schedule, lr=0.02, max_epochs=3, validation=0
    ).fit(X, y)
    losses = [line["train_loss"] for line in fitted.epochs_]
    assert losses[-1] < losses[0]
    assert fitted.best_epoch_ == 3


def test_schedules_change_the_rate_as_they_say():
    X, y = toy.rows()
    stepped = toy.estimator(schedule="multistep:1,3").fit(X, y)
    np.testing.assert_allclose(
        [line["lr"] for line in stepped.epochs_], [1e-2, 1e-3, 1e-3, 1e-4], rtol=1e-6
    )
    cycle = [line["lr"] for line in toy.estimator(schedule="onecycle").fit(X, y).epochs_]
    assert cycle[0] < max(cycle) <= 0.01
    assert cycle[-1] < max(cycle)


def test_one_cycle_leaves_momentum_as_it_was_given():
    X, y = toy.rows()
    sgd = {"optimizer": torch.optim.SGD, "schedule": "onecycle"}
    given = toy.estimator(**sgd, optimizer__momentum=0.5).fit(X, y)
    assert given.optimizer_.param_groups[0]["momentum"] == 0.5
    assert toy.numbers(given) != toy.numbers(toy.estimator(**sgd).fit(X, y))


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 2)], ids=["all", "two of three"])
def test_a_head_can_start_where_a_probe_ends(classes):
    X, y = toy.rows(90)
    X, y = X[np.isin(y, classes)], y[np.isin(y, classes)]
    still = {"head_init": "probe", "lr": 1e-12, "max_epochs": 1, "validation": 0.0}
    head = toy.estimator(**still, probe_c=0.1).fit(X, y)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(X, y)
    answers = head.predict_proba(X)[:, list(classes)]
    np.testing.assert_allclose(
        answers / answers.sum(1, keepdims=True), probe.predict_proba(X), atol=1e-3
    )
    np.testing.assert_array_equal(head.predict(X), probe.predict(X))


def test_the_probe_of_a_start_is_chosen_on_validation_rows():
    X, y = toy.rows()
    chosen = toy.estimator(head_init="probe").fit(X, y)
    assert chosen.probe_c_ in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert toy.estimator(head_init="probe", validation=0.0).fit(X, y).probe_c_ == 0.01
    assert toy.estimator().fit(X, y).probe_c_ is None
    first = chosen.epochs_[0]["train_loss"]
    assert first < toy.estimator().fit(X, y).epochs_[0]["train_loss"]


def test_a_class_too_rare_for_validation_does_not_stop_the_probe():
    X, y = toy.rows(64)
    y = np.where(np.arange(64) < 62, np.arange(64) % 2, 2)
    assert toy.estimator(head_init="probe").fit(X, y).probe_c_ is not None


def test_plateau_lowers_the_rate_when_the_loss_stays():
    X, y = toy.rows()
    fitted = toy.estimator(schedule="plateau:0", lr=1e-6, max_epochs=3).fit(X, y)
    assert fitted.epochs_[-1]["lr"] == pytest.approx(1e-7)


@pytest.mark.parametrize(
    "losses", [("cross-entropy",), ("triplet:1.0",), ("center:0.1",), ("triplet:0.5", "center")]
)
def test_every_loss_trains(losses):
    if any(name.startswith("triplet") for name in losses):
        pytest.importorskip("pytorch_metric_learning")
    X, y = toy.rows()
    fitted = toy.estimator(losses=losses, label_smoothing=0.1, lr=0.02, max_epochs=8).fit(X, y)
    assert fitted.epochs_[-1]["valid_loss"] < fitted.epochs_[0]["valid_loss"]


def test_patience_stops_and_the_best_epoch_is_kept():
    X, y = toy.rows()
    fitted = toy.estimator(max_epochs=200, lr=0.1, patience=3).fit(X, y)
    assert len(fitted.epochs_) == fitted.best_epoch_ + 3
    best = max(fitted.epochs_, key=lambda line: (line["valid_accuracy"], -line["valid_loss"]))
    assert fitted.best_epoch_ == best["epoch"]


def test_mixed_precision_agrees_roughly():
    X, y = toy.rows()
    exact, mixed = (toy.estimator(precision=p).fit(X, y) for p in ("float32", "mixed"))
    np.testing.assert_allclose(exact.predict_proba(X), mixed.predict_proba(X), atol=0.05)
    assert mixed.module_.head.classifier.weight.dtype == torch.float32


def test_shuffling_can_be_switched_off():
    X, y = toy.rows()
    kept = toy.estimator(shuffle=False, validation=0)
    order = [labels for _, labels in kept.get_iterator(kept.get_dataset(X, y), training=True)]
    assert torch.cat(order).tolist() == y.tolist()


@pytest.mark.parametrize("rate", [0.0, float("nan"), -1.0, float("inf")])
def test_an_impossible_learning_rate_is_refused(rate):
    X, y = toy.rows()
    with pytest.raises((UsageError, ValueError), match=r"learning rate"):
        toy.estimator(lr=rate).fit(X, y)


def test_a_batch_above_the_rows_is_refused():
    X, y = toy.rows()
    with pytest.raises(UsageError, match="larger than the training rows"):
        toy.estimator(batch_size=49).fit(X, y)


def test_one_class_is_refused():
    X, y = toy.rows()
    with pytest.raises(FitError, match="at least two classes"):
        toy.estimator().fit(X, np.zeros_like(y))


def test_a_head_for_fewer_classes_is_refused():
    X, y = toy.rows()
    with pytest.raises(FitError, match="another number of classes") as caught:
        toy.estimator().fit(X, y + 1)
    assert "0 to 2" in str(caught.value)


def test_triplets_in_a_batch_of_one_class_are_refused():
    pytest.importorskip("pytorch_metric_learning")
    X, y = toy.rows()
    order = np.argsort(y, kind="stable")
    with pytest.raises(FitError, match="single class"):
        toy.estimator(losses=("triplet",), shuffle=False, validation=0).fit(X[order], y[order])


def test_too_few_rows_for_validation_are_refused():
    X, y = toy.rows(4)
    with pytest.raises(FitError, match="--validation 0"):
        toy.estimator(batch_size=2).fit(X, y)


def test_an_interruption_is_not_the_end_of_the_training():
    class Impatient:
        def task(self, label, total, done=0):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, **facts):
            raise KeyboardInterrupt

    X, y = toy.rows()
    with pytest.raises(KeyboardInterrupt):
        toy.estimator(progress=Impatient()).fit(X, y)
