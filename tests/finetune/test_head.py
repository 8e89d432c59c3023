"""Heads and their losses: the right layers, the papers' formulas, cross-entropy to validate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.errors import MissingExtraError, UsageError
from featpipe.finetune import head
from featpipe.finetune.head import CenterLoss, Head, HeadLoss


def test_heads():
    assert sum(p.numel() for p in Head("linear", 4, 3).parameters()) == 15
    assert sum(p.numel() for p in Head("linear", 4, 3, bias=False).parameters()) == 12
    assert [p.numel() for p in Head("mlp:50", 4, 3).parameters()] == [200, 50, 150, 3]


@pytest.mark.parametrize("wrong", ["mlp", "mlp:0", "mlp:x", "linear:3"])
def test_wrong_heads_are_refused(wrong):
    with pytest.raises(UsageError):
        Head(wrong, 4, 3)


def test_smoothing_counts_in_training_only():
    output = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 2)
    loss = HeadLoss(("cross-entropy",), 0.2, 3, 2)
    assert loss.train()(output, torch.tensor([0])) > 1
    assert loss.eval()(output, torch.tensor([0])) < 0.001


def test_centre_loss_is_that_of_the_paper():
    loss = CenterLoss(2, 2)
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    value = loss(features, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((4 + 16 + 36) / 3 / 2)
    # equation 4: the centre moves by rate * sum(centre - x) / (1 + n)
    torch.testing.assert_close(loss.centers, torch.tensor([[1.0, 0.0], [0.0, 1.5]]))


def test_terms_count_in_training_only():
    loss = HeadLoss(("center:0.5",), n_classes=2, n_features=2)
    output = (torch.zeros(2, 2), torch.ones(2, 2))
    labels = torch.tensor([0, 1])
    assert loss.eval()(output, labels).item() == pytest.approx(np.log(2))
    assert loss.train()(output, labels).item() == pytest.approx(np.log(2) + 0.5 * 1.0)


@pytest.mark.parametrize("wrong", ["triplet:0", "center:-1", "center:x", "cross-entropy:2"])
def test_wrong_weights_are_refused(wrong):
    with pytest.raises(UsageError, match=r"not a loss|takes no number"):
        HeadLoss([wrong], n_classes=2, n_features=2)


def test_the_triplet_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(head, "TripletMarginLoss", None)
    with pytest.raises(MissingExtraError, match="pytorch-metric-learning"):
        HeadLoss(("triplet",), n_classes=2, n_features=2)
