"""The linear support vector machine."""

from __future__ import annotations

from typing import Any

from featpipe.probes.base import CLASS_WEIGHTS, LinearProbe, estimators
from featpipe.steps import STEPS, option


@STEPS.register
class Svm(LinearProbe):
    """Train a one-vs-rest linear SVM on stored features and test it once."""

    name = "svm"
    examples = (
        "featpipe svm",
        "featpipe svm --model resnet50 --dataset stl10 --protocol folds",
        "featpipe svm --train-per-class 1,2,5,10,50,100",
    )
    display_name = "SVM (one-vs-rest)"
    parameter = "onevsrestclassifier__estimator__C"
    hinge = True
    bytes_per_value = 32  # liblinear keeps an index with each value
    solver_per_class = True

    c: tuple[float, ...] = option(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        help="Values of C to choose from on validation rows.",
        minimum=1e-12,
        tunable=True,
        symbol="C",
    )
    max_iter: int = option(
        5000, help="Maximum number of solver iterations.", minimum=1, maximum=2**31 - 1
    )

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Standardise, then minimise the squared hinge loss with the faster of two solvers.

        CPU seconds for one class over C = 1e-5, 1e-3 and 0.1, dual and primal: 0.6 and 13 (800 ×
        2048 values), 0.24 and 0.55 (800 × 512), 0.9 and 0.9 (4000 × 512), 6.6 and 2.0 (8000 × 512,
        a tenth of the labels wrong), 1.8 and 0.3 (10,000 × 64). scikit-learn's own rule, primal
        from one row per feature on, is slower at typical sizes of a probe. The dual solver visits
        rows in random order.
        """
        svm = estimators.LinearSVC(
            max_iter=self.max_iter,
            random_state=self.seed,
            dual=n_rows < 8 * n_features,
            class_weight=CLASS_WEIGHTS[self.class_weight],
        )
        one_vs_rest = estimators.OneVsRestClassifier(svm)
        return estimators.make_pipeline(estimators.StandardScaler(), one_vs_rest)
