"""Logistic regression."""

from __future__ import annotations

from typing import Any

from featpipe.probes.base import CLASS_WEIGHTS, LinearProbe, estimators
from featpipe.steps import STEPS, option


@STEPS.register
class Logistic(LinearProbe):
    """Train a multinomial logistic probe on stored features and test it once."""

    name = "logistic"
    examples = ("featpipe logistic", "featpipe logistic --protocol kfold:5")
    display_name = "Logistic probe"
    parameter = "logisticregression__C"
    hinge = False

    c: tuple[float, ...] = option(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        help="Values of C to choose from on validation rows.",
        minimum=1e-12,
        tunable=True,
        symbol="C",
    )
    max_iter: int = option(
        2000, help="Maximum number of solver iterations.", minimum=1, maximum=2**31 - 1
    )

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Standardise, then fit with an L2 penalty by L-BFGS."""
        logistic = estimators.LogisticRegression(
            max_iter=self.max_iter, class_weight=CLASS_WEIGHTS[self.class_weight]
        )
        return estimators.make_pipeline(estimators.StandardScaler(), logistic)
