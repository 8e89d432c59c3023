"""How much a mean would vary with other test images and with other training images.

Several models of one method (folds, k-fold, draws) are trained on different rows and tested on the
same rows or on different ones. Their answers form a table of training sets × test rows. Resampling
rows covers one dimension, the spread over models the other; a statement about the *method* needs
both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe.errors import ResultError


@dataclass(frozen=True)
class TrainingSets:
    """What statistics need to know about the training rows of a method's models."""

    sets: tuple[str, ...]  # fingerprint of the training rows of each model
    n_rows: float  # mean number of rows that trained a model
    overlap: float  # mean share of rows that two sets have in common, 0 (disjoint) to 1 (identical)
    own_pool: bool  # whether rows that test one model train another, as in k-fold

    @property
    def distinct(self) -> int:
        """Number of different training sets."""
        return len(set(self.sets))


@dataclass(frozen=True)
class Variance:
    """The variance of a mean over test rows, by source.

    ``design`` says how the parts are related: ``"crossed"`` if they are independent; ``"pooled"``
    if rows that test one model train another; ``"nested"`` if each row was predicted by one model.
    The deviations are None if models were tested on different rows, which cannot separate them.
    """

    rows: float  # due to the finite number of test rows
    training: float = 0.0  # due to the finite number of training sets
    df: float = np.inf  # degrees of freedom of their sum
    training_sd: float | None = None  # of one model's true mean over training sets
    few_rows_sd: float | None = None  # added to it by a model's own few test rows
    design: str = "crossed"

    @property
    def total(self) -> float:
        """Variance of the mean with respect to both sources."""
        cross = np.sqrt(self.rows * self.training) if self.design == "pooled" else 0.0
        return float(self.rows + self.training + cross)

    def more_rows(self, target: float) -> float | None:
        """Return how many times the test rows lower the variance to a target; None if none do."""
        if self.design == "nested":  # more test rows mean more training rows
            return self.total / target if target > 0 else None
        left = target - self.training
        if self.design == "pooled" and left > 0:  # rows + cross term = left, solved for √rows
            root = np.sqrt(self.training)
            left = ((np.sqrt(root**2 + 4 * left) - root) / 2) ** 2
        return float(self.rows / left) if left > 0 else None


def two_way_variance(
    values: ArrayLike,
    row: NDArray[np.int64],
    model: NDArray[np.int64],
    training: TrainingSets,
    row_variance: float | None = None,
) -> Variance:
    """Estimate the variance of the mean of row means, rows and training sets both being random.

    With one value for each row and training set this is the analysis of variance of a crossed
    design with random effects: the mean over S training sets and n rows has the variance
    σ²(training)/S + σ²(rows)/n + σ²(interaction)/(S·n), and its degrees of freedom follow from
    Satterthwaite (1946, Biometrics Bulletin 2: 110–114). The interaction is in both mean squares
    and is not subtracted from one of them, so the estimate is never negative and errs on the safe
    side, like that of Owen's pigeonhole bootstrap (2007, Annals of Applied Statistics 1: 386–411).
    Three things are specific to trained models:

    * *Overlapping training sets* (ten folds that share a fifth of their images) make models more
      alike than independent sets would. By Hoeffding (1948, Annals of Mathematical Statistics 19:
      293–325) the correlation of a symmetric function of two overlapping samples is at most
      the overlap ρ, so the share σ²/S becomes σ²·(1/S + ρ/(1 − ρ)).
    * *One model per row* (k-fold): training sets and rows cannot be separated, and no unbiased
      estimate of the variance exists (Bengio and Grandvalet 2004, JMLR 5: 1089–1105). As in
      Nadeau and Bengio (2003, Machine Learning 52: 239–281) the training rows are assumed to add as
      much variance as that many test rows would. This is conservative.
    * *Rows that test one model and train another* (folds without a test split, draws within k-fold)
      make the two parts correlated. The correlation is assumed to be ½, which adds
      √(rows·training); simulations without overlap (``benchmarks/verdicts.py``) suggest 0.4.

    ``values``, of shape (m,), are 1 for right and 0 for wrong, or differences of two methods;
    ``row`` and ``model`` are the row and the training set of each value, both numbered from 0.
    ``row_variance`` replaces the rows' part if a better estimate than the sample variance of row
    means is known. There must be at least two different training sets.
    """
    if training.distinct < 2 or training.overlap >= 1:
        raise ResultError(
            "A statement about other training images needs models trained on different images.",
            got=f"{training.distinct} training sets, overlap {training.overlap:.2f}",
            next_step="use --protocol folds or kfold:5",
        )
    values = np.asarray(values, dtype=np.float64)
    per_row, per_model = np.bincount(row), np.bincount(model)
    m, n, s = len(values), len(per_row), len(per_model)
    means = np.bincount(row, weights=values) / per_row
    spread = float(means.var(ddof=1)) if n > 1 else 0.25
    rows = spread / n if row_variance is None else row_variance
    if m < 2 * n:
        return Variance(rows, rows * n / training.n_rows, max(1, n - 1), design="nested")
    within = values - means[row]
    effect = np.bincount(model, weights=within) / per_model
    within -= effect[model]
    noise = float(within @ within) / max(1, m - n - s + 1) * s / m  # of a model's mean over rows
    between = float(effect @ effect) / (s - n * s / m)
    factor = 1 / s + training.overlap / (1 - training.overlap)
    trained = factor * between
    squares = trained**2 / (s - 1) + rows**2 / max(1, n - 1)
    df = (trained + rows) ** 2 / squares if squares > 0 else np.inf
    design = "pooled" if training.own_pool else "crossed"
    if m < n * s:  # some models were tested on only some of the rows
        return Variance(rows, float(trained), float(df), design=design)
    sds = float(np.sqrt(max(0.0, between - noise))), float(np.sqrt(noise))
    return Variance(rows, float(trained), float(df), *sds, design)
