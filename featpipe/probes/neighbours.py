"""Nearest neighbours by cosine."""

from __future__ import annotations

from typing import Any

from featpipe.probes.base import Probe, estimators, solvers
from featpipe.steps import STEPS, option


@STEPS.register
class Knn(Probe):
    """Classify by the nearest neighbours (cosine), k chosen on validation rows."""

    name = "knn"
    revision = 2  # 1: searched by scikit-learn, once for each k
    examples = ("featpipe knn", "featpipe knn --k 1,5,20")
    display_name = "k nearest neighbours (cosine)"
    parameter = "kneighborsclassifier__n_neighbors"
    bytes_per_value = 12

    k: tuple[int, ...] = option(
        (1, 3, 5, 10, 20, 50), help="Numbers of neighbours to choose from.", minimum=1, tunable=True
    )

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Scale rows to length 1; then Euclidean order is cosine order.

        ‖a − b‖² = 2 − 2 cos(a, b).
        """
        nearest = estimators.KNeighborsClassifier(algorithm="brute")
        return estimators.make_pipeline(estimators.Normalizer(), nearest)

    def strategy(self, n_rows: int, n_features: int) -> Any:
        """Compute distances once for all numbers of neighbours."""
        return solvers.SharedDistances(self)

    def candidates(self) -> tuple[Any, ...]:
        """Return the numbers of neighbours, the largest (smoothest) first."""
        return tuple(sorted(self.k, reverse=True))

    def default(self) -> int:
        """Return the smallest number of neighbours."""
        return min(self.k)

    def admits(self, value: int, n_rows: int) -> bool:
        """Whether there are that many neighbours."""
        return value <= n_rows
