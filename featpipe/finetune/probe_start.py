"""Start a head where a linear probe of its features ends, before the stages under it learn.

The first gradients of a random head are large and mean nothing; sent through pretrained stages
they distort what those have learned. A head that fits its features from the first step on does not
(Kumar, Raghunathan, Jones, Ma, Liang: Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, ICLR 2022, arXiv:2202.10054: "LP-FT").
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of C, the inverse regularisation strength
_DEFAULT = 1e-2  # where there are no validation rows to choose by

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (n, d) and labels (n,)


def best_probe(train: Rows, valid: Rows | None, *, c: float | None, bias: bool) -> Pipeline:
    """Fit logistic regression on standardised features.

    Parameters
    ----------
    train : pair of ndarray of shape (n, d) and ndarray of shape (n,)
    valid : pair of ndarray, or None
        Rows that choose C; without any it is ``c``, by default 0.01.
    c : float or None
    bias : bool
        Whether the last layer has one.

    Returns
    -------
    probe : Pipeline
        Of a scaler and a logistic regression.
    """

    def fit(value: float) -> Pipeline:
        logistic = LogisticRegression(C=value, fit_intercept=bias, max_iter=2000)
        return make_pipeline(StandardScaler(with_mean=bias), logistic).fit(*train)

    if valid is None:
        return fit(c or _DEFAULT)
    known = np.unique(train[1])
    kept = np.isin(valid[1], known)
    # By the loss that training goes on with: accuracy would not mind logits of any size.
    return min(
        (fit(value) for value in _VALUES),
        key=lambda one: log_loss(valid[1][kept], one.predict_proba(valid[0][kept]), labels=known),
    )


def set_last_layer(last: nn.Linear, probe: Pipeline) -> None:
    """Write a probe, its standardisation included, into a linear layer."""
    scaler, logistic = probe
    weight = logistic.coef_ / scaler.scale_
    bias = logistic.intercept_ - (weight @ scaler.mean_ if scaler.with_mean else 0.0)
    if len(logistic.classes_) == 2:  # scikit-learn keeps the difference of the two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    with torch.no_grad():
        last.weight.zero_()
        last.weight[logistic.classes_] = torch.from_numpy(weight).to(last.weight)
        if last.bias is not None:
            last.bias.fill_(float(bias.min()))  # classes that no row has
            last.bias[logistic.classes_] = torch.from_numpy(bias).to(last.bias)
