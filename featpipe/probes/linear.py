"""Linear probes on standardised features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featpipe.probes.probe import Cost, Probe


def svm_probe(c: Sequence[float], *, max_iter: int = 5000, seed: int = 0) -> Probe:
    """Return a one-vs-rest linear SVM (squared hinge loss, liblinear).

    Parameters
    ----------
    c : sequence of float
        Values of the cost parameter to choose from.
    max_iter : int
    seed : int
        liblinear's dual solver visits rows in random order.
    """
    solver = LinearSVC(max_iter=max_iter, random_state=seed)
    return Probe(
        "svm",
        "SVM (one-vs-rest)",
        make_pipeline(StandardScaler(), OneVsRestClassifier(solver)),
        parameter="c",
        path="onevsrestclassifier__estimator__C",
        values=tuple(sorted(c)),
        default=sorted(c)[len(c) // 2],
        solver=_svm_solver,
        open_ended=True,
        cost=Cost(bytes_per_value=32, once_per_class=True),  # liblinear keeps an index per value
    )


def _svm_solver(n_rows: int, n_features: int) -> dict[str, Any]:
    """Choose liblinear's faster solver; both minimise the same function.

    CPU seconds for one class over C = 1e-5, 1e-3 and 0.1, dual and primal: 0.6 and 13 (800 × 2048
    values), 0.24 and 0.55 (800 × 512), 0.9 and 0.9 (4000 × 512), 6.6 and 2.0 (8000 × 512, a tenth
    of the labels wrong), 1.8 and 0.3 (10 000 × 64). scikit-learn's own rule, primal from one row
    per feature on, is slower around the sizes of a probe.
    """
    return {"onevsrestclassifier__estimator__dual": n_rows < 8 * n_features}


def logistic_probe(c: Sequence[float], *, max_iter: int = 2000) -> Probe:
    """Return a multinomial logistic regression (L2, L-BFGS).

    Parameters
    ----------
    c : sequence of float
        Values of the inverse regularisation strength to choose from.
    max_iter : int
    """
    return Probe(
        "logistic",
        "Logistic probe",
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter)),
        parameter="c",
        path="logisticregression__C",
        values=tuple(sorted(c)),
        default=sorted(c)[len(c) // 2],
        open_ended=True,
        cost=Cost(bytes_per_value=16),
    )
