"""A probe: linear discriminant analysis."""

from featpipe.probes.base import Probe
from featpipe.steps import option


class Lda(Probe):
    """Train a linear discriminant analysis on stored features and test it once."""

    name = "lda"
    display_name = "Linear discriminant analysis"
    parameter = "lineardiscriminantanalysis__shrinkage"

    shrinkage: tuple[float, ...] = option(
        (0.1, 0.5, 0.9), help="Shrinkages to choose from.", minimum=0, maximum=1, tunable=True
    )

    def estimator(self, n_rows, n_features):
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr"))

    def candidates(self):
        return tuple(sorted(self.shrinkage, reverse=True))
