"""The nearest class mean."""

from __future__ import annotations

from typing import Any

from featpipe.probes.base import Probe, estimators
from featpipe.steps import STEPS


@STEPS.register
class Centroid(Probe):
    """Classify by the nearest class mean of L2-normalised features."""

    name = "centroid"
    examples = ("featpipe centroid",)
    display_name = "Nearest class mean"
    bytes_per_value = 12

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Scale rows to length 1, then compare with the class means."""
        return estimators.make_pipeline(estimators.Normalizer(), estimators.NearestMean())
