"""A new head: its layers, where a probe lets them start, and the loss they are trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from featpipe.errors import FitError, MissingExtraError
from featpipe.finetune import grammar

try:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner
except ImportError:  # an extra
    TripletMarginLoss = None

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (n, d) and labels (n,)

_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, the inverse regularisation strength
_DEFAULT = 1e-2  # where there are no validation rows to choose by


class Head(nn.Module):
    """New last layers with random weights: ``"linear"``, or ``"mlp:50"`` with hidden neurons.

    A network may be made for a last layer without ``bias``.

    Examples
    --------
    >>> Head("mlp:50", 2048, 10).classifier
    Linear(in_features=50, out_features=10, bias=True)
    """

    hidden: nn.Module

    def __init__(
        self, spec: str, n_features: int, n_classes: int, *, bias: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        neurons = grammar.head(spec)[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Identity()
            if neurons:
                self.hidden = nn.Sequential(nn.Linear(n_features, neurons), nn.ReLU())
            self.classifier = nn.Linear(neurons or n_features, n_classes, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and the features in front of the last layer (n, d)."""
        features = self.hidden(x)
        return self.classifier(features), features


def start_from_probe(last: nn.Linear, train: Rows, valid: Rows | None, c: float | None) -> float:
    """Write logistic regression on standardised features into a last layer; return its C.

    The first gradients of a random head are large and mean nothing; sent through pretrained stages
    they distort what those have learned. A head that fits its features from the first step on does
    not (Kumar, Raghunathan, Jones, Ma, Liang: Fine-Tuning can Distort Pretrained Features and
    Underperform Out-of-Distribution, ICLR 2022, arXiv:2202.10054: "LP-FT").

    Validation rows choose C; without any it is ``c``, by default 0.01.
    """
    bias = last.bias is not None

    def fit(value: float) -> Pipeline:
        logistic = LogisticRegression(C=value, fit_intercept=bias, max_iter=2000)
        return make_pipeline(StandardScaler(with_mean=bias), logistic).fit(*train)

    if valid is None:
        scaler, logistic = fit(c or _DEFAULT)
    else:
        known = np.unique(train[1])
        kept = np.isin(valid[1], known)
        X, y = valid[0][kept], valid[1][kept]
        # By the loss that training goes on with: accuracy would not mind logits of any size.
        scaler, logistic = min(
            (fit(value) for value in _VALUES),
            key=lambda probe: log_loss(y, probe.predict_proba(X), labels=known),
        )
    weight = logistic.coef_ / scaler.scale_
    offset = logistic.intercept_ - (weight @ scaler.mean_ if bias else 0.0)
    if len(logistic.classes_) == 2:  # scikit-learn keeps the difference of the two classes
        weight = np.stack([-weight[0], weight[0]]) / 2
        offset = np.array([-offset[0], offset[0]]) / 2
    with torch.no_grad():
        last.weight.zero_()
        last.weight[logistic.classes_] = torch.from_numpy(weight).to(last.weight)
        if bias:
            last.bias.fill_(float(offset.min()))  # classes that no row has
            last.bias[logistic.classes_] = torch.from_numpy(offset).to(last.bias)
    return float(logistic.C)


class HeadLoss(nn.Module):
    """Cross-entropy on the logits plus weighted terms on the features.

    Terms (``"triplet:W"``, ``"center:W"``) and smoothing count in training mode only, so that
    validation losses of different runs measure the same thing: cross-entropy.
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

    The centres follow the features by equation 4 of Wen, Zhang, Li, Qiao: A Discriminative Feature
    Learning Approach for Deep Face Recognition, ECCV 2016, not by the optimizer.
    """

    centers: Tensor
    rate = 0.5  # the paper's alpha

    def __init__(self, n_classes: int, n_features: int) -> None:
        super().__init__()
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
        """Return the loss of a batch; ``FitError`` if it holds a single class."""
        if len(torch.unique(labels)) < 2:
            raise FitError(
                "A batch holds a single class, so there is no triplet to learn from.",
                got=f"{len(labels)} rows of class {int(labels[0])}",
                next_step="shuffle the rows, or use a larger --batch-size",
            )
        return self.loss(features, labels, self.miner(features, labels))
