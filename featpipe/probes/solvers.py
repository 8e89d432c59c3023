"""Strategies to search and fit a probe: scikit-learn's, or all candidates together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

from featpipe.probes.linear import Fit, Solver, Task, fit_path, thread_pool

if TYPE_CHECKING:
    from featpipe.probes.base import LinearProbe, Probe

Array = NDArray[Any]
Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]  # training and validation rows

_FIT_TOL = 1e-6  # takes a tenth longer than 1e-5; decisions are accurate to thousandths
_HINGE_SEARCH_TOL = 1e-5
# Predicts one row in a thousand differently from a converged fit; 1e-5 takes ten times as long,
# because single precision does not reach it where C is large.
_SOFTMAX_SEARCH_TOL = 1e-3


@dataclass
class ScikitLearn:
    """scikit-learn's own grid search and fits."""

    probe: Probe
    tol: float | None = None  # instead of the solver's own
    name = "sklearn"
    reads_blocks = False  # whether rows may be on disk

    def search(self, X: Any, y: Array, folds: Folds, values: Sequence[Any], jobs: int) -> list[Any]:
        """Return a row for each value: mean ``accuracy`` over folds, ``converged`` and others."""
        with warnings.catch_warnings():  # grid points record whether they converged
            warnings.simplefilter("ignore", ConvergenceWarning)
            points = map(self.probe.parameters, values)
            grid = [{name: [value] for name, value in point.items()} for point in points]
            search = GridSearchCV(
                self._estimator(X), grid, cv=folds, scoring=_score, refit=False, error_score="raise"
            ).fit(X, y)
        found = search.cv_results_
        columns = (found[f"mean_test_{name}"].tolist() for name in ("accuracy", "converged"))
        return [
            {"accuracy": accuracy, "converged": share == 1}
            for accuracy, share in zip(*columns, strict=True)
        ]

    def fit(self, X: Any, y: Array, value: Any, jobs: int) -> tuple[BaseEstimator, dict[str, Any]]:
        """Return a fitted pipeline of scikit-learn, and facts: ``converged`` and others."""
        estimator = self._estimator(X)
        if self.probe.tuned:
            estimator.set_params(**self.probe.parameters(value))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            estimator.fit(X, y)
        gave_up = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
        for w in caught:
            if w not in gave_up:
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        # L-BFGS may give up before its iteration limit, which only a warning reports.
        return estimator, {"converged": converged(estimator) and not gave_up}

    def _estimator(self, X: Any) -> BaseEstimator:
        estimator = self.probe.estimator(*X.shape)
        if self.tol is not None:
            estimator.set_params(**{f"{self.probe.parameter.rpartition('__')[0]}__tol": self.tol})
        return estimator


