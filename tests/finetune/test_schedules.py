"""Schedules change the learning rate as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.errors import UsageError
from featpipe.finetune.schedules import Schedule


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
    "wrong", ["multistep", "multistep:3,1", "cosine:3", "plateau:x", "plateau:1,2", "cosinus"]
)
def test_wrong_schedules_are_refused(wrong):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UsageError):
        Schedule(wrong, optimizer, 10, 2)
