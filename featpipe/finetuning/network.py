"""What is trained: the stages after a frozen boundary and a new head; its start and its loss."""

from __future__ import annotations

import copy
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
from torch.nn.modules.batchnorm import _BatchNorm

from featpipe.errors import FitError, UnknownNameError, UsageError
from featpipe.finetuning.nets import Trunk, with_parameters
from featpipe.finetuning.step import parse
from featpipe.lazy import Lazy, check_installed

metric_losses = Lazy("pytorch_metric_learning.losses")
metric_miners = Lazy("pytorch_metric_learning.miners")

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (n, d) and labels (n,)

_PROBE_CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, the inverse regularisation strength
_USUAL_PROBE_C = 1e-2  # where there are no validation rows to choose by


def trained_stages(stages: nn.Sequential, unfreeze: str) -> slice:
    """Return which of the stages learn in addition to the head, which always does.

    Stages before them are frozen, those after them only pass the gradient on. ``unfreeze`` is
    ``"none"``, ``"all"``, a stage (``"layer4"``), or a stage and all after it (``"layer3+"``).
    ``UsageError`` if there is no such stage, or it has nothing to learn.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))  # named 0, 1, 2
    >>> trained_stages(net, "1+"), trained_stages(net, "1")
    (slice(1, 3, None), slice(1, 2, None))
    """
    names = [name for name, _ in stages.named_children()]
    if unfreeze in ("none", "all"):
        return slice(0 if unfreeze == "all" else len(names), len(names))
    wanted = unfreeze.removesuffix("+")
    able = with_parameters(stages)
    if wanted not in names:
        what = f"The network has no stage named {wanted!r} to unfreeze."
        expected = f"none, all, {', '.join(able)}, or one of these and all after it: {able[-1]}+"
        raise UnknownNameError(what, wanted, able, expected=expected)
    if wanted not in able:
        what = f"The stage {wanted!r} has nothing to learn."
        raise UsageError(what, expected=", ".join(able), got=unfreeze)
    start = names.index(wanted)
    return slice(start, len(names) if unfreeze.endswith("+") else start + 1)


class Head(nn.Module):
    """New last layers with random weights: ``"linear"``, or ``"mlp:50"`` with hidden neurons.

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
        self.hidden, (_, neurons) = nn.Identity(), parse("head", spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for width in map(int, neurons):  # one, or none
                self.hidden = nn.Sequential(nn.Linear(n_features, width), nn.ReLU())
                n_features = width
            self.classifier = nn.Linear(n_features, n_classes, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes), and the features (n, d) that the last layer gets."""
        features = self.hidden(x)
        return self.classifier(features), features


