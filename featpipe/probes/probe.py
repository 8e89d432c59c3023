"""What a probe is: an estimator, the grid its hyper-parameter is chosen from, and its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class Cost:
    """What a fit costs, measured with scikit-learn 1.9 on float32 features.

    Parameters
    ----------
    bytes_per_value : float
        Memory at the peak for each number in the training rows, these included.
    once_per_class : bool
        Whether a solver runs for each class and not once for all of them.
    """

    bytes_per_value: float
    once_per_class: bool = False


@dataclass(frozen=True)
class Probe:
    """A classifier on features, not yet fitted.

    Parameters
    ----------
    name : str
        ``"svm"``, ``"logistic"`` …
    title : str
        Name in tables.
    estimator : Pipeline
        Normalisation and classifier in one, so that the former learns from training rows only.
    parameter : str or None
        The hyper-parameter that is chosen, as users call it (``"c"``), or ``None``.
    values : tuple
        Values to choose from, the most regularised first: ties go to the first.
    default : object
        The value that is used where there are too few rows to choose.
    admissible : callable
        ``admissible(value, n_rows)``: whether so many rows can be fitted with a value.
    solver : callable
        ``solver(n_rows, n_features)``: parameters of the estimator that make it fast for training
        rows of that shape. They change what a fit costs, not what it looks for.
    open_ended : bool
        Whether a value beyond the end of the grid may be better.
    cost : Cost
    """

    name: str
    title: str
    estimator: Pipeline
    parameter: str | None = None
    path: str = ""  # of the parameter inside the pipeline, as scikit-learn writes it
    values: tuple[Any, ...] = ()
    default: Any = None
    admissible: Callable[[Any, int], bool] = lambda value, n_rows: True
    solver: Callable[[int, int], dict[str, Any]] = lambda n_rows, n_features: {}
    open_ended: bool = False
    cost: Cost = Cost(bytes_per_value=16)

    def grid(self, n_rows: int) -> list[Any]:
        """Return the values that so many rows can be fitted with, in their order."""
        return [value for value in self.values if self.admissible(value, n_rows)]

    def sized(self, n_rows: int, n_features: int) -> Pipeline:
        """Return an unfitted estimator for training rows of a shape."""
        return clone(self.estimator).set_params(**self.solver(n_rows, n_features))


def final_step(estimator: BaseEstimator) -> ClassifierMixin:
    """Return the classifier at the end of a pipeline."""
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def converged(estimator: BaseEstimator) -> bool:
    """Return whether every solver inside a fitted classifier stopped before its limit.

    Warnings vanish in worker processes; the iteration counts do not.
    """
    classifier = final_step(estimator)
    solvers = getattr(classifier, "estimators_", [classifier])
    for solver in solvers:
        iterations, limit = getattr(solver, "n_iter_", None), getattr(solver, "max_iter", None)
        if iterations is None or limit is None:
            continue
        if max(getattr(iterations, "flat", [iterations])) >= limit:
            return False
    return True


def n_parameters(estimator: BaseEstimator) -> int:
    """Return how many numbers a fitted classifier has learned (weights, biases, means)."""
    classifier = final_step(estimator)
    solvers = getattr(classifier, "estimators_", [classifier])
    names = ("coef_", "intercept_", "means_")
    return int(sum(getattr(s, name).size for s in solvers for name in names if hasattr(s, name)))
