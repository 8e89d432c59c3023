"""Start a head where a linear probe of its features ends, before the stages under it learn.

The first gradients of a random head are large and mean nothing; sent through pretrained stages
they distort what those have learned. A head that fits its features from the first step on does not
(Kumar, Raghunathan, Jones, Ma, Liang: Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, ICLR 2022, arXiv:2202.10054: "LP-FT").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from featpipe.finetune.classifier import HeadClassifier
    from featpipe.finetune.rows import ActivationDataset

_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, the inverse regularisation strength
_DEFAULT = 1e-2  # where there are no validation rows to choose by


def start_from_probe(
    net: HeadClassifier, train: ActivationDataset, valid: ActivationDataset | None
) -> float:
    """Set the last layer to the logistic probe that does best on validation rows.

    Parameters
    ----------
    net : HeadClassifier
        Its network has just been made; ``net.probe_c`` fixes C where it is not ``None``.
    train : ActivationDataset
    valid : ActivationDataset or None

    Returns
    -------
    c : float
        The value of C.
    """
    features, labels = _features(net, train)
    if net.probe_c is not None or valid is None:
        probe = _fit(net.probe_c or _DEFAULT, features, labels, bias=_has_bias(net))
    else:
        known = np.unique(labels)
        features_v, labels_v = _features(net, valid)
        kept = np.isin(labels_v, known)
        features_v, labels_v = features_v[kept], labels_v[kept]
        probes = [_fit(c, features, labels, bias=_has_bias(net)) for c in _VALUES]
        # By the loss that training goes on with: accuracy would not mind logits of any size.
        probe = min(
            probes,
            key=lambda one: log_loss(labels_v, one.predict_proba(features_v), labels=known),
        )
    _copy(probe, net)
    return float(probe[-1].C)


def _features(
    net: HeadClassifier, rows: ActivationDataset
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what the last layer sees of rows as they are, (n, d), and their labels (n,)."""
    batches = [net.evaluation_step(batch)[1] for batch in net.get_iterator(rows)]
    return torch.cat(batches).float().cpu().numpy(), rows.y[rows.places]


def _has_bias(net: HeadClassifier) -> bool:
    return net.module_.head.classifier.bias is not None


def _fit(
    c: float, features: NDArray[np.float32], labels: NDArray[np.int64], *, bias: bool
) -> Pipeline:
    probe = make_pipeline(
        StandardScaler(with_mean=bias), LogisticRegression(C=c, fit_intercept=bias, max_iter=2000)
    )
    return probe.fit(features, labels)


def _copy(probe: Pipeline, net: HeadClassifier) -> None:
    """Write the probe, its standardisation included, into the last layer."""
    scaler, logistic = probe
    weight = logistic.coef_ / scaler.scale_
    bias = logistic.intercept_ - (weight @ scaler.mean_ if scaler.with_mean else 0.0)
    if len(logistic.classes_) == 2:  # scikit-learn keeps the difference of the two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    last = net.module_.head.classifier
    with torch.no_grad():
        last.weight.zero_()
        last.weight[logistic.classes_] = torch.from_numpy(weight).to(last.weight)
        if last.bias is not None:
            last.bias.fill_(float(bias.min()))  # classes that no row has
            last.bias[logistic.classes_] = torch.from_numpy(bias).to(last.bias)