class HeadedNetwork(nn.Module):
    """Frozen stages, stages that learn, and a new head: what an estimator trains.

    ``unfreeze`` is as for :func:`trained_stages`; stages that learn are copied from the trunk. With
    ``from_store`` the input is the activations of the frozen stages; with ``freeze_statistics``
    batch norms keep their running statistics.
    """

    def __init__(  # noqa: PLR0913 - skorch passes each by name
        self,
        trunk: Trunk,
        unfreeze: str,
        head: str,
        n_classes: int,
        *,
        seed: int = 0,
        from_store: bool = True,
        freeze_statistics: bool = False,
    ) -> None:
        super().__init__()
        self._normalise = trunk.preprocessing.normalise
        trained = trained_stages(trunk.stages, unfreeze)
        before = nn.Sequential() if from_store else trunk.stages[: trained.start]
        self.frozen = before.requires_grad_(False)
        self.body = copy.deepcopy(trunk.stages[trained.start :]).requires_grad_(True)
        self._after = [*self.body[trained.stop - trained.start :].requires_grad_(False)]
        self.head = Head(head, trunk.n_features, n_classes, bias=trunk.bias, seed=seed)
        self._freeze_statistics = freeze_statistics
        self._n_parameters = sum(
            p.numel() for part in (trunk.stages, self.head) for p in part.parameters()
        )
        self.train()

    def train(self, mode: bool = True) -> HeadedNetwork:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        norms = [m for m in self.body.modules() if isinstance(m, _BatchNorm)]
        for module in (self.frozen, *self._after, *(norms if self._freeze_statistics else ())):
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and features (n, d) of uint8 images or stored activations."""
        x = self._normalise(x) if x.dtype == torch.uint8 else x.float()
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(self.body(x))

    def trained_state(self) -> dict[str, Tensor]:
        """Return what distinguishes this network from the one it started from: body and head."""
        state = self.state_dict().items()
        return {name: value for name, value in state if name.startswith(("body.", "head."))}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load body and head; ``ValueError`` where they are those of another network."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        if wrong := [name for name in missing if not name.startswith("frozen.")] + unexpected:
            raise ValueError(f"not the state of this network: {', '.join(wrong[:3])}")

    def count_parameters(self) -> dict[str, int]:
        """Return how many parameters of the whole network, stored stages too, learn or are frozen.

        Keras counts the ``running_statistics`` of batch norms as non-trainable parameters.
        """
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        running = ("running_mean", "running_var")
        statistics = [b.numel() for name, b in self.named_buffers() if name.endswith(running)]
        return {
            "parameters_trained": trained,
            "parameters_frozen": self._n_parameters - trained,
            "running_statistics": sum(statistics),
        }


def start_from_probe(last: nn.Linear, train: Rows, valid: Rows | None, c: float | None) -> float:
    """Write logistic regression on standardised features into a last layer; return its C.

    The large first gradients of a random head distort pretrained stages; those of a head that fits
    its features do not ("LP-FT": Kumar et al., Fine-Tuning can Distort Pretrained Features and
    Underperform Out-of-Distribution, ICLR 2022, arXiv:2202.10054).

    Validation rows choose C, by the loss that training continues with: accuracy does not depend on
    the size of logits. Without any, C is ``c``, by default 0.01.
    """
    bias = last.bias is not None

    def fit(value: float) -> Pipeline:
        logistic = LogisticRegression(C=value, fit_intercept=bias, max_iter=2000)
        return make_pipeline(StandardScaler(with_mean=bias), logistic).fit(*train)

    def loss(probe: Pipeline) -> float:
        return float(log_loss(y[kept], probe.predict_proba(X[kept]), labels=known))

    if valid is None:
        scaler, logistic = fit(c or _USUAL_PROBE_C)
    else:
        (X, y), known = valid, np.unique(train[1])
        kept = np.isin(y, known)
        scaler, logistic = min((fit(value) for value in _PROBE_CS), key=loss)
    weight = logistic.coef_ / scaler.scale_
    offset = logistic.intercept_ - (weight @ scaler.mean_ if bias else 0.0)
    if len(logistic.classes_) == 2:  # scikit-learn keeps the difference of the two classes
        weight = np.stack([-weight[0], weight[0]]) / 2
        offset = np.array([-offset[0], offset[0]]) / 2
    with torch.no_grad():
        last.weight.zero_()
        last.weight[logistic.classes_] = torch.from_numpy(weight).to(last.weight)
        if bias:
            last.bias.fill_(float(offset.min()))  # of classes without rows
            last.bias[logistic.classes_] = torch.from_numpy(offset).to(last.bias)
    return float(logistic.C)


class HeadLoss(nn.Module):
    """Cross-entropy on the logits plus weighted terms on the features.

    The terms (``"triplet:W"``, ``"center:W"``) count in training mode only, so that validation
    losses of different runs measure the same thing: cross-entropy.
    """

    def __init__(self, specs: Sequence[str], n_classes: int, n_features: int) -> None:
        super().__init__()
        parsed = [parse("loss", spec) for spec in specs]
        self.weights = {name: numbers[0] for name, numbers in parsed if numbers}
        self.terms = nn.ModuleDict()
        for name in self.weights:
            center = name == "center"
            self.terms[name] = CenterLoss(n_classes, n_features) if center else TripletLoss()

    def forward(self, output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of what the head gave, a scalar."""
        logits, features = (part.float() for part in output)
        loss = functional.cross_entropy(logits, labels)
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
        check_installed("pytorch_metric_learning", "metric")
        self.loss = metric_losses.TripletMarginLoss(margin=0.2)
        self.miner = metric_miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch; ``FitError`` if it holds a single class."""
        if len(torch.unique(labels)) < 2:
            what = "A batch holds a single class, so there is no triplet to learn from."
            advice = "shuffle the rows, or use a larger --batch-size"
            raise FitError(what, got=f"class {int(labels[0])} only", next_step=advice)
        return self.loss(features, labels, self.miner(features, labels))