@dataclass
class BatchedLinear:
    """Linear classifiers by :func:`featpipe.probes.linear.fit_path`, stored in scikit-learn's."""

    probe: LinearProbe
    name = "batched"
    reads_blocks = True

    def search(self, X: Any, y: Array, folds: Folds, values: Sequence[Any], jobs: int) -> list[Any]:
        """See :class:`ScikitLearn`."""
        target = np.unique(y, return_inverse=True)[1]
        weight = np.zeros((len(folds), len(y)))
        for fold, (train, _) in enumerate(folds):
            weight[fold, train] = 1
        accuracy, gap = np.zeros((2, len(values), len(folds)))
        tol = _HINGE_SEARCH_TOL if self.probe.hinge else _SOFTMAX_SEARCH_TOL
        for fit in self.path(X, target, weight, values, jobs, tol):
            validated = folds[fit.fold][1]
            F = fit.F[validated]
            answers = F[:, 0] > 0 if F.shape[1] == 1 else F.argmax(axis=1)
            accuracy[fit.value, fit.fold] = np.mean(answers == target[validated])
            gap[fit.value, fit.fold] = fit.gap
        return [
            {"accuracy": float(right.mean()), "converged": worst <= tol, "gap": worst}
            for right, worst in zip(accuracy, gap.max(axis=1).tolist(), strict=True)
        ]

    def fit(self, X: Any, y: Array, value: Any, jobs: int) -> tuple[BaseEstimator, dict[str, Any]]:
        """See :class:`ScikitLearn`."""
        classes, target = np.unique(y, return_inverse=True)
        weight = np.ones((1, len(y)))
        (fit,) = self.path(X, target, weight, [value], jobs, _FIT_TOL)
        scaler = StandardScaler()
        scaler.mean_, scaler.scale_ = fit.mean, fit.scale
        scaler.var_ = np.square(scaler.scale_)
        scaler.n_samples_seen_, scaler.n_features_in_ = X.shape
        linear = self.probe.estimator(*X.shape).set_params(**self.probe.parameters(value))[-1]
        if isinstance(linear, OneVsRestClassifier):
            linear = clone(linear.estimator)  # one-vs-rest itself
        linear.coef_ = np.ascontiguousarray(fit.W[:-1].T, np.float64)
        linear.intercept_ = np.ascontiguousarray(fit.W[-1], np.float64)
        linear.classes_, linear.n_features_in_ = classes, X.shape[1]
        several = isinstance(linear, LogisticRegression)
        linear.n_iter_ = np.array([fit.iterations], np.int32) if several else fit.iterations
        facts = {"converged": fit.gap <= _FIT_TOL, "gap": fit.gap, "iterations": fit.iterations}
        return make_pipeline(scaler, linear), facts

    def path(
        self,
        X: Any,
        target: Array,
        weight: Array,
        values: Sequence[float],
        jobs: int,
        tol: float,
    ) -> Iterator[Fit]:
        """Yield the fit of each value on each fold; ``weight`` of rows is (folds, rows)."""
        n_classes, hinge, balance = int(target.max()) + 1, self.probe.hinge, None
        if self.probe.class_weight == "balanced":
            counts = np.stack([np.bincount(target, w, n_classes) for w in weight])
            total = counts.sum(axis=1, keepdims=True)
            sides = np.stack([counts, total - counts], axis=-1).clip(1)
            balance = total[..., None] / (2 if hinge else n_classes) / sides
        task = Task(hinge, target, n_classes, weight, balance)
        with thread_pool(jobs) as pool:
            solver = Solver(tol, self.probe.max_iter, pool)
            yield from fit_path(X, task, values, solver, standardise=True)


class SharedDistances(ScikitLearn):
    """Nearest neighbours: distances are computed once for all k."""

    name = "batched"

    def search(self, X: Any, y: Array, folds: Folds, values: Sequence[Any], jobs: int) -> list[Any]:
        """See :class:`ScikitLearn`."""
        rows = Normalizer().fit_transform(X)
        classes, target = np.unique(y, return_inverse=True)
        accuracy = np.zeros((len(values), len(folds)))
        most = max(values)
        for fold, (train, validated) in enumerate(folds):
            neighbours = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(rows[train])
            with threadpool_limits(joblib.effective_n_jobs(jobs)):
                near = neighbours.kneighbors(rows[validated], return_distance=False)
            voters, votes = target[train][near], np.zeros((len(validated), len(classes)), int)
            for k in range(most):
                votes[np.arange(len(votes)), voters[:, k]] += 1
                if k + 1 in values:
                    answers = votes.argmax(axis=1)  # the first of equals, as scikit-learn does
                    accuracy[values.index(k + 1), fold] = np.mean(answers == target[validated])
        return [{"accuracy": float(right.mean()), "converged": True} for right in accuracy]


Strategy = ScikitLearn | BatchedLinear


def _score(estimator: BaseEstimator, X: Array, y: Array) -> dict[str, float]:
    """Score a grid point: validation accuracy, and whether its solver converged."""
    return {"accuracy": estimator.score(X, y), "converged": float(converged(estimator))}


def converged(estimator: BaseEstimator) -> bool:
    """Return whether every solver inside a fitted classifier stopped before its limit.

    Worker processes lose warnings, but not iteration counts.
    """
    for solver in learners(estimator):
        iterations, limit = getattr(solver, "n_iter_", None), getattr(solver, "max_iter", None)
        if hasattr(solver, "n_trees_per_iteration_"):  # boosting always makes ``max_iter`` of them
            continue
        # -1 means no limit in scikit-learn.
        if iterations is not None and limit not in (None, -1) and np.max(iterations) >= limit:
            return False
    return True


def learners(estimator: BaseEstimator) -> list[BaseEstimator]:
    """Return the classifiers inside a pipeline: its last step, or one for each class."""
    classifier = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    return getattr(classifier, "estimators_", [classifier])
