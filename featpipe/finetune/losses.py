"""What training minimises: cross-entropy, and on request terms on the features before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from featpipe.errors import FitError, MissingExtraError
from featpipe.finetune import grammar

try:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner
except ImportError:  # an extra
    TripletMarginLoss = None


class HeadLoss(nn.Module):
    """Cross-entropy on the logits plus weighted terms on the features.

    Terms and smoothing count in training mode only, so that validation losses of different runs
    measure the same thing: cross-entropy.

    Parameters
    ----------
    losses : sequence of str
        ``"cross-entropy"``, ``"triplet:W"``, ``"center:W"``.
    label_smoothing : float
    n_classes, n_features : int
        What the head gives.

    Raises
    ------
    UsageError
        If a loss is unknown, or its weight is not a positive number.
    MissingExtraError
        If pytorch-metric-learning is needed and not installed.
    """

    def __init__(
        self,
        losses: Sequence[str] = (grammar.CROSS_ENTROPY,),
        label_smoothing: float = 0.0,
        n_classes: int = 0,
        n_features: int = 0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weights = dict(grammar.loss(spec) for spec in losses)
        self.weights.pop(grammar.CROSS_ENTROPY, None)
        self.terms = nn.ModuleDict(
            {
                name: TripletLoss() if name == "triplet" else CenterLoss(n_classes, n_features)
                for name in self.weights
            }
        )

    def forward(self, output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of what the head gave, a scalar."""
        logits, features = (part.float() for part in output)
        smoothing = self.label_smoothing if self.training else 0.0
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.training:
            for name, weight in self.weights.items():
                loss = loss + weight * self.terms[name](features, labels)
        return loss


class CenterLoss(nn.Module):
    """Half the squared distance of features from the centre of their class, averaged.

    The centres follow the features by the rule of the paper's equation 4, not by the optimizer.

    Parameters
    ----------
    n_classes, n_features : int
    rate : float
        How far centres move towards their batch (alpha in the paper).

    References
    ----------
    Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition,
    ECCV 2016.
    """

    centers: Tensor

    def __init__(self, n_classes: int, n_features: int, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centers", torch.zeros(n_classes, n_features))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, and move the centres."""
        loss = (features - self.centers[labels]).square().sum(dim=1).mean() / 2
        with torch.no_grad():
            away = self.centers[labels] - features
            total = torch.zeros_like(self.centers).index_add_(0, labels, away)
            count = torch.bincount(labels, minlength=len(self.centers)).unsqueeze(1)
            self.centers -= self.rate * total / (1 + count)
        return loss


class TripletLoss(nn.Module):
    """Triplet margin loss on triplets mined from each batch.

    Margin 0.2 and semi-hard mining as in Schroff et al. 2015, arXiv:1503.03832.
    """

    def __init__(self) -> None:
        super().__init__()
        if TripletMarginLoss is None:
            raise MissingExtraError("pytorch-metric-learning", "metric")
        self.loss = TripletMarginLoss(margin=0.2)
        self.miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Raises
        ------
        FitError
            If the batch holds a single class.
        """
        if len(torch.unique(labels)) < 2:
            raise FitError(
                "A batch holds a single class, so there is no triplet to learn from.",
                got=f"{len(labels)} rows of class {int(labels[0])}",
                next_step="shuffle the rows, or use a larger --batch-size",
            )
        return self.loss(features, labels, self.miner(features, labels))
