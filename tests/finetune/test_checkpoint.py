"""A killed training continues and ends with the same numbers."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from featpipe.errors import FitError
from featpipe.finetune.checkpoint import read_checkpoint
from tests.finetune import toy

SETTINGS = {
    "max_epochs": 6,
    "schedule": "onecycle",
    "losses": ("center:0.1",),
    "head": "mlp:6",
    "run": "this",
}


class Killer:
    """Listens to the progress and kills its own process."""

    epochs = 0

    def task(self, label, total, done=0):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, steps=1, **facts):
        self.epochs += 1
        if self.epochs == 4:  # the fourth epoch is learned, but its checkpoint is not written
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(path):
    torch.set_num_threads(1)  # threads do not survive a fork
    toy.estimator(checkpoint=path, progress=Killer(), **SETTINGS).fit(*toy.rows())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_training_ends_with_the_same_numbers(tmp_path):
    path = tmp_path / "training.checkpoint"
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    _, lines = read_checkpoint(path, "this")
    assert len(lines) == 3
    X, y = toy.rows()
    continued = toy.estimator(checkpoint=path, **SETTINGS).fit(X, y)
    straight = toy.estimator(**SETTINGS).fit(X, y)
    assert toy.numbers(continued) == toy.numbers(straight)
    assert continued.best_epoch_ == straight.best_epoch_
    np.testing.assert_array_equal(continued.predict_proba(X), straight.predict_proba(X))


@pytest.mark.parametrize("schedule", ["none", "multistep:2,4", "cosine", "plateau:0", "onecycle"])
def test_every_schedule_continues(tmp_path, schedule):
    X, y = toy.rows()
    path = tmp_path / "c"
    settings = {"schedule": schedule, "max_epochs": 5}
    toy.estimator(checkpoint=path, stop_after=2, **settings).fit(X, y)
    continued = toy.estimator(checkpoint=path, **settings).fit(X, y)
    assert toy.numbers(continued) == toy.numbers(toy.estimator(**settings).fit(X, y))


def test_a_finished_training_is_not_repeated(tmp_path):
    X, y = toy.rows()
    path = tmp_path / "c"
    first = toy.estimator(checkpoint=path).fit(X, y)
    before = path.read_bytes()
    again = toy.estimator(checkpoint=path).fit(X, y)
    assert again.epochs_ == first.epochs_  # seconds and all
    assert path.read_bytes() == before
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    X, y = toy.rows()
    path = tmp_path / "c"
    toy.estimator(checkpoint=path, run="one").fit(X, y)
    with pytest.raises(FitError, match="another run") as caught:
        toy.estimator(checkpoint=path, run="two").fit(X, y)
    assert "rm " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize("content", [[1], 7, torch.zeros(2), {"run": "r", "history": 5}])
def test_another_file_of_torch_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "c"
    torch.save(content, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "r")


def test_a_continued_training_remembers_the_probe_it_started_from(tmp_path):
    X, y = toy.rows()
    settings = {"checkpoint": tmp_path / "c", "run": "r", "head_init": "probe"}
    first = toy.estimator(**settings, stop_after=2).fit(X, y)
    again = toy.estimator(**settings).fit(X, y)
    assert again.probe_c_ == first.probe_c_ is not None


def test_divergence_in_the_last_step_is_seen_without_validation_rows(tmp_path):
    X, y = toy.rows()
    wild = {"optimizer": torch.optim.SGD, "lr": 1e38, "max_epochs": 1, "validation": 0}
    with pytest.raises(FitError, match="outputs are not finite"):
        toy.estimator(checkpoint=tmp_path / "c", batch_size=60, **wild).fit(X, y)
    assert not (tmp_path / "c").exists()


def test_foreign_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "c"
    torch.save({"run": "run", "format": 1, "history": Evil()}, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")
    assert not (tmp_path / "ran").exists()


def test_divergence_is_said_and_the_last_good_state_kept(tmp_path):
    X, y = toy.rows()
    path = tmp_path / "c"
    wild = {"optimizer": torch.optim.SGD, "lr": 1e6, "run": "r", "head": "mlp:4", "validation": 0}
    with pytest.raises(FitError, match="diverged in epoch") as caught:
        toy.estimator(checkpoint=path, max_epochs=50, batch_size=60, **wild).fit(X, y)
    assert "lower --lr" in str(caught.value)
    assert str(path) in str(caught.value)
    content, lines = read_checkpoint(path, "r")
    assert len(lines) >= 1
    assert all(torch.isfinite(value).all() for value in content["module"].values())
