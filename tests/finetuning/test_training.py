"""The estimator: scikit-learn's contract, identical runs, what it refuses, what survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featpipe.errors import FitError, UsageError
from featpipe.finetuning.saved import read_checkpoint
from featpipe.finetuning.step import OPTIMIZERS
from featpipe.finetuning.training import derived_seed, make_schedule

SCHEDULES = ["none", "multistep:2,4", "cosine", "plateau:0", "onecycle"]


def test_it_learns_and_answers_with_probabilities(estimator, vectors):
    X, y = vectors
    fitted = estimator(max_epochs=30, lr=0.05).fit(X, y)
    proba = fitted.predict_proba(X)
    assert proba.shape == (60, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (fitted.predict(X) == y).mean() > 0.9
    assert fitted.predict(X).tolist() == proba.argmax(axis=1).tolist()


def test_history_is_data(estimator, vectors):
    fitted = estimator(schedule="cosine", gradient_flow=True).fit(*vectors)
    assert list(fitted.epochs_[0]) == [
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


def test_a_clone_starts_again_and_gives_the_same_numbers(estimator, vectors, without_clock):
    X, y = vectors
    first = estimator(head="mlp:5", losses=("center:0.1",)).fit(X, y)
    again = clone(first).fit(X, y)
    assert without_clock(first.epochs_) == without_clock(again.epochs_)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    twice = first.fit(X, y)  # fitting a second time forgets the first
    assert without_clock(twice.epochs_) == without_clock(again.epochs_)


def test_another_seed_gives_another_order(estimator, vectors):
    losses = {estimator(seed=s).fit(*vectors).epochs_[0]["train_loss"] for s in (0, 1)}
    assert len(losses) == 2


def test_derived_seeds_are_stable_and_differ_for_every_epoch_of_every_run():
    seeds = {derived_seed(seed, epoch) for seed in range(20) for epoch in range(50)}
    assert len(seeds) == 20 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, 1) == 2918264622725855778  # a run that goes on elsewhere must find it
    torch.Generator().manual_seed(derived_seed(2**32 - 1, 10_000))


def test_training_leaves_the_callers_generator_alone(estimator, vectors):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    estimator().fit(*vectors)
    assert torch.equal(torch.rand(3), expected)


def test_a_grid_search_can_choose_the_learning_rate(estimator, vectors):
    search = GridSearchCV(estimator(validation=0), {"lr": [1e-6, 0.05]}, cv=2, refit=False)
    assert search.fit(*vectors).best_params_ == {"lr": 0.05}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_learns_with_every_schedule(estimator, vectors, name, schedule):
    options = {
        "optimizer": getattr(torch.optim, OPTIMIZERS[name][0]),
        "schedule": schedule,
        "validation": 0,
    }
    fitted = estimator(**options, lr=0.02, max_epochs=3).fit(*vectors)
    losses = [line["train_loss"] for line in fitted.epochs_]
    assert losses[-1] < losses[0]
    assert fitted.best_epoch_ == 3


def test_rates_are_stepped_and_cycled(estimator, vectors):
    stepped = estimator(schedule="multistep:1,3").fit(*vectors)
    np.testing.assert_allclose(
        [line["lr"] for line in stepped.epochs_], [1e-2, 1e-3, 1e-3, 1e-4], rtol=1e-6
    )
    cycle = [line["lr"] for line in estimator(schedule="onecycle").fit(*vectors).epochs_]
    assert cycle[0] < max(cycle) <= 0.01
    assert cycle[-1] < max(cycle)


def test_one_cycle_leaves_momentum_as_it_was_given(estimator, vectors, without_clock):
    sgd = {"optimizer": torch.optim.SGD, "schedule": "onecycle"}
    given = estimator(**sgd, optimizer__momentum=0.5).fit(*vectors)
    assert given.optimizer_.param_groups[0]["momentum"] == 0.5
    plain = estimator(**sgd).fit(*vectors)
    assert without_clock(given.epochs_) != without_clock(plain.epochs_)


def test_plateau_lowers_the_rate_when_the_loss_stays(estimator, vectors):
    fitted = estimator(schedule="plateau:0", lr=1e-6, max_epochs=3).fit(*vectors)
    assert fitted.epochs_[-1]["lr"] == pytest.approx(1e-7)


@pytest.mark.parametrize(
    "wrong",
    ["multistep", "multistep:3,1", "cosine:3", "plateau", "plateau:x", "plateau:1,2", "cosinus"],
)
def test_wrong_schedules_are_refused(wrong):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UsageError):
        make_schedule(wrong, optimizer, 10, 2)


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 2)], ids=["all", "two of three"])
def test_a_head_can_start_where_a_probe_ends(estimator, vectors, classes):
    X, y = vectors
    X, y = X[np.isin(y, classes)], y[np.isin(y, classes)]
    still = {"head_init": "probe", "lr": 1e-12, "max_epochs": 1, "validation": 0.0}
    head = estimator(**still, probe_c=0.1).fit(X, y)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(X, y)
    answers = head.predict_proba(X)[:, list(classes)]
    np.testing.assert_allclose(
        answers / answers.sum(1, keepdims=True), probe.predict_proba(X), atol=1e-3
    )
    np.testing.assert_array_equal(head.predict(X), probe.predict(X))


def test_the_probe_of_a_start_is_chosen_on_validation_rows(estimator, vectors):
    chosen = estimator(head_init="probe").fit(*vectors)
    assert chosen.probe_c_ in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert estimator(head_init="probe", validation=0.0).fit(*vectors).probe_c_ == 0.01
    plain = estimator().fit(*vectors)
    assert plain.probe_c_ is None
    assert chosen.epochs_[0]["train_loss"] < plain.epochs_[0]["train_loss"]


def test_a_class_too_rare_for_validation_does_not_stop_the_probe(estimator, vectors):
    X = np.concatenate([vectors[0], vectors[0][:4]])
    y = np.where(np.arange(64) < 62, np.arange(64) % 2, 2)
    assert estimator(head_init="probe").fit(X, y).probe_c_ is not None


@pytest.mark.parametrize(
    "losses", [("cross-entropy",), ("triplet:1.0",), ("center:0.1",), ("triplet:0.5", "center:1")]
)
def test_every_loss_trains(estimator, vectors, losses):
    if any(name.startswith("triplet") for name in losses):
        pytest.importorskip("pytorch_metric_learning")
    fitted = estimator(losses=losses, lr=0.02, max_epochs=8).fit(*vectors)
    assert fitted.epochs_[-1]["valid_loss"] < fitted.epochs_[0]["valid_loss"]


def test_patience_stops_and_the_best_epoch_is_kept(estimator, vectors):
    fitted = estimator(max_epochs=200, lr=0.1, patience=3).fit(*vectors)
    assert len(fitted.epochs_) == fitted.best_epoch_ + 3
    best = max(fitted.epochs_, key=lambda line: (line["valid_accuracy"], -line["valid_loss"]))
    assert fitted.best_epoch_ == best["epoch"]


def test_mixed_precision_agrees_roughly(estimator, vectors):
    exact, mixed = (estimator(precision=p).fit(*vectors) for p in ("float32", "mixed"))
    X = vectors[0]
    np.testing.assert_allclose(exact.predict_proba(X), mixed.predict_proba(X), atol=0.05)
    assert mixed.module_.head.classifier.weight.dtype == torch.float32


def test_shuffling_can_be_switched_off(estimator, vectors):
    kept = estimator(shuffle=False, validation=0)
    order = [labels for _, labels in kept.get_iterator(kept.get_dataset(*vectors), training=True)]
    assert torch.cat(order).tolist() == vectors[1].tolist()


def test_only_training_batches_are_augmented(estimator, vectors):
    net = estimator(augment=lambda batch: batch + 1, shuffle=False, batch_size=60)
    for training in (True, False):
        ((values, _),) = net.get_iterator(net.get_dataset(*vectors), training=training)
        np.testing.assert_array_equal(values, vectors[0] + training)


@pytest.mark.parametrize("rate", [0.0, float("nan"), -1.0, float("inf")])
def test_an_impossible_learning_rate_is_refused(estimator, vectors, rate):
    with pytest.raises((UsageError, ValueError), match=r"learning rate"):
        estimator(lr=rate).fit(*vectors)


def test_a_batch_above_the_rows_is_refused(estimator, vectors):
    with pytest.raises(UsageError, match="larger than the training rows"):
        estimator(batch_size=49).fit(*vectors)


def test_one_class_is_refused(estimator, vectors):
    with pytest.raises(FitError, match="at least two classes"):
        estimator().fit(vectors[0], np.zeros_like(vectors[1]))


def test_a_head_for_fewer_classes_is_refused(estimator, vectors):
    with pytest.raises(FitError, match="another number of classes") as caught:
        estimator().fit(vectors[0], vectors[1] + 1)
    assert "0 to 2" in str(caught.value)


def test_triplets_in_a_batch_of_one_class_are_refused(estimator, vectors):
    pytest.importorskip("pytorch_metric_learning")
    order = np.argsort(vectors[1], kind="stable")
    sorted_rows = (vectors[0][order], vectors[1][order])
    with pytest.raises(FitError, match="single class"):
        estimator(losses=("triplet:1",), shuffle=False, validation=0).fit(*sorted_rows)


def test_too_few_rows_for_validation_are_refused(estimator, vectors):
    with pytest.raises(FitError, match="--validation 0"):
        estimator(batch_size=2).fit(vectors[0][:4], vectors[1][:4])


class Progress:
    """Calls a function with the number of each epoch that was told."""

    def __init__(self, told):
        self.told, self.epochs = told, 0

    def task(self, label, total, done=0):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, steps=1, **facts):
        self.epochs += 1
        self.told(self.epochs)


def test_an_interruption_is_not_the_end_of_the_training(estimator, vectors):
    def interrupt(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimator(progress=Progress(interrupt)).fit(*vectors)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_training_that_was_ended_continues_with_the_same_numbers(
    estimator, vectors, without_clock, tmp_path, monkeypatch, number, code
):
    path = tmp_path / "training.checkpoint"
    settings = {"schedule": "onecycle", "losses": ("center:0.1",), "head": "mlp:6"}
    settings |= {"max_epochs": 6, "run": "this"}

    def die(epoch):
        if epoch == 4:  # it is learned, but its checkpoint is not written
            os.kill(os.getpid(), number)

    def train():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's child may ignore it
        torch.set_num_threads(1)  # threads do not survive a fork
        try:
            estimator(checkpoint=path, progress=Progress(die), **settings).fit(*vectors)
        except KeyboardInterrupt:
            sys.exit(130)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(120)
    assert process.exitcode == code
    assert len(read_checkpoint(path, "this")[1]) == 3
    continued = estimator(checkpoint=path, **settings).fit(*vectors)
    straight = estimator(**settings).fit(*vectors)
    assert without_clock(continued.epochs_) == without_clock(straight.epochs_)
    assert continued.best_epoch_ == straight.best_epoch_
    proba = [one.predict_proba(vectors[0]) for one in (continued, straight)]
    np.testing.assert_array_equal(*proba)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_continues(estimator, vectors, without_clock, tmp_path, schedule):
    settings = {"schedule": schedule, "max_epochs": 5}
    estimator(checkpoint=tmp_path / "c", stop_after=2, **settings).fit(*vectors)
    continued = estimator(checkpoint=tmp_path / "c", **settings).fit(*vectors)
    straight = estimator(**settings).fit(*vectors)
    assert without_clock(continued.epochs_) == without_clock(straight.epochs_)


def test_a_finished_training_is_not_repeated(estimator, vectors, tmp_path):
    path = tmp_path / "c"
    first = estimator(checkpoint=path).fit(*vectors)
    before = path.read_bytes()
    again = estimator(checkpoint=path).fit(*vectors)
    assert again.epochs_ == first.epochs_  # seconds and all
    assert path.read_bytes() == before
    proba = [one.predict_proba(vectors[0]) for one in (again, first)]
    np.testing.assert_array_equal(*proba)


def test_a_continued_training_remembers_the_probe_it_started_from(estimator, vectors, tmp_path):
    settings = {"checkpoint": tmp_path / "c", "run": "r", "head_init": "probe"}
    first = estimator(**settings, stop_after=2).fit(*vectors)
    again = estimator(**settings).fit(*vectors)
    assert again.probe_c_ == first.probe_c_ is not None


def test_divergence_in_the_last_step_is_seen_without_validation_rows(estimator, vectors, tmp_path):
    wild = {"optimizer": torch.optim.SGD, "lr": 1e38, "max_epochs": 1, "validation": 0}
    with pytest.raises(FitError, match="outputs are not finite"):
        estimator(checkpoint=tmp_path / "c", batch_size=60, **wild).fit(*vectors)
    assert not (tmp_path / "c").exists()


def test_divergence_is_told_and_the_last_good_state_kept(estimator, vectors, tmp_path):
    path = tmp_path / "c"
    wild = {"optimizer": torch.optim.SGD, "lr": 1e6, "run": "r", "head": "mlp:4", "validation": 0}
    with pytest.raises(FitError, match="diverged in epoch") as caught:
        estimator(checkpoint=path, max_epochs=50, batch_size=60, **wild).fit(*vectors)
    assert "lower --lr" in str(caught.value)
    assert str(path) in str(caught.value)
    content, lines = read_checkpoint(path, "r")
    assert len(lines) >= 1
    assert all(torch.isfinite(value).all() for value in content["module"].values())
